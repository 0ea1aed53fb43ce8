"""The embedded text-to-image model learns the digits 8 and 9 with an adapter made by LyCORIS."""

import copy
import dataclasses as dc
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from .task import Task, digest, generator

BATCH, RANK, HELD_OUT = 8, 4, 3  # HELD_OUT: noise levels an image
NETWORK_ARGS = {"lora": ["algo=lora"], "lokr": ["algo=lokr", "factor=8"], "loha": ["algo=loha"]}


@cache
def _base():
    import transformers  # noqa: PLC0415
    from diffusers.utils import logging  # noqa: PLC0415

    from hina_kohya.demo.model import DigitModel  # noqa: PLC0415

    transformers.logging.set_verbosity_error()
    logging.set_verbosity_error()
    return DigitModel.load().freeze()


@cache
def _held_out():
    """The test part of the digits 8 and 9, each at stratified noise levels with fixed noise."""
    from hina_kohya.demo.data import Batch, caption, load_digits  # noqa: PLC0415

    _, _, images, labels = map(torch.from_numpy, load_digits())
    rows = torch.isin(labels, torch.tensor([8, 9])).nonzero().flatten().repeat(HELD_OUT)
    pixels, random = images[rows].unsqueeze(1), generator(0, 2)
    places = (torch.randperm(len(rows), generator=random) + torch.rand(len(rows), generator=random)) / len(rows)
    noise = torch.randn(pixels.shape, generator=random)
    return Batch(pixels, noise, (places * 1000).long(), [caption(int(label)) for label in labels[rows]])


class EightAndNine(Task):
    def __init__(self, folder: Path, seed: int, algo: str):
        from hina_kohya.demo import network  # noqa: PLC0415
        from hina_kohya.demo.data import DigitImages  # noqa: PLC0415
        from hina_kohya.demo.settings import Settings  # noqa: PLC0415

        self.model = dc.replace(_base(), unet=copy.deepcopy(_base().unet))
        settings = Settings(
            network_dim=RANK,
            network_alpha=RANK,
            network_args=[*NETWORK_ARGS[algo], "preset=attn-mlp"],
            network_train_unet_only=True,
        )
        torch.manual_seed(seed)
        self.network = network.create(settings, self.model).train()
        self.named = [(name, p) for name, p in self.network.named_parameters() if p.requires_grad]
        self.data = DigitImages([8, 9], seed)

    def loss(self, step: int) -> Tensor:
        return self.model.loss(self.data.batch(step, BATCH))

    @torch.no_grad()
    def held_out(self) -> float:
        self.network.eval()
        result = self.model.loss(_held_out()).item()
        self.network.train()
        return result


def identity(folder: Path) -> str:
    from hina_kohya.demo.settings import BASE_MODEL  # noqa: PLC0415

    weights = [file.read_bytes() for file in sorted(BASE_MODEL.rglob("*.safetensors"))]
    return digest(*weights, repr((BATCH, RANK, HELD_OUT, NETWORK_ARGS)))
