"""What is trained: an adapter of some kind, rank and alpha on every linear layer of the model, to one of the texts."""

import copy
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.convergence.task import Task, Workload, digest, generator
from hina_kohya.trainers.tags import attach_scales

from . import model, texts

BATCH, LENGTH = 4, 128
HELD_OUT, CHUNK = 64, 8  # sequences in all, sequences at a time
LOKR_FACTOR = 8
RANKS = (2, 8, 32, 128)
TEXT, OTHER_TEXT = "english", "python"  # the first has more to learn: 40 steps of AdamW gain twice as much


def adapter(base: nn.Module, algo: str, rank: int, alpha: float, seed: int) -> nn.Module:
    """A LyCORIS network, applied, with fp32 weights."""
    from lycoris import LycorisNetwork, create_lycoris  # noqa: PLC0415 (seconds of import)

    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    base.requires_grad_(False)
    LycorisNetwork.apply_preset({"target_module": ["LlamaDecoderLayer"], "target_name": []})
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"linear_dim": rank, "linear_alpha": alpha, "algo": algo, "bypass_mode": True}
    if algo == "lokr":
        settings["factor"] = LOKR_FACTOR
    network = create_lycoris(base, 1.0, **settings)
    network.apply_to()
    return network


class Reader(Task):
    """Under autocast, as the trainers run it: products in bf16, adapter weights and their gradients in fp32. Of alpha
    optimizers know what the hooks on the trainers say.

    adapt    : puts an adapter on the model, and is its network
    sequences: of the held-out ones, how many are evaluated
    """

    sequences = HELD_OUT

    def __init__(self, folder: Path, seed: int, text: str, adapt: Callable[[nn.Module], nn.Module]):
        self.model, self.seed = copy.deepcopy(model.base(folder)), seed
        self.text, self.held_out_text = texts.tokens(folder, text)
        self.network = adapt(self.model)
        attach_scales(self.network)
        self.named = [(name, p) for name, p in self.network.named_parameters() if p.requires_grad]

    def _loss(self, text: Tensor) -> Tensor:
        """Cross-entropy of the next token. text: [B, LENGTH + 1]"""
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(input_ids=text[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), text[:, 1:].flatten())

    def loss(self, step: int) -> Tensor:
        return self._loss(cut(self.text, BATCH, generator(self.seed, 3, step)))

    def held_out(self) -> float:
        return self.mean_loss(cut(self.held_out_text, HELD_OUT, generator(0, 2))[: self.sequences])

    @torch.no_grad()
    def mean_loss(self, sequences: Tensor) -> float:
        """sequences: [N, LENGTH + 1]"""
        return sum(self._loss(some).item() * len(some) for some in sequences.split(CHUNK)) / len(sequences)


class NextToken(Reader):
    def __init__(self, folder: Path, seed: int, text: str, algo: str, rank: int, alpha: float):
        super().__init__(folder, seed, text, lambda base: adapter(base, algo, rank, alpha, seed))


def cut(text: Tensor, count: int, random: torch.Generator) -> Tensor:
    """Sequences from anywhere in a text: [count, LENGTH + 1]"""
    starts = torch.randint(len(text) - LENGTH - 1, (count, 1), generator=random)
    return text[starts + torch.arange(LENGTH + 1)]


def _identity(folder: Path, text: str, algo: str, rank: int, alpha: float) -> str:
    data = [part.numpy().tobytes() for part in texts.tokens(folder, text)]
    settings = (BATCH, LENGTH, HELD_OUT, LOKR_FACTOR, algo, rank, alpha)
    return digest(model.identity(), *data, repr(settings))


def name_of(text: str, algo: str, rank: int, alpha: float) -> str:
    return f"{text}-{algo}-r{rank}-a{alpha:g}"


def _world(text: str, algo: str, rank: int, alpha: float) -> dict[str, Workload]:
    settings = {"text": text, "algo": algo, "rank": rank, "alpha": alpha}
    made = Workload(2, 40, 1e-2, algo, partial(NextToken, **settings), partial(_identity, **settings))
    return {name_of(text, algo, rank, alpha): made}


def alphas(rank: int) -> list[float]:
    """Of a rank: itself, a half of it, and one."""
    return sorted({float(rank), rank / 2, 1.0}, reverse=True)


WORLDS: dict[str, Workload] = {}
for _rank in RANKS:
    for _alpha in alphas(_rank):
        WORLDS |= _world(TEXT, "lora", _rank, _alpha)
WORLDS |= _world(TEXT, "lokr", 8, 8.0) | _world(OTHER_TEXT, "lora", 8, 8.0)
