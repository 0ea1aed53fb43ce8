"""The embedded diffusion model learns the digits 8 and 9 by a LoRA, which is then made smaller.

Three sets of images that share none: training, calibration (both of the training part), and the held-out test part.
"""

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.adlrns.adapter import HELD_OUT as DIGITS
from benchmarks.adlrns.adapter import fresh_model, held_out
from benchmarks.convergence import diffusion
from benchmarks.convergence.runs import CLIP, schedule
from hina_kohya.loras.gathering import Gathering

TITLE: str = "The embedded diffusion model"
STEPS: int = 600
BATCH = 8
TRAINED_ON = 0.8  # of the images of each digit; the others calibrate
CALIBRATION_BATCHES = 24
WORDS = ["algo=lora", "preset=attn-mlp", "bypass_mode=True"]
RATES, AT_RANK = (6e-3, 3e-3), 16
ABOUT = f"""
The frozen embedded diffusion model learns the digits 8 and 9 by a LoRA on its U-Net ({{steps}} steps of {BATCH} images,
AdamW, a cosine, scale 1). Calibration: {BATCH * CALIBRATION_BATCHES} samples. The learning rate is the best of
{" and ".join(f"{rate:g}" for rate in RATES)}, times sqrt({AT_RANK} / rank), for the large LoRA, on a seed of its own.
The small one is trained at the best rate of its own rank where that is a large one's, too, and else at the large one's.
"""

identity = diffusion.identity


def missing() -> str | None:
    """Why it cannot run here, if it cannot."""
    return None


def rates(rank: int) -> tuple[float, ...]:
    """To try with a large LoRA."""
    return tuple(rate * math.sqrt(AT_RANK / rank) for rate in RATES)


def seconds(kind: str, steps: int) -> float:
    """A guess at what a run takes."""
    return 10.0 + 0.07 * steps if kind == "train" else 6.0


def images(part: str, seed: int) -> Any:
    """`training` or `calibration`; the seed decides order, noise and timesteps."""
    from hina_kohya.demo.data import DigitImages  # noqa: PLC0415

    data = DigitImages(list(DIGITS), seed)
    kept = []
    for digit in DIGITS:
        rows = (data.labels == digit).nonzero().flatten()
        cut = int(TRAINED_ON * len(rows))
        kept.append(rows[:cut] if part == "training" else rows[cut:])
    data.pixels, data.labels = data.pixels[torch.cat(kept)], data.labels[torch.cat(kept)]
    return data


def adapted(file: Path | None = None, rank: int = 1) -> tuple[Any, Any]:
    """(the model with an adapter on it, the adapter): a new one, whose scale is 1, or that of a file."""
    from lycoris.config import PRESET  # noqa: PLC0415 (seconds of import)
    from lycoris.kohya import LycorisNetworkKohya  # noqa: PLC0415

    from hina_kohya.demo import network  # noqa: PLC0415
    from hina_kohya.demo.settings import Settings  # noqa: PLC0415

    model = fresh_model()
    how: dict[str, Any] = {"network_dim": rank, "network_alpha": rank, "network_args": WORDS}
    if file is not None:
        LycorisNetworkKohya.apply_preset(PRESET["attn-mlp"])  # files do not say it
        how = {"network_weights": str(file), "dim_from_weights": True}
    return model, network.create(Settings(network_train_unet_only=True, **how), model)


def train(folder: Path, rank: int, lr: float, steps: int, seed: int, file: Path | None) -> float:
    """The held-out loss, infinite where it diverges; the adapter goes to `file`."""
    torch.manual_seed(seed)
    model, network = adapted(rank=rank)
    network.train()
    params, data = [p for p in network.parameters() if p.requires_grad], images("training", seed)
    optimizer = torch.optim.AdamW(params, lr, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, steps))
    for step in range(steps):
        loss = model.loss(data.batch(step, BATCH))
        if not math.isfinite(loss.item()):
            return math.inf
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: tensor.contiguous() for key, tensor in network.state_dict().items()}, file)
    network.eval()
    return _loss(model)


def evaluated(folder: Path, file: Path | None) -> float:
    """The held-out loss with an adapter, or without."""
    if file is None:
        return _loss(fresh_model())
    model, network = adapted(file)
    network.eval()
    return _loss(model)


@torch.no_grad()
def _loss(model: Any) -> float:
    return model.loss(held_out()).item()


def calibrate(folder: Path, file: Path, part: str, seed: int, out: Path) -> None:
    """What flows through an adapter on images of a part."""
    model, network = adapted(file)
    network.train()
    data = images(part, seed)
    with Gathering(model.unet, file) as metric:
        for index in range(CALIBRATION_BATCHES):
            model.loss(data.batch(index, BATCH)).backward()
    metric.save(out)
