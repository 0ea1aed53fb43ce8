"""Parameter names -> roles, pairs, Kronecker groups. Pure Python: no torch, no tensor is looked at.

A role is decided by the exact ending of a name after its module (see `role_table`), never by a substring. Where PEFT
puts an adapter's name into an ending, any one part may stand, since an adapter may have any name without a dot. What
one name cannot tell (full or (IA)3, is there a Tucker core, who is the partner) is decided by `resolve`: it sees all.

**Shapes** a pair is accepted only if B [m, r] and A [r, n] multiply in the matrix view [out, in*kh*kw].
"""

from __future__ import annotations

import dataclasses as dc
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from hina_kohya.parameters.role_table import (
    BOFT,
    DISTINCT,
    FULL,
    GENERIC,
    IA3,
    OFT,
    PEFT,
    PROCESSOR,
    REGULAR,
    Kind,
    Role,
)

__all__ = ["REGULAR", "Kind", "Member", "Role", "identify", "resolve", "summary", "summary_line"]

Shape = tuple[int, ...]

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module"}  # torch.compile and FSDP put these anywhere
_LONGEST = 3  # parts of the longest ending, `lora_down.#.weight`
_KOHYA = re.compile(r"(lora_unet|lora_te\d*|lycoris)_.+")  # module names of LyCORIS, dots flattened to underscores
_PROCESSOR = re.compile(r".+_lora\d?")


@dc.dataclass(frozen=True)
class Member:
    """One parameter among all that the optimizer holds; indices count over all param groups.

    partner      : W = B A with this one; None where there is none, or where a core tensor stands between
    cofactors    : for LoKr, all the other factors of the module, ordered by role name
    cofactor_rank: product of the inner ranks; a step d of this factor changes W by about
                   sqrt(cofactor_rank) * RMS(d) * prod(RMS(cofactor))
    adapter      : what PEFT calls the adapter; "" in files and elsewhere. Two adapters of one module share nothing
    grows        : of a pair, the factor that starts at zero; B where neither or both do
    outer, rank  : of a pair, the shape (m, n) of W = B A, and what its factors share; (0, 0) and 0 elsewhere
    scale        : what the module multiplies W by, alpha / rank; None where nobody said it
    starts_at_zero: every element was zero before the first step; known where a technique asks for it
    """

    name: str | None
    module: str
    role: Role
    shape: Shape
    partner: int | None = None
    cofactors: tuple[int, ...] = ()
    cofactor_rank: int = 1
    adapter: str = ""
    grows: bool = False
    outer: tuple[int, int] = (0, 0)
    rank: int = 0
    scale: float | None = None
    starts_at_zero: bool = False


class _Reading(NamedTuple):
    """What one name says; `slot` is the place in a list, or ""."""

    module: str
    role: Role
    slot: str = ""
    adapter: str = ""


def identify(name: str, shape: Shape = ()) -> tuple[str, Role]:
    """Module and role of one name; unknown names are (name, REGULAR). A shape tells (IA)3 from full, BOFT from OFT."""
    reading = _read(name)
    return reading.module, _by_shape(reading.role, shape)


def resolve(names: Sequence[str | None], shapes: Sequence[Shape]) -> list[Member]:
    """One `Member` per parameter in the order given. A role that occurs twice in a module is never paired."""
    shapes = [tuple(shape) for shape in shapes]
    readings = [_Reading("", REGULAR) if name is None else _read(name) for name in names]
    found = [
        Member(name, reading.module, _by_shape(reading.role, shape), shape, adapter=reading.adapter)
        for name, reading, shape in zip(names, readings, shapes, strict=True)
    ]
    modules: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, member in enumerate(found):
        if member.role is not REGULAR:
            modules[member.module, member.adapter].append(i)
    for indices in modules.values():
        for i, role in zip(indices, _in_company([found[i].role for i in indices]), strict=True):
            found[i] = dc.replace(found[i], role=role)
        _pair(found, indices, [readings[i].slot for i in indices])
        _join_kronecker(found, indices)
    return found


def with_products(members: Sequence[Member]) -> list[Member]:
    """Each member of a pair with what it knows of its product: `grows`, `outer`, `rank`."""
    return [member if member.partner is None else _with_product(member, members[member.partner]) for member in members]


def _with_product(member: Member, partner: Member) -> Member:
    up, down = (member, partner) if member.role.side == "B" else (partner, member)
    starts_at_zero = member.role.zero_init, partner.role.zero_init
    grows = member.role.side == "B" if starts_at_zero[0] == starts_at_zero[1] else starts_at_zero[0]
    outer = up.shape[0], math.prod(down.shape[1:])
    return dc.replace(member, grows=grows, outer=outer, rank=down.shape[0])


def _read(name: str) -> _Reading:
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while parts and parts[0] == "module":  # DistributedDataParallel
        parts.pop(0)
    of_peft = parts[:2] == ["base_model", "model"]
    for length in range(min(_LONGEST, len(parts) - 1), 0, -1):
        head, tail = parts[:-length], parts[-length:]
        module, numbered = ".".join(head), ".".join("#" if part.isdecimal() else part for part in tail)
        if role := _by_ending(numbered, head[-1], of_peft):
            return _Reading(module, role, next((part for part in tail if part.isdecimal()), ""))
        if length > 1 and (role := PEFT.get(".".join((tail[0], *tail[2:])))):
            return _Reading(module, role, adapter=tail[1])
    return _Reading(name, REGULAR)


def _by_ending(ending: str, module: str, of_peft: bool) -> Role | None:
    """The role that an ending has after the last part of the module's name, adapter names aside."""
    role = (PEFT.get(ending) if of_peft else None) or DISTINCT.get(ending) or PEFT.get(ending)
    if role is None and _KOHYA.fullmatch(module):
        role = GENERIC.get(ending)
    if role is None and _PROCESSOR.fullmatch(module):
        role = PROCESSOR.get(ending)
    return role


def _by_shape(role: Role, shape: Shape) -> Role:
    if role is FULL and (len(shape) == 1 or (len(shape) > 2 and shape[0] == math.prod(shape[2:]) == 1)):
        return IA3  # [n] for a linear layer, [1, n, 1, 1] for a convolution
    return BOFT if role is OFT and len(shape) == 4 else role


def _in_company(roles: list[Role]) -> list[Role]:
    """Roles of one module, corrected by each other's presence."""
    if any(role.name == "full_bias" for role in roles):  # (IA)3 has no bias: a 1x1 convolution with one output
        roles = [FULL if role is IA3 else role for role in roles]
    algos = {role.algo for role in roles} - {""}
    if len(algos) == 1:  # whose dora_scale, scalar or rescale it is
        roles = [role if role.algo else dc.replace(role, algo=min(algos)) for role in roles]
    if any(role.name == "scalar" for role in roles):
        roles = [dc.replace(role, zero_init=False) if role.kind is Kind.FACTOR else role for role in roles]
    return roles


def _pair(found: list[Member], indices: list[int], slots: list[str]) -> None:
    places = [(slot, found[i].role.name) for i, slot in zip(indices, slots, strict=True)]
    count = Counter(places)
    at = {place: i for i, place in zip(indices, places, strict=True) if count[place] == 1}
    for (slot, _), i in at.items():
        role = found[i].role
        other = at.get((slot, role.partner)) if role.partner else None
        if other is None or (slot, role.mid) in count:
            continue
        up, down = (i, other) if role.side == "B" else (other, i)
        if math.prod(found[up].shape[1:]) == found[down].shape[0]:
            found[i] = dc.replace(found[i], partner=other)


def _join_kronecker(found: list[Member], indices: list[int]) -> None:
    """Give every LoKr factor its cofactors, if the module's two sides are complete and nothing is there twice."""
    at = {found[i].role.name: i for i in indices if found[i].role.kronecker}
    if len(at) < sum(bool(found[i].role.kronecker) for i in indices):
        return
    ranks = [_inner_rank(found, at, side) for side in ("lokr_w1", "lokr_w2")]
    if 0 in ranks:
        return
    order = [at[name] for name in sorted(at)]
    for i in order:
        others = tuple(j for j in order if j != i)
        found[i] = dc.replace(found[i], cofactors=others, cofactor_rank=math.prod(ranks))


def _inner_rank(found: list[Member], at: dict[str, int], side: str) -> int:
    """Rank-1 terms that one side sums: 1 if whole, r if factored, r*r with a Tucker core, 0 if a part is missing."""
    up, down, core = at.get(f"{side}_a"), at.get(f"{side}_b"), at.get(side.replace("w", "t"))
    if side in at:
        return int(up is None and down is None)
    if up is None or down is None:
        return 0
    if core is not None:
        return math.prod(found[core].shape[:2])
    return found[down].shape[0] if found[up].partner == down else 0


def summary(members: Iterable[Member]) -> dict[str, Any]:
    """Counts of parameter tensors, modules and pairs; JSON-ready, every key always there.

    `pairs` are direct products W = B A, so LoHa has two a module. `lora_stats` covers every A and B outside LoKr.
    """
    members = list(members)
    roles = Counter(m.role.name for m in members)
    regular = sum(m.role.kind is Kind.REGULAR and m.name is not None for m in members)
    unnamed = sum(m.name is None for m in members)
    algos: dict[str, list[Member]] = defaultdict(list)
    for m in members:
        if m.role.kind is not Kind.REGULAR:
            algos[m.role.algo or "unknown"].append(m)
    low_rank = [m for m in members if m.role.side and m.role.algo != "lokr"]
    lokr, norm = algos.get("lokr", []), algos.get("norm", [])
    weights, biases = ({m.module for m in norm if m.role.name == name} for name in ("norm_weight", "norm_bias"))
    return {
        "named": len(members) - unnamed,
        "unnamed": unnamed,
        "regular": regular,
        "by_role": dict(sorted(roles.items())),
        "by_algo": {
            algo: {"modules": _modules(ms), "params": len(ms), "pairs": _pairs(ms)}
            for algo, ms in sorted(algos.items())
        },
        "lora_stats": {
            "lora_a_params": sum(m.role.side == "A" for m in low_rank),
            "lora_b_params": sum(m.role.side == "B" for m in low_rank),
            "lora_pairs": _pairs(low_rank),
        },
        "lokr_stats": {
            "lokr_w1_params": sum(m.role.kronecker == "w1" for m in lokr),
            "lokr_w2_params": sum(m.role.kronecker == "w2" for m in lokr),
            "lokr_pairs": _modules(m for m in lokr if m.cofactors),
            "lokr_groups": _modules(lokr),
            "w_norm_params": roles["norm_weight"],
            "b_norm_params": roles["norm_bias"],
            "norm_pairs": len(weights & biases),
        },
    }


def summary_line(members: Iterable[Member]) -> str:
    """What was found and what was left alone, for the log."""
    counts = summary(members)
    parts = [f"{counts['named']} parameters named"]
    for algo, found in counts["by_algo"].items():
        part = f"{algo} {found['modules']} modules"
        if algo == "lokr":
            part += f", {counts['lokr_stats']['lokr_pairs']} Kronecker pairs"
        if found["pairs"]:
            part += f", {found['pairs']} pairs"
        parts.append(part)
    return "hina-kohya: " + "; ".join([*parts, f"{counts['regular']} regular, {counts['unnamed']} unnamed"])


def _modules(members: Iterable[Member]) -> int:
    """A module with two adapters counts twice."""
    return len({(member.module, member.adapter) for member in members})


def _pairs(members: Iterable[Member]) -> int:
    return sum(m.partner is not None and m.role.side == "A" for m in members)
