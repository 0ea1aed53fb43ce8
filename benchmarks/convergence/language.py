"""Characters: a small transformer that has read Python's help topics is adapted to Python's own source code."""

import copy
import inspect
import logging
from functools import cache
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .task import Named, Task, add_lora, digest, digest_of, generator, pretrained

BATCH, LENGTH, WIDTH, HEADS, LAYERS = 12, 48, 64, 4, 2
RANK, LOKR_RANK = 8, 4
PRETRAINING = 600
# Trained on, held out; all are plain Python in every release.
MODULES = ("argparse configparser optparse dataclasses doctest inspect pdb tarfile", "shutil typing")
SYMBOLS = "\n" + "".join(map(chr, range(32, 127)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.to_qkv, self.to_out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.to_qkv(self.norm1(x)).view(b, n, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.to_out(mixed.transpose(1, 2).reshape(b, n, WIDTH))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class CharacterModel(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.symbols, self.places = nn.Embedding(len(SYMBOLS), WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, len(SYMBOLS))

    def loss(self, text: Tensor) -> Tensor:
        """Cross-entropy of the next symbol. text: [B, LENGTH + 1]"""
        x = self.symbols(text[:, :-1]) + self.places.weight
        return F.cross_entropy(self.head(self.norm(self.blocks(x))).flatten(0, 1), text[:, 1:].flatten())


def _encode(text: str) -> Tensor:
    number = {symbol: i for i, symbol in enumerate(SYMBOLS)}
    return torch.tensor([number[symbol] for symbol in text if symbol in number])


def help_pages() -> list[str]:
    """Python's own help topics, in the order of their names."""
    from pydoc_data.topics import topics as pages  # noqa: PLC0415

    return [pages[name] for name in sorted(pages)]


def source_of(module: str) -> str:
    return inspect.getsource(import_module(module))


@cache
def topics() -> Tensor:
    return _encode("\n".join(help_pages()))


@cache
def sources() -> tuple[Tensor, Tensor]:
    """(train, held out): whole modules, so that no function is in both."""
    one, two = ("\n".join(source_of(name) for name in names.split()) for names in MODULES)
    return _encode(one), _encode(two)


def _cut(text: Tensor, count: int, random: torch.Generator) -> Tensor:
    starts = torch.randint(len(text) - LENGTH - 1, (count, 1), generator=random)
    return text[starts + torch.arange(LENGTH + 1)]


@cache
def base(folder: Path) -> CharacterModel:
    model = CharacterModel()
    pretrained(
        folder / f"characters-{digest(topics().numpy().tobytes())}.pt",
        model,
        lambda step: model.loss(_cut(topics(), BATCH, generator(0, 1, step))),
        PRETRAINING,
        3e-3,
    )
    return model


def _add_lokr(model: CharacterModel, seed: int) -> Named:
    from lycoris import LycorisNetwork, create_lycoris  # noqa: PLC0415

    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    model.requires_grad_(False)
    LycorisNetwork.apply_preset({"target_module": ["Block"], "target_name": []})
    torch.manual_seed(seed)
    network = create_lycoris(model, 1.0, linear_dim=LOKR_RANK, linear_alpha=LOKR_RANK, algo="lokr", factor=8)
    network.apply_to()
    return [(name, p) for name, p in network.named_parameters() if p.requires_grad]


class SourceCode(Task):
    def __init__(self, folder: Path, seed: int, algo: str = "lora"):
        self.model, self.seed = copy.deepcopy(base(folder)), seed
        self.named = _add_lokr(self.model, seed) if algo == "lokr" else add_lora(self.model, RANK, seed)

    def loss(self, step: int) -> Tensor:
        return self.model.loss(_cut(sources()[0], BATCH, generator(self.seed, 3, step)))

    @torch.no_grad()
    def held_out(self) -> float:
        return self.model.loss(_cut(sources()[1], 512, generator(0, 2))).item()


def identity(folder: Path) -> str:
    text = [part.numpy().tobytes() for part in sources()]
    return digest_of(base(folder), *text, repr((BATCH, LENGTH, RANK, LOKR_RANK)))
