"""Options that sd-scripts refuses together: its own assertions, most of them after a model is loaded."""

import dataclasses as dc
from collections.abc import Callable, Iterator

from hina_kohya.check.edit import Edit, drop, put
from hina_kohya.check.finding import Finding, error
from hina_kohya.check.rules import rule_of
from hina_kohya.check.rules.dataset_options import any_subset
from hina_kohya.check.run import Run
from hina_kohya.trainers.facts.places import at
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS

_CACHE = "cache_text_encoder_outputs"
_WITHOUT_FP8_BASE = ("anima_train_network.py", "hunyuan_image_train_network.py")  # they turn it off themselves
_CHANGING = ("shuffle_caption", "caption_tag_dropout_rate", "token_warmup_step")
_SWAPPING = ("flux_train_network.py", "sd3_train_network.py", "anima_train_network.py")


@dc.dataclass(frozen=True)
class Refusal:
    """when: that it applies; key: the option to change; what: why it stops; evidence: where; edit: what mends it"""

    name: str
    when: Callable[[Run], bool]
    key: str
    what: str
    evidence: str
    edit: Edit


def _given(run: Run, *names: str) -> bool:
    return any(run.on(name) for name in names)


_REFUSALS = (
    Refusal(
        "full_fp16_alone",
        lambda c: c.on("full_fp16") and c.args["mixed_precision"] != "fp16",
        "mixed_precision",
        "full_fp16 requires fp16",
        f"assertion, {at('NetworkTrainer.train')}",
        put(mixed_precision="fp16"),
    ),
    Refusal(
        "full_bf16_alone",
        lambda c: c.on("full_bf16") and not c.on("full_fp16") and c.args["mixed_precision"] != "bf16",
        "mixed_precision",
        "full_bf16 requires bf16",
        f"measured: assertion, {at('NetworkTrainer.train')}",
        put(mixed_precision="bf16"),
    ),
    Refusal(
        "fp8_without_mixed_precision",
        lambda c: (
            _given(c, "fp8_base", "fp8_base_unet")
            and c.args["mixed_precision"] == "no"
            and c.trainer.script not in _WITHOUT_FP8_BASE
        ),
        "mixed_precision",
        "fp8_base requires fp16 or bf16",
        f"measured: assertion, {at('NetworkTrainer.train')}",
        put(mixed_precision="bf16"),
    ),
    Refusal(
        "fused_backward_pass",
        lambda c: c.on("fused_backward_pass") and c.optimizer.lower != "adafactor",
        "fused_backward_pass",
        "it works with Adafactor only",
        f"measured: assertion, {at('get_optimizer')}; sd-scripts #1834",
        put(fused_backward_pass=False),
    ),
    Refusal(
        "fused_with_accumulation",
        lambda c: (
            c.on("fused_backward_pass")
            and c.optimizer.lower == "adafactor"
            and c.args["gradient_accumulation_steps"] > 1
        ),
        "gradient_accumulation_steps",
        "fused_backward_pass allows no accumulation",
        f"assertion, {at('get_optimizer')}",
        put(gradient_accumulation_steps=1),
    ),
    Refusal(
        "old_optimizer_flag",
        lambda c: _given(c, "use_8bit_adam", "use_lion_optimizer") and bool(c.args["optimizer_type"]),
        "use_8bit_adam",
        "it and optimizer_type exclude each other",
        f"measured: assertion, {at('get_optimizer')}",
        put(use_8bit_adam=False),
    ),
    Refusal(
        "augmented_latents",
        lambda c: c.on("cache_latents") and any_subset(c, "color_aug", "random_crop"),
        "cache_latents",
        "color_aug and random_crop change images, so latents cannot be cached",
        f"measured: assertion, {at('NetworkTrainer.train')}",
        put(cache_latents=False),
    ),
    Refusal(
        "cached_text_in_training",
        lambda c: (
            _given(c, _CACHE, f"{_CACHE}_to_disk")
            and c.trains_text_encoder
            and c.trainer.script in ("sdxl_train_network.py", "anima_train_network.py")
        ),
        "network_train_unet_only",
        "a text encoder cannot be trained while its outputs are cached",
        f"assertion, {at('SdxlNetworkTrainer.assert_extra_args')} and {at('AnimaNetworkTrainer.assert_extra_args')}",
        put(network_train_unet_only=True),
    ),
    Refusal(
        "cached_text_with_changing_captions",
        lambda c: (
            _given(c, _CACHE, f"{_CACHE}_to_disk")
            and (
                any_subset(c, *_CHANGING) or (any_subset(c, "caption_dropout_rate") and "anima" not in c.trainer.script)
            )
            and c.trainer.script != "lumina_train_network.py"
        ),
        _CACHE,
        "captions that are shuffled or dropped differ from step to step, so outputs cannot be cached",
        f"assertion, {at('BaseDataset.is_text_encoder_output_cacheable')}, in every trainer but Lumina's",
        put(**{_CACHE: False}),
    ),
    Refusal(
        "swapping_and_offloading",
        lambda c: _given(c, "blocks_to_swap") and c.on("cpu_offload_checkpointing") and c.trainer.script in _SWAPPING,
        "cpu_offload_checkpointing",
        "blocks_to_swap excludes it",
        f"assertion, {at('FluxNetworkTrainer.assert_extra_args')}",
        put(cpu_offload_checkpointing=False),
    ),
    Refusal(
        "v2_in_sdxl",
        lambda c: c.on("v2") and c.trainer.script == "sdxl_train_network.py",
        "v2",
        "it means SD 2.x",
        f"assertion, {at('verify_sdxl_training_args')}",
        put(v2=False),
    ),
    Refusal(
        "adaptive_noise",
        lambda c: c.args["adaptive_noise_scale"] is not None and c.args["noise_offset"] is None,
        "adaptive_noise_scale",
        "it requires noise_offset",
        f"measured: ValueError, {at('verify_training_args')}",
        put(noise_offset=0.05),
    ),
    Refusal(
        "v_prediction_scale",
        lambda c: c.on("scale_v_pred_loss_like_noise_pred") and not c.on("v_parameterization"),
        "scale_v_pred_loss_like_noise_pred",
        "it requires v_parameterization",
        f"ValueError, {at('verify_training_args')}",
        put(v_parameterization=True),
    ),
    Refusal(
        "v_prediction_twice",
        lambda c: bool(c.args["v_pred_like_loss"]) and c.on("v_parameterization"),
        "v_pred_like_loss",
        "it excludes v_parameterization",
        f"ValueError, {at('verify_training_args')}",
        drop("v_pred_like_loss"),
    ),
    Refusal(
        "log_without_folder",
        lambda c: c.args["log_with"] in ("tensorboard", "all") and c.args["logging_dir"] is None,
        "logging_dir",
        "TensorBoard needs a folder",
        f"measured: ValueError, {at('prepare_accelerator')}",
        put(logging_dir="logs"),
    ),
    Refusal(
        "dim_from_nothing",
        lambda c: c.on("dim_from_weights") and c.args["network_weights"] is None,
        "dim_from_weights",
        "it takes the rank from network_weights, which is not given",
        f"measured: TypeError, {at('NetworkTrainer.train')}",
        put(dim_from_weights=False),
    ),
    Refusal(
        "workers_that_persist",
        lambda c: c.on("persistent_data_loader_workers") and c.args["max_data_loader_n_workers"] == 0,
        "persistent_data_loader_workers",
        "there are no workers: max_data_loader_n_workers is 0",
        "measured: ValueError from torch",
        put(persistent_data_loader_workers=False),
    ),
)

NAMES = tuple(refusal.name for refusal in _REFUSALS)


@rule_of(SD_SCRIPTS)
def refused_together(run: Run) -> Iterator[Finding]:
    for refusal in _REFUSALS:
        if refusal.when(run):
            finding = error(refusal.key, refusal.what, refusal.evidence, refusal.edit)
            yield dc.replace(finding, rule=refusal.name)
