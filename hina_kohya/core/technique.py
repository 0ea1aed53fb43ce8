"""A technique: bounded hyperparameters and one pure, batched function."""

import dataclasses as dc
from collections.abc import Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor

from hina_kohya.core.hyper import check
from hina_kohya.core.signal import Pool, Signal

if TYPE_CHECKING:
    from hina_kohya.parameters.roles import Member


class Stage(IntEnum):
    """Where in the step a technique acts. The order is the order of the step; a chain has exactly one MOMENT."""

    RATE = 0  # decides the learning rate that all others see
    GRADIENT = 1  # raw gradient -> gradient
    TORQUE = 2  # changes what enters the momentum, or what leaves it, where the momentum is known
    MOMENT = 3  # gradient -> update
    UPDATE = 4  # update -> update
    STEP_SIZE = 5  # scales update or decay
    DECAY = 6  # shrinks the parameter, before the update is subtracted
    PARAMETER = 7  # corrects the parameter, after the update was subtracted


class Slot(IntEnum):
    """What a piece of state holds, which decides how it is stored and how it starts."""

    SIGNED = 1  # [m, n], any sign, behind the codec; starts at 0
    UNSIGNED = 2  # [m, n], never negative, behind the codec; starts at 0
    EXACT = 3  # whatever `slot_shape` says, uncompressed; starts at 0
    ANCHOR = 4  # [m, n] in the parameter's dtype, uncompressed; starts as the parameter
    FACTOR = 5  # whatever `slot_shape` says, never negative, behind the codec; starts at 0
    SUM = 7  # [m, n], any sign, of the whole run: rounded stochastically to bf16 under all codecs but fp32; starts at 0
    CODE = 6  # whatever `slot_shape` says, whole numbers in [0, 255], a byte each under every codec; starts at 0


State = dict[str, Tensor]
# Learning rates that an entry may move in a step, before what multiplies the learning rate. Adam's steps, below 7.3 of
# them at its usual betas, stay whole; a mask or Muon, which can put the step of many entries into one, is held to it.
REACH = 10.0


@dc.dataclass(frozen=True)
class Technique:
    """Base of all techniques. Subclasses are frozen dataclasses whose fields are `hyper(...)`."""

    name: ClassVar[str]
    stage: ClassVar[Stage]
    slots: ClassVar[Mapping[str, Slot]] = {}
    min_numel: ClassVar[int] = 1  # smaller tensors are left alone
    couples: ClassVar[Literal["", "partner", "cofactors"]] = ""  # whose `publish` becomes `Signal.others` [N, K, ...]
    pools: ClassVar[str] = ""  # its EXACT slot of K numbers a matrix that `pool` sees of all matrices together
    follows: ClassVar[bool] = False  # wants to see the step that was made, by `follow`
    reads_start: ClassVar[bool] = False  # wants `Member.starts_at_zero`, which is read from the parameters once
    pads: ClassVar[bool] = True  # single rows and columns of zeros may be appended to its matrices
    partner_shaped: ClassVar[bool] = False  # its state depends on the partner's shape
    splits_lr: ClassVar[bool] = False  # left out where the param groups already give partners different lrs
    yields_to: ClassVar[tuple[str, ...]] = ()  # techniques that displace it where they fit the same parameter
    betas: ClassVar[tuple[str, ...]] = ()  # its options that a group's `betas` set, in their order
    needs: ClassVar[str] = "a parameter of more than one element"  # what it fits, for those who ask why it fits none
    reads_product: ClassVar[bool] = False  # wants the signal's cofactor_rank, longest, rank, scale and alpha_factor
    decay_share: ClassVar[float] = 1.0  # of the weight decay that is asked for, where both factors of a product decay
    stretches: ClassVar[bool] = False  # may make an entry of the update too large; the chain holds it to `reach`

    def __post_init__(self):
        for field in dc.fields(self):  # JSON, TOML and command lines know no tuples, and a list has no hash
            if isinstance(value := getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(value))
        check(self, prefix=f"{self.name}.")

    @property
    def memory(self) -> float:
        """Largest decay of the averages that it keeps in SIGNED slots."""
        return getattr(self, self.betas[0]) if self.betas else 0.0

    def fit(self, member: "Member") -> "Technique | None":
        """The technique as it applies to one parameter: itself, a variant, or None where it does not apply."""
        return self

    def kept(self) -> Mapping[str, Slot]:
        """The slots this variant uses; `slots` names all that any variant may use."""
        return self.slots

    def partners(self, member: "Member") -> tuple[int, ...]:
        """Indices of the parameters whose `publish` it wants to see."""
        if self.couples == "cofactors":
            return member.cofactors
        return () if member.partner is None or not self.couples else (member.partner,)

    def slot_shape(self, name: str, m: int, n: int, partner: tuple[int, int] | None) -> tuple[int, int]:
        """Shape of a slot for one matrix [m, n]; an EXACT slot is one number unless a technique says otherwise."""
        return (1, 1) if self.slots[name] is Slot.EXACT else (m, n)

    def publish(self, param: Tensor) -> Tensor | None:
        """What the matrices [N, m, n] tell their partners at the start of a step, [N, ...]; None: nothing."""
        return None

    def pooler(self) -> "Technique":
        """The variant that pools for this one; those of one pooler are pooled together."""
        return self

    def pool(self, pool: Pool) -> Tensor:
        """What each matrix gets, [G, M], of the numbers of all before the step; in `Signal.others` as [N, 1, 1]."""
        raise TypeError(f"{self.name} pools nothing")

    def reach(self, step: Tensor) -> Tensor | float | None:
        """Stage MOMENT: how many learning rates an entry may move; None: any number."""
        return REACH

    def rate_factor(self, s: Signal) -> Tensor | float:
        """Stage MOMENT: what it multiplies the learning rate by, as STEP_SIZE techniques do; for `effective_lr`."""
        return 1.0

    def enter(self, s: Signal, momentum: Tensor, incoming: Tensor, state: State) -> Tensor:
        """Stage TORQUE: what becomes of ``incoming`` before it is averaged into ``momentum``."""
        return incoming

    def leave(self, s: Signal, momentum: Tensor, incoming: Tensor, weight: Tensor | float, state: State) -> Tensor:
        """Stage TORQUE: what the update is made of instead of ``momentum``, which ``incoming`` has entered by now.

        ``weight``, a number or float64 [N, 1, 1]: the MOMENT technique takes momentum / weight for the average.
        """
        return momentum

    def apply(self, s: Signal, state: State) -> Signal:
        """One step. Reads slots from ``state`` and puts their successors there; the tensors are never written into."""
        raise TypeError(f"{self.name} is a TORQUE technique: it acts through `enter` and `leave`")

    def follow(self, s: Signal, state: State) -> None:
        """What it keeps of the step that was made, ``s.update``; writes successors into ``state`` as `apply` does."""
        raise TypeError(f"{self.name} follows nothing")
