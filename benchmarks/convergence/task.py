"""What is trained in one run: parameters, batches that depend on (seed, step) only, and a held-out loss."""

import abc
import dataclasses as dc
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

Named = list[tuple[str, Tensor]]


def generator(*words: int) -> torch.Generator:
    """Independent streams for neighbouring words; nothing depends on what ran before."""
    word = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(word >> np.uint64(1)))


def digest(*parts: bytes | str) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part.encode() if isinstance(part, str) else part)
        whole.update(b"\0")
    return whole.hexdigest()[:12]


class Task(abc.ABC):
    """``named`` is what the optimizer gets; `backward` leaves the gradients in it."""

    named: Named

    @abc.abstractmethod
    def loss(self, step: int) -> Tensor: ...

    @abc.abstractmethod
    def held_out(self) -> float: ...

    def backward(self, step: int) -> float:
        for _, param in self.named:
            param.grad = None
        loss = self.loss(step)
        loss.backward()
        return loss.item()


class FullBf16(Task):
    """Weights and gradients that the optimizer sees are bf16, as with sd-scripts' full_bf16.

    Forward and backward stay fp32: a CPU without bf16 instructions takes ten times as long, and it is the optimizer
    that is compared.
    """

    def __init__(self, inner: Task):
        self.inner = inner
        self.named = [(name, p.detach().bfloat16().requires_grad_()) for name, p in inner.named]

    @torch.no_grad()
    def _show(self) -> None:
        for (_, param), (_, shadow) in zip(self.named, self.inner.named, strict=True):
            shadow.copy_(param)

    def loss(self, step: int) -> Tensor:
        self._show()
        return self.inner.loss(step)

    def backward(self, step: int) -> float:
        self._show()
        loss = self.inner.backward(step)
        for (_, param), (_, shadow) in zip(self.named, self.inner.named, strict=True):
            param.grad = None if shadow.grad is None else shadow.grad.bfloat16()
        return loss

    def held_out(self) -> float:
        self._show()
        return self.inner.held_out()


class Adapted(nn.Module):
    """A linear layer with a LoRA of scale 1; the names are those that `parameters.roles` knows."""

    def __init__(self, base: nn.Linear, rank: int, random: torch.Generator):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_down = nn.Linear(base.in_features, rank, bias=False)
        self.lora_up = nn.Linear(rank, base.out_features, bias=False)
        bound = base.in_features**-0.5  # kaiming_uniform_ with a = sqrt(5), as every LoRA does it
        with torch.no_grad():
            self.lora_down.weight.uniform_(-bound, bound, generator=random)
            self.lora_up.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.lora_up(self.lora_down(x))


def add_lora(model: nn.Module, rank: int, seed: int) -> Named:
    """Puts a LoRA on every linear layer of a frozen model; what is to be trained."""
    random = generator(seed, 7)
    model.requires_grad_(False)
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name, module in linear:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, Adapted(module, rank, random))
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


@dc.dataclass(frozen=True)
class Workload:
    """A fixed problem.

    half     : 1, where techniques are chosen, or 2, where the choice is confirmed
    steps    : the reference budget; the other budgets are multiples of it
    lr       : centre of the learning rates to try with an optimizer of Adam's step size
    kind     : "lora", "lokr", "loha" or "full": LoRA's own optimizers need its pairs
    make     : seed -> Task
    identity : digest of everything that decides its numbers: settings, data and base model
    """

    half: int
    steps: int
    lr: float
    kind: str
    make: Callable[[Path, int], Task]
    identity: Callable[[Path], str]
    bf16: bool = False

    def task(self, folder: Path, seed: int) -> Task:
        """``folder`` is where base models are kept."""
        task = self.make(folder, seed)
        return FullBf16(task) if self.bf16 else task

    def fingerprint(self, folder: Path) -> str:
        return digest(self.identity(folder), self.kind, str(self.bf16))


def pretrained(file: Path, model: nn.Module, loss: Callable[[int], Tensor], steps: int, lr: float) -> nn.Module:
    """Trains a base model once and keeps it in ``file``."""
    if not file.is_file():
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
        for step in range(steps):
            optimizer.zero_grad()
            loss(step).backward()
            optimizer.step()
            schedule.step()
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".new")
        torch.save(model.state_dict(), unfinished)
        unfinished.replace(file)
    model.load_state_dict(torch.load(file, weights_only=True))
    return model


def digest_of(model: nn.Module, *more: bytes | str) -> str:
    weights: Sequence[bytes] = [value.numpy().tobytes() for value in model.state_dict().values()]
    return digest(*weights, *more)
