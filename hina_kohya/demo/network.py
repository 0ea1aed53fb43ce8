"""The adapter: any sd-scripts network module, called in the order and with the arguments of train_network.py."""

import importlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError  # pyright: ignore[reportAttributeAccessIssue]
from safetensors.torch import load_file

from hina_kohya.files import atomic
from hina_kohya.trainers import averages, calibrating, saving
from hina_kohya.trainers.network_args import CALIBRATE_STEPS, EMA, KEEP_BEST, STOP_AFTER, take

from .errors import TrainingError, UserError
from .model import DigitModel
from .settings import Settings


def parse_args(words: list[str]) -> dict[str, str]:
    """network_args stay strings; the module converts them itself."""
    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UserError(f"network_args: {word!r} must be name=value")
        pairs[key] = value
    return pairs


def _readable(file: Path) -> None:
    """Raises UserError for a file of weights that is damaged."""
    try:
        if file.suffix == ".safetensors":
            load_file(file)
    except (OSError, SafetensorError) as exc:
        raise UserError(f"network_weights {file} is damaged or no .safetensors file: {exc}") from exc


def create(settings: Settings, model: DigitModel) -> Any:
    """Import the module, make the network, hook it into the model."""
    try:
        module = importlib.import_module(settings.network_module)
    except ModuleNotFoundError as exc:
        raise UserError(f"network_module {settings.network_module} cannot be imported: {exc}") from exc
    if not hasattr(module, "create_network"):
        raise UserError(f"network_module {settings.network_module} has no create_network")
    # LyCORIS lists every module class of every other architecture that it did not find here.
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)

    if settings.network_weights:
        _readable(Path(settings.network_weights))
    models = (None, model.text_encoder, model.unet)
    kwargs: dict[str, Any] = parse_args(settings.network_args)
    for name in (KEEP_BEST, STOP_AFTER):  # not the network's
        kwargs.pop(name, None)
    try:
        if settings.dim_from_weights:
            network, _ = module.create_network_from_weights(1, settings.network_weights, *models, **kwargs)
        else:
            kwargs.setdefault("dropout", settings.network_dropout)
            network = module.create_network(
                1.0,
                settings.network_dim,
                settings.network_alpha,
                *models,
                neuron_dropout=settings.network_dropout,
                **kwargs,
            )
    except (AssertionError, KeyError, TypeError, ValueError) as exc:
        hint = '; LyCORIS 4 cannot do preset=full here, add "preset=attn-mlp"' if "duplicated" in str(exc) else ""
        raise UserError(
            f"{settings.network_module} refused dim {settings.network_dim}, alpha {settings.network_alpha}, "
            f"network_args {settings.network_args}: {type(exc).__name__} {exc}{hint}"
        ) from exc
    options = take(kwargs)[0]
    extras = {EMA: (options.ema, averages.waits), CALIBRATE_STEPS: (options.calibrate_steps, calibrating.waits)}
    for name, (value, waits) in extras.items():
        if value and not waits(network):
            raise UserError(
                f"network_args: {name}={kwargs[name]} is not for {settings.network_module} by itself; write "
                f"network_module hina_kohya.lycoris, or hina_kohya.network and inner={settings.network_module}"
            )
    if hasattr(network, "prepare_network"):
        network.prepare_network(settings)
    network.apply_to(
        model.text_encoder,
        model.unet,
        not settings.network_train_unet_only and settings.text_encoder_lr != 0,
        not settings.network_train_text_encoder_only,
    )
    if settings.network_weights:
        network.load_weights(settings.network_weights)
    return network


def param_groups(settings: Settings, network: Any) -> tuple[list[dict], list[str] | None]:
    """(groups, their names for the log). Networks may return the names or not."""
    method = getattr(network, "prepare_optimizer_params_with_multiple_te_lrs", None)
    method = method or network.prepare_optimizer_params
    result = method(settings.text_encoder_lr, settings.unet_lr, settings.learning_rate)
    groups, descriptions = result if isinstance(result, tuple) else (result, None)
    if not groups:
        raise UserError(
            f"nothing to train: learning_rate {settings.learning_rate}, unet_lr {settings.unet_lr}, text_encoder_lr "
            f"{settings.text_encoder_lr} leave no param group; set one above 0"
        )
    return groups, descriptions


def save(network: Any, file: Path, metadata: dict[str, Any]) -> None:
    """Write the adapter and its ss_* metadata; the old file stays until the new one is whole."""
    bad = [name for name, value in network.state_dict().items() if not torch.isfinite(value).all()]
    if bad:
        raise TrainingError(f"{len(bad)} weights are not finite ({bad[0]}, ...); {file} was not written")
    words = {k: str(v) for k, v in metadata.items()}
    with atomic(file) as unfinished:
        network.save_weights(str(unfinished), None, words)
    saving.tell(network, file, None, words)


def metadata(settings: Settings, optimizer: str, images: int, started_at: float) -> dict[str, Any]:
    """The part of sd-scripts' ss_* keys that means something here, under its names and in its spelling."""
    s = settings
    same_name = (
        "output_name learning_rate unet_lr text_encoder_lr gradient_accumulation_steps max_train_steps "
        "lr_warmup_steps lr_scheduler network_module network_dim network_alpha network_dropout mixed_precision "
        "full_bf16 seed max_grad_norm caption_dropout_rate"
    )
    values = {f"ss_{name}": getattr(s, name) for name in same_name.split()}
    values |= {
        "ss_training_started_at": started_at,
        "ss_optimizer": optimizer,
        "ss_num_train_images": images,
        "ss_batch_size_per_device": s.train_batch_size,
        "ss_total_batch_size": s.train_batch_size * s.gradient_accumulation_steps,
        "ss_resolution": "(8, 8)",
        "ss_base_model_version": "hina_digits",
        "ss_sd_model_name": Path(s.pretrained_model_name_or_path or "hina_digits").name,
        "ss_dataset_dirs": json.dumps({f"digit_{d}": {"n_repeats": 1} for d in s.digits}),
    }
    if s.network_args:
        values["ss_network_args"] = json.dumps(parse_args(s.network_args))
    return values
