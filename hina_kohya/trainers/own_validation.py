"""A validation for musubi-tuner, which has none: a dataset that is not trained on, at fixed timesteps with fixed noise.

The trainer's own functions read the dataset and give the loss. The random numbers of the training are those that it has
without.
"""

import contextlib
import copy
import importlib
import inspect
import random
from collections.abc import Iterator, Sequence
from multiprocessing import Value
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device

from hina_kohya.trainers import loop
from hina_kohya.trainers.bindings import Hook
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.held_out import LOCALS, HeldOut
from hina_kohya.trainers.network_args import HELD_OUT, BestOptions, best_options

# Of the timesteps that the training draws: middles of quarters, each of which counts alike.
QUANTILES = (0.125, 0.375, 0.625, 0.875)
_MORE = ("transformer", "noise_scheduler", "dit_dtype", "network_dtype", "vae")
_CONFIG = "musubi_tuner.dataset.config_utils"


class _Now:
    validation: "OwnValidation | None" = None


def release() -> None:
    _Now.validation = None


def begin(trainer: Any, settings: Any, modes: Sequence[Any]) -> None:
    """Where the trainer has made its optimizer. modes: what switches that to training and to evaluation.

    Raises UserError where something of a validation is asked, and there can be none.
    """
    _Now.validation = None
    options = best_options(getattr(settings, "network_args", None))
    if not options:
        return
    if not options.held_out:
        raise UserError(
            f"network_args: {options} needs images that are held out: give {HELD_OUT}=held_out.toml, a dataset config "
            "of images that are not trained on, whose latents and text encoder outputs are cached"
        )
    if type(inspect.getattr_static(type(trainer), "on_post_optimizer_step", None)) is not Hook:
        raise UserError(
            f"network_args: {options}: {type(trainer).__name__} has a step of its own, which is not known here"
        )
    _Now.validation = OwnValidation(trainer, options, modes)


def after_step(wrapped: Any, _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """In the place of what the trainer calls after each step, before it counts it."""
    result = wrapped(*args, **kwargs)
    if _Now.validation is not None:
        *_, is_step, steps_before = args
        if is_step and (steps_before + 1) % _Now.validation.every == 0:
            _Now.validation.run(steps_before + 1)
    return result


class OwnValidation:
    """Of one training."""

    def __init__(self, trainer: Any, options: BestOptions, modes: Sequence[Any]):
        run = loop.read("args", "accelerator", "train_dataset_group")
        args = run["args"]
        self.every, self._seed, (self._train, self._evaluate) = options.every, args.seed, modes
        with _random(args.seed, run["accelerator"].device):
            self._data = _dataset(options.held_out, trainer, args)
        trained_on = _files(run["train_dataset_group"])
        if both := trained_on & _files(self._data):
            raise UserError(
                f"network_args: {HELD_OUT}={options.held_out}: {len(both)} of its items are trained on, too, such as "
                f"{min(both)}; give a folder and a cache of its own"
            )
        self._held_out = HeldOut(options, args, run["accelerator"], args.seed, "seed")

    def run(self, step: int) -> None:
        run = loop.read(*LOCALS, *_MORE)
        accelerator = run["accelerator"]
        network, transformer = (accelerator.unwrap_model(run[name]) for name in ("network", "transformer"))
        self._evaluate()
        network.eval()
        transformer.switch_block_swap_for_inference()
        try:
            with torch.no_grad(), _random(self._seed, accelerator.device):
                self._held_out.losses += [
                    loss for number in range(len(self._data)) for loss in self._losses(run, number)
                ]
            self._held_out.judge(run, step)
        finally:
            transformer.switch_block_swap_for_training()
            network.train()
            self._train()

    def _losses(self, run: dict[str, Any], number: int) -> Iterator[torch.Tensor]:
        """Of one batch at each timestep."""
        trainer, accelerator = run["self"], run["accelerator"]
        batch: Any = send_to_device(self._data[number], accelerator.device)
        latents = trainer.scale_shift_latents(batch["latents"])
        args = copy.copy(run["args"])
        args.preserve_distribution_shape = False  # it would draw timesteps of its own
        for quantile in QUANTILES:
            batch["timesteps"] = [quantile] * len(latents)
            noise = torch.randn_like(latents)
            names = ("noise_scheduler", "dit_dtype", "network_dtype", "vae", "global_step")
            loss, _ = trainer.process_batch(
                args,
                accelerator,
                run["transformer"],
                run["network"],
                batch,
                latents,
                noise,
                *(run[name] for name in names),
            )
            yield loss.detach()


def _dataset(file: str, trainer: Any, args: Any) -> Any:
    """Of the trainer's own reading; its epoch stays 0, so that it is never shuffled."""
    if not Path(file).is_file():
        raise UserError(f"network_args: {HELD_OUT}={file} is no file; give a dataset config as --dataset_config is one")
    config = importlib.import_module(_CONFIG)
    blueprint = config.BlueprintGenerator(config.ConfigSanitizer()).generate(
        config.load_user_config(file), args, architecture=trainer.architecture
    )
    group = config.generate_dataset_group_by_blueprint(
        blueprint.dataset_group, training=True, num_timestep_buckets=None, shared_epoch=Value("i", 0)
    )
    if not len(group):
        raise UserError(
            f"network_args: {HELD_OUT}={file} has no items; cache their latents and text encoder outputs first"
        )
    return group


def _files(group: Any) -> set[str]:
    """The latents of a dataset group of musubi-tuner."""
    buckets = [bucket for dataset in group.datasets for bucket in dataset.batch_manager.buckets.values()]
    return {str(Path(item.latent_cache_path).resolve()) for bucket in buckets for item in bucket}


@contextlib.contextmanager
def _random(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers of their own for the block."""
    state = random.getstate()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(state)
