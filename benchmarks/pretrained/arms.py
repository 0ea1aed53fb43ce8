"""What is compared: an optimizer of `benchmarks.convergence.optimizers`, its learning rates, and how it is to be run.

A new arm is one line in `ARMS`, and leaves the finished runs of the others as they are.
"""

import dataclasses as dc
import math

from benchmarks.convergence.optimizers import OPTIMIZERS, Entry
from benchmarks.convergence.runs import CLIP, schedule

# From a thirtieth of AdamW's best to three times it, which was 1e-2 before this benchmark was there.
RATES = (3e-4, 1e-3, 2e-3, 5e-3, 1e-2, 3e-2)
RATE_FREE = (1.0,)


@dc.dataclass(frozen=True)
class Arm:
    """
    rates    : learning rates to try, rising
    constant : no warm-up and no decay
    clip     : norm of the gradients
    optimizer: its label, where it is not the arm's
    """

    rates: tuple[float, ...] = RATES
    constant: bool = False
    clip: float = CLIP
    optimizer: str = ""

    def factor(self, step: int, steps: int) -> float:
        """What the learning rate is multiplied by."""
        return 1.0 if self.constant else schedule(step, steps)


ARMS: dict[str, Arm] = {
    "torch-adamw": Arm(),
    "hina-cautious": Arm(),
    "hina-default": Arm(),
    "hina-rank-free": Arm(),
    "hina-normuon": Arm(),
    "normuon-bold": Arm(),
    "bnb-adamw8bit": Arm(),
    "po-normuon": Arm(),
    "camp-default": Arm(),
    "coptim-default": Arm(),
    "hina-auto": Arm(RATE_FREE),
    # Authors: Prodigy wants no schedule or a cosine; ProdigyPlus a constant rate or a cosine, and no clipping.
    "prodigy": Arm(RATE_FREE),
    "prodigy-constant": Arm(RATE_FREE, constant=True, optimizer="prodigy"),
    "prodigy-plus": Arm(RATE_FREE, constant=True, clip=math.inf),
    "prodigy-plus-cosine": Arm(RATE_FREE, clip=math.inf, optimizer="prodigy-plus"),
}
# Those that are run at every rank and alpha, with LoKr, for longer, and on the second text.
FINALISTS = ("torch-adamw", "hina-default", "hina-auto")
# The arm that has the rule for ranks and alphas built in, so that it keeps one rate; others have theirs multiplied.
RULED = {"hina-default": "hina-rank-free"}


def optimizer_of(arm: str) -> str:
    return ARMS[arm].optimizer or arm


def entry_of(arm: str) -> Entry:
    return OPTIMIZERS[optimizer_of(arm)]
