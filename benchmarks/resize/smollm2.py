"""SmolLM2-135M reads English by a LoRA on every linear layer, which is then made smaller.

Three texts that share no token: the training text less its last tenth, which calibrates, and the held-out pages.
"""

import functools
import logging
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.convergence.runs import CLIP, schedule
from benchmarks.convergence.task import digest
from benchmarks.pretrained import model, texts
from benchmarks.pretrained.worlds import BATCH, HELD_OUT, LENGTH, TEXT, Reader, adapter
from hina_kohya.loras.gathering import Gathering

TITLE: str = "SmolLM2-135M"
STEPS: int = 60
TRAINED_ON = 0.9  # of the training text
EVALUATED = HELD_OUT // 2  # of its sequences: a busy core takes 9 s for them, and a seed has three dozen files
CALIBRATION_BATCHES = 24
BEST_RATE, AT_RANK = 5e-3, 8  # benchmarks/results/pretrained_full.md

missing = model.missing
ABOUT = f"""
SmolLM2-135M (bf16, frozen) reads the pages of Python's help by a LoRA on each of its 210 linear layers, put there by
LyCORIS' generic wrapper ({{steps}} steps of {BATCH} sequences of {LENGTH} tokens, AdamW, a cosine, alpha equal to
rank). Its loss is that of the next token. Calibration: {BATCH * CALIBRATION_BATCHES} sequences of the last tenth of the
training text, which nothing was trained on; evaluation: {EVALUATED} sequences of other pages. The learning rate of the
large LoRA, and of the small one that is trained, is {BEST_RATE:g} x sqrt({AT_RANK} / rank): AdamW's best at rank
{AT_RANK} in `benchmarks.pretrained`, by the rule that held there from rank 2 to 128.
"""


def identity(folder: Path) -> str:
    data = [part.numpy().tobytes() for part in texts.tokens(folder, TEXT)]
    return digest(model.identity(), *data, repr((BATCH, LENGTH, HELD_OUT, EVALUATED, TRAINED_ON)))


def rates(rank: int) -> tuple[float, ...]:
    """The one that the rule gives."""
    return (float(f"{BEST_RATE * math.sqrt(AT_RANK / rank):.2g}"),)


def seconds(kind: str, steps: int) -> float:
    """A guess at what a run takes."""
    return {"train": 20.0 + 1.7 * steps, "calibrate": 90.0, "resize": 120.0}.get(kind, 20.0)


def part_of(text: Tensor, part: str) -> Tensor:
    """`training` or `calibration`"""
    cut = int(TRAINED_ON * len(text))
    return text[:cut] if part == "training" else text[cut:]


class Held(Reader):
    """Half of the sequences that `benchmarks.pretrained` evaluates."""

    sequences = EVALUATED


def train(folder: Path, rank: int, lr: float, steps: int, seed: int, file: Path | None) -> float:
    """The held-out loss, infinite where it diverges; the adapter goes to `file`."""
    reader = Held(folder, seed, TEXT, lambda base: adapter(base, "lora", rank, rank, seed))
    reader.text = part_of(reader.text, "training")
    params = [param for _, param in reader.named]
    optimizer = torch.optim.AdamW(params, lr, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, steps))
    for step in range(steps):
        if not math.isfinite(reader.backward(step)):
            return math.inf
        torch.nn.utils.clip_grad_norm_(params, CLIP)
        optimizer.step()
        scheduler.step()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: tensor.contiguous() for key, tensor in reader.network.state_dict().items()}, file)
    return reader.held_out()


def loaded(file: Path, base: nn.Module) -> Any:
    """The network of a file, applied, and computed as `adapter` computes it."""
    from lycoris import create_lycoris_from_weights  # noqa: PLC0415 (seconds of import)

    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    base.requires_grad_(False)
    network, _ = create_lycoris_from_weights(1.0, str(file), base)
    network.apply_to()
    for module in network.loras:
        module.bypass_mode = True
    return network


def evaluated(folder: Path, file: Path | None) -> float:
    """The held-out loss with an adapter, or without."""
    adapt = functools.partial(loaded, file) if file is not None else lambda base: nn.Module()
    return Held(folder, 0, TEXT, adapt).held_out()


def calibrate(folder: Path, file: Path, part: str, seed: int, out: Path) -> None:
    """What flows through an adapter on sequences of a part."""
    reader = Held(folder, seed, TEXT, functools.partial(loaded, file))
    reader.text = part_of(reader.text, part)
    network: Any = reader.network
    layers = {module.lora_name: module.org_module[0] for module in network.loras}
    with Gathering.on(layers, file) as metric:
        for index in range(CALIBRATION_BATCHES):
            reader.backward(index)
    metric.save(out)
