"""The workloads, by name. Both halves have every kind of model, so that a choice of the first can fail on the second.

Reference budgets are such that the loss is still falling at 1.4 times of them.
"""

from functools import partial

from . import classifier, diffusion, language
from .task import Workload


def _diffusion(half: int, algo: str, lr: float) -> Workload:
    make = partial(diffusion.EightAndNine, algo=algo)
    return Workload(half, 100, lr, algo, make, diffusion.identity)


def _language(half: int, algo: str, lr: float, **more) -> Workload:
    make = partial(language.SourceCode, algo=algo)
    return Workload(half, 200, lr, algo, make, language.identity, **more)


def _digits(half: int, lora: bool, lr: float) -> Workload:
    make = partial(classifier.TurnedDigits, lora=lora)
    return Workload(half, 400, lr, "lora" if lora else "full", make, classifier.identity)


WORKLOADS: dict[str, Workload] = {
    "digits-full": _digits(1, False, 1e-2),
    "characters-lora": _language(1, "lora", 2e-2),
    "diffusion-lora": _diffusion(1, "lora", 1.2e-2),
    "diffusion-lokr": _diffusion(1, "lokr", 1.5e-2),
    "digits-lora": _digits(2, True, 2e-2),
    "characters-lora-bf16": _language(2, "lora", 2e-2, bf16=True),
    "characters-lokr": _language(2, "lokr", 2e-2),
    "diffusion-loha": _diffusion(2, "loha", 1.5e-2),
}
