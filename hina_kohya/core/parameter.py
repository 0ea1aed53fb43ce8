"""A parameter as a step needs it: one record, made when a plan is."""

import dataclasses as dc
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from hina_kohya.core import registry
from hina_kohya.core.chain import Chain, ordered
from hina_kohya.core.state.codec import Codec
from hina_kohya.core.technique import Technique
from hina_kohya.parameters.members import splits_lr
from hina_kohya.parameters.roles import Member

Ties = Sequence[Sequence[int]]  # of each parameter, the others that share its pooled number


@dc.dataclass(frozen=True)
class Parameter:
    """
    member: its name, role and partners
    group : number of its param group
    chain : the techniques that step it; empty where it is frozen and was never trained
    ties  : indices of the parameters that share its pooled number
    """

    tensor: Tensor
    member: Member
    group: int
    chain: Chain
    ties: Sequence[int]


def parameters_of(
    groups: Sequence[Mapping[str, Any]],
    members: Sequence[Member],
    ties: Ties,
    state: Mapping[Tensor, Mapping[str, Any]],
    codec: Codec,
) -> list[Parameter]:
    """Every parameter, in the order of the param groups; each gets the techniques that fit its role and shape."""
    result: list[Parameter] = []
    for number, (group, splits) in enumerate(zip(groups, splits_lr(groups, members), strict=True)):
        techniques = [registry.build(name, **options) for name, options in group["techniques"].items()]
        wanted = [codec.checked(each) for each in techniques if not (splits and each.splits_lr)]
        for param in group["params"]:
            member, tied = members[len(result)], ties[len(result)]
            is_idle = is_frozen(param) and not state.get(param)
            result.append(Parameter(param, member, number, () if is_idle else fitted(wanted, member), tied))
    return result


def fitted(techniques: Iterable[Technique], member: Member) -> Chain:
    """The chain of one parameter: techniques that fit it, less those that yield to another that fits it."""
    numel = math.prod(member.shape)
    if not numel:
        return ()
    fits = [fit for t in techniques if numel >= t.min_numel and (fit := t.fit(member)) is not None]
    present = {technique.name for technique in fits}
    return ordered(technique for technique in fits if present.isdisjoint(technique.yields_to))


def is_frozen(param: Tensor) -> bool:
    """Whether no gradient is there and none can come: the base model, in `HinaAdamW(model.named_parameters())`."""
    return param.grad is None and not param.requires_grad


def ties_of(members: Sequence[Member]) -> list[tuple[int, ...]]:
    """Partners and cofactors."""
    partners = (() if member.partner is None else (member.partner,) for member in members)
    return [tuple({*both, *member.cofactors}) for both, member in zip(partners, members, strict=True)]
