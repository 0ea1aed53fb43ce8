"""Optimizers that run, and then do something else than people expect of them."""

from collections.abc import Iterator

from hina_kohya.check.edit import argument, put
from hina_kohya.check.finding import Finding, error, note, warning
from hina_kohya.check.optimizer import OPTION
from hina_kohya.check.rules import rule
from hina_kohya.check.run import Run
from hina_kohya.check.sizes import WIDTHS, largest_factor

_EIGHT_BIT = ("adamw8bit", "lion8bit", "pagedadamw8bit", "pagedlion8bit", "sgdnesterov8bit")
_SMALL_SCALE = 0.1  # alpha / rank
_LEAST_8BIT = 4096  # bitsandbytes' min_8bit_size
_DECAY_IS_ROUNDED = ("torch.optim.AdamW", "bitsandbytes.optim.AdamW8bit")
_HALF_STEP = 2**-9  # of bf16: a smaller relative change is rounded away


@rule
def came_without_warmup(run: Run) -> Iterator[Finding]:
    if run.optimizer.last.lower() == "came" and not run.warms_up:
        yield warning(
            "lr_warmup_steps",
            "CAME's first updates are 11 to 13 times the learning rate (AdamW's: 1), after 100 steps still 6 times",
            "measured with came_pytorch 0.1.3 and pytorch_optimizer 4.1.0: its averages start at 0 without correction",
            put(lr_warmup_steps=100)
            + (put(lr_scheduler="constant_with_warmup") if run.args["lr_scheduler"] == "constant" else put()),
        )


@rule
def alpha_far_below_rank(run: Run) -> Iterator[Finding]:
    """LoRA-Muon makes up for half of a small alpha, as AdamW's factors do by growing, if it is told of it."""
    network, optimizer = run.network, run.optimizer
    dim, alpha = run.args.get("network_dim"), run.args.get("network_alpha")
    has_pairs = network.algorithm in ("lora", "locon") and optimizer.last in ("HinaAdamW", "AdaptiveHinaAdamW")
    if not has_pairs or optimizer.finds_lr or not dim or not alpha or alpha / dim >= _SMALL_SCALE:
        return
    what = f"alpha {alpha:g} with rank {dim:g} multiplies what is learnt by {alpha / dim:.2g}"
    if "lora_scale" in optimizer.arguments:
        return
    if not optimizer.hooked:
        yield note(
            "network_alpha",
            f"{what}, and without hooks nothing tells the optimizer: it is slower than AdamW then at the same rate",
            "measured: SmolLM2-135M, rank 32, alpha 1, 5e-3: 2.92 without, 2.74 with it, AdamW 2.77",
            argument(OPTION, optimizer.words, "lora_scale", f"{alpha / dim:.4g}"),
        )
    elif "rank_free_lr" not in optimizer.arguments:
        yield note(
            "network_alpha",
            f"{what}; the rate that suits alpha = rank is then too low, and rank_free_lr=True keeps its meaning",
            "measured: SmolLM2-135M, rank 32, alpha 1, 5e-3: 2.74 without, 2.71 with it, AdamW 2.77",
            argument(OPTION, optimizer.words, "rank_free_lr", "True"),
        )


@rule
def eight_bit_on_lokr(run: Run) -> Iterator[Finding]:
    network, optimizer = run.network, run.optimizer
    if optimizer.lower not in _EIGHT_BIT or network.algorithm != "lokr" or "min_8bit_size" in optimizer.arguments:
        return
    width = WIDTHS.get(run.trainer.architecture(run.args) or "", WIDTHS["sdxl"])
    try:
        factor, dim = int(network.arguments.get("factor", -1)), run.args["network_dim"] or 4
    except ValueError:
        return
    largest = largest_factor(width, factor, dim, network.is_on("full_matrix"))
    if largest < _LEAST_8BIT:
        yield warning(
            "optimizer_type",
            f"LoKr's factors are too small for it: {largest} elements for a layer of width {width}, and bitsandbytes "
            f"keeps state of less than {_LEAST_8BIT} in 32 bit",
            "measured: factor 8, dim 8: 96 % of the tensors and 72 % of the parameters stay 32-bit",
            put(optimizer_type="hina_kohya.HinaAdamW"),
        )


@rule
def state_is_corrupted(run: Run) -> Iterator[Finding]:
    optimizer = run.optimizer
    if not optimizer.path.startswith("adv_optm.") or optimizer.arguments.get("state_precision") != "int8_sr":
        return
    fix = argument(OPTION, optimizer.words, "state_precision", "'bf16_sr'")
    evidence = "measured with adv_optm 2.5.16: signed 8-bit momentum comes back unsigned, and no error is raised"
    if run.args["resume"]:
        yield error(OPTION, "resuming corrupts the momentum of state_precision='int8_sr'", evidence, fix)
    elif run.on("save_state") or run.on("save_state_on_train_end"):
        yield warning(
            OPTION, "the state that is saved cannot be resumed from: int8_sr does not survive it", evidence, fix
        )


@rule
def decay_rounded_away(run: Run) -> Iterator[Finding]:
    """A weight decay of lr * decay a step is below half a step of bf16, so no parameter ever changes by it."""
    optimizer, decay = run.optimizer, _decay(run)
    ratio = max(run.network.ratio(part) or 1.0 for part in ("unet", "text_encoder"))
    largest = max(run.lrs, default=0.0) * ratio * decay
    if run.on("full_bf16") and optimizer.path in _DECAY_IS_ROUNDED and 0 < largest < _HALF_STEP:
        yield warning(
            "full_bf16",
            f"weight decay does nothing: {largest:.1g} a step is rounded away in bf16, which keeps {_HALF_STEP:.1g}",
            "measured: 100 steps of decay 0.1 at 1e-4 leave bf16 weights bit for bit; OneTrainer #996",
            put(full_bf16=False),
        )


@rule
def shapes_behind_deepspeed(run: Run) -> Iterator[Finding]:
    if run.on("deepspeed") and run.optimizer.path.startswith(("hina_kohya.", "adv_optm.")):
        yield warning(
            "deepspeed",
            f"ZeRO flattens the parameters, so {run.optimizer.last} sees neither matrices nor names",
            "read (library/deepspeed_utils.py), not run",
            put(deepspeed=False),
        )


def _decay(run: Run) -> float:
    """The weight decay that somebody asked for; a default is nobody's wish."""
    for value in (run.network.arguments.get("weight_decay"), run.optimizer.arguments.get("weight_decay")):
        try:
            return float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            continue
    return 0.0
