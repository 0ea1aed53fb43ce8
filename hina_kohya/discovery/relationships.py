"""Relationships over a run: when `search` looks, what is kept of it, and what it makes of nameless parameters."""

import dataclasses as dc
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hina_kohya.discovery.legs import Grads, Leg, Params, residuals
from hina_kohya.discovery.match import SIGHT
from hina_kohya.discovery.search import Relationship, discover, observe, roots, units_of
from hina_kohya.parameters.role_table import Kind
from hina_kohya.parameters.roles import Member

logger = logging.getLogger("hina_kohya")

EARLY = (2, 4)  # steps of the first looks; at the first step one factor of each product is zero
BEFORE = 2  # steps before a look whose <p, grad p> is kept for it
PATIENCE = 3  # looks in a row without it, while both had something to say, after which a relationship is forgotten


class Relationships:
    """What was found so far, and what the next look wants. Everything here is in a checkpoint.

    found: each relationship, and the number of looks since it was last seen
    denied: named pairs whose gradients contradict their names; unexpected: products of different modules by name
    """

    def __init__(self, interval: int, threshold: float):
        self.interval, self.threshold = interval, threshold
        self.steps = 0
        self.looks: list[Tensor] = []
        self.zero: Tensor | None = None  # bool [N], on the device: all zeros at the first step
        self.found: dict[tuple[int, ...], tuple[Relationship, int]] = {}
        self.named_pairs = self.confirmed = 0
        self.denied: list[tuple[int, int]] = []
        self.unexpected: list[tuple[int, int]] = []
        self.told = False  # that names and gradients disagree

    def relationships(self) -> list[Relationship]:
        return [relationship for relationship, _ in self.found.values()]

    def looks_at(self, step: int) -> bool:
        return step in EARLY or (step >= EARLY[0] and step % self.interval == 0)

    @torch.no_grad()
    def before_step(self, params: Params, members: Callable[[], Sequence[Member]]) -> bool:
        """Looks if it is time; true if what is known changed. ``members`` gives what the names say."""
        if all(param.grad is None for param in params):
            return False
        self.steps += 1
        self._note_zeros(params)
        look = self.looks_at(self.steps)
        keep = any(self.looks_at(self.steps + ahead) for ahead in range(1, BEFORE + 1))
        if not (look or keep):
            return False
        grads = [p.grad if p.grad is not None and p.grad.layout is torch.strided else None for p in params]
        looks = [each for each in self.looks if len(each) == len(params)]  # a group may have been added
        observed = observe(params, grads)
        changed = look and self._look(params, grads, looks, observed, members())
        self.looks = [*looks, observed][-BEFORE:] if keep else []
        return changed

    def _note_zeros(self, params: Params) -> None:
        known = 0 if self.zero is None else len(self.zero)
        if known < len(params):
            # A one for packed integers: a frozen 4-bit weight has no gradient to compare anyway.
            floats = [p if p.is_floating_point() else torch.ones(1, device=p.device) for p in params[known:]]
            norms = torch._foreach_norm(floats)
            fresh = torch.stack([norm.to(norms[0]) for norm in norms]) == 0
            self.zero = fresh if self.zero is None else torch.cat([self.zero, fresh.to(self.zero.device)])

    def _look(
        self, params: Params, grads: Grads, looks: Sequence[Tensor], observed: Tensor, members: Sequence[Member]
    ) -> bool:
        size = observed.view(len(params), -1)[:, -1]
        spoke = (size.isfinite() & (size != 0)).tolist()
        now = discover(params, grads, looks, self.threshold)
        seen = {_key(r): (r, 0) for r in now}
        legs = {leg for r in now for leg in _legs(r)}
        before = set(map(_identity, self.relationships()))
        kept = {}
        for key, (r, before_now) in self.found.items():
            missed = before_now + (spoke[r.param] and spoke[r.partner])
            if missed < PATIENCE and legs.isdisjoint(_legs(r)):
                kept[key] = r, missed
        self.found = dict(sorted({**kept, **seen}.items()))
        self._check(params, grads, members, now)
        changed = set(map(_identity, self.relationships())) != before
        if changed:
            kinds = Counter(r.interaction_type for r in self.relationships())
            told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none"
            logger.info("relationships found at step %d: %s", self.steps, told)
        return changed

    def _check(self, params: Params, grads: Grads, members: Sequence[Member], now: Iterable[Relationship]) -> None:
        """Names against gradients: the identity of every named pair, and products that no name knows."""
        pairs = [(i, m.partner) for i, m in enumerate(members) if m.partner is not None and m.role.side == "B"]
        self.named_pairs = len(pairs)
        testable = [
            (b, a)
            for b, a in pairs
            if all(grads[end] is not None and params[end].dim() > 1 for end in (b, a))
            and params[b].shape[1] == params[a].shape[0]
        ]
        legs = [(Leg(b, 1), Leg(a, 0)) for b, a in testable]
        # Both are 0 / 0 where a factor is zero: neither yes nor no. What rounding explains is no denial.
        rounded, strict = residuals(legs, params, grads).T.tolist()
        found = {frozenset((r.param, r.partner)) for r in now}
        agree = [value <= SIGHT or frozenset(pair) in found for pair, value in zip(testable, strict, strict=True)]
        self.confirmed = sum(agree)
        self.denied = [
            pair for pair, yes, value in zip(testable, agree, rounded, strict=True) if not yes and value > SIGHT
        ]
        self.unexpected = [
            (r.param, r.partner)
            for r in now
            if r.interaction_type == "product"
            and not (_silent(members[r.param]) or _silent(members[r.partner]))
            and members[r.param].module != members[r.partner].module
        ]
        if (self.denied or self.unexpected) and not self.told:
            self.told = True
            first = members[(self.denied or self.unexpected)[0][0]].name
            logger.warning(
                "names and gradients disagree: %d named pairs are no products, %d products are of different modules "
                "(%s first); names win",
                len(self.denied), len(self.unexpected), first,
            )  # fmt: skip

    def ties(self, count: int) -> list[tuple[int, ...]]:
        tied: dict[int, set[int]] = defaultdict(set)
        for r in self.relationships():
            tied[r.param].add(r.partner)
            tied[r.partner].add(r.param)
        return [tuple(tied[index]) for index in range(count)]

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "looks": list(self.looks),
            "zero": self.zero,
            "found": [[*dc.astuple(relationship), missed] for relationship, missed in self.found.values()],
            "named_pairs": self.named_pairs,
            "confirmed": self.confirmed,
            "denied": [list(pair) for pair in self.denied],
            "unexpected": [list(pair) for pair in self.unexpected],
        }

    def load(self, saved: Mapping[str, Any], places: Sequence[int], device: torch.device) -> None:
        """``places``: where each of this run's parameters was in the saved one."""
        now = {place: index for index, place in enumerate(places)}
        kept = [x for x in (saved["zero"], *saved["looks"]) if x is not None and len(x) > max(places)]
        moved = [x.to(device)[list(places)] for x in kept]
        self.zero = moved[0] if moved and moved[0].dtype == torch.bool else None
        self.looks = [look for look in moved if look.dtype != torch.bool]
        self.steps, self.found = saved["steps"], {}
        for *fields, missed in saved["found"]:
            r = Relationship(*fields)
            if r.param in now and r.partner in now:
                bias = None if r.bias is None else now.get(r.bias)
                r = dc.replace(r, param=now[r.param], partner=now[r.partner], bias=bias)
                self.found[_key(r)] = r, missed
        self.found = dict(sorted(self.found.items()))
        self.named_pairs, self.confirmed = saved["named_pairs"], saved["confirmed"]
        self.denied, self.unexpected = (
            [(now[b], now[a]) for b, a in saved[key] if b in now and a in now] for key in ("denied", "unexpected")
        )

    def joined(self, members: Sequence[Member]) -> list[Member]:
        zero = [] if self.zero is None or not self.found else self.zero.tolist()
        return joined(members, self.relationships(), zero)


def joined(members: Sequence[Member], found: Iterable[Relationship], zero: Sequence[bool]) -> list[Member]:
    """``members`` with what was found between those whose names say nothing.

    A pair is a product that is no link of a longer chain. Its members count as factors if something tied to them
    started at zero, as in every adapter; otherwise it is a pair only where its inner axis is at most half of either
    outer one, and they stay the whole weights that they are. A Kronecker group is two products, or matrices, tied by
    the scalar form, of which something started at zero.
    """
    found = [r for r in found if _silent(members[r.param]) and _silent(members[r.partner])]
    products = [r for r in found if r.interaction_type in ("product", "bilinear")]
    scales = [r for r in found if r.interaction_type == "scale"]
    hadamard = [r for r in found if r.interaction_type == "channel" and r.axis == r.partner_axis]
    module = roots(len(members), [*products, *scales, *hadamard])
    adapters = {module[i] for i in range(len(zero)) if zero[i]}
    links = Counter(end for r in products for end in (r.param, r.partner))
    result = list(members)

    def change(i: int, role: Mapping[str, Any], **more: Any) -> None:
        if module[i] in adapters:
            role = {"name": "found", "algo": "found", "kind": Kind.FACTOR, "zero_init": zero[i], **role}
            more["module"] = f"found {module[i]}"
        result[i] = dc.replace(result[i], role=dc.replace(result[i].role, **role), **more)

    for r in products:
        up, down = members[r.param].shape, members[r.partner].shape
        if r.axis == r.partner_axis or max(links[r.param], links[r.partner]) > 1 or math.prod(up[1:]) != down[0]:
            continue
        if module[r.param] in adapters or 2 * down[0] <= min(up[0], math.prod(down[1:])):
            change(r.param, {"side": "B"}, partner=r.partner)
            change(r.partner, {"side": "A"}, partner=r.param)
    for units, rank in _kronecker(members, products, scales):
        shapes = [sorted(members[i].shape for i in unit) for unit in units]
        if module[units[0][0]] in adapters and (len(units[0]) == 1 or shapes[0] != shapes[1]):  # else Hadamard
            group = sorted(units[0] + units[1])
            for i in group:
                change(i, {"algo": "lokr"}, cofactors=tuple(j for j in group if j != i), cofactor_rank=rank)
    return result


def _kronecker(
    members: Sequence[Member], products: Sequence[Relationship], scales: Sequence[Relationship]
) -> Iterator[tuple[tuple[list[int], list[int]], int]]:
    """Both sides of each W = w1 (x) w2, whole or themselves products, and the product of their inner ranks."""
    root = roots(len(members), products)
    units = units_of(root)
    ranks: dict[int, int] = defaultdict(lambda: 1)
    tied: dict[int, set[int]] = defaultdict(set)
    for r in products:
        ranks[root[r.partner]] *= members[r.partner].shape[r.partner_axis or 0]
    for r in scales:
        tied[root[r.param]].add(root[r.partner])
        tied[root[r.partner]].add(root[r.param])
    for first, others in sorted(tied.items()):
        second = min(others)
        if first < second and len(others) == len(tied[second]) == 1:
            yield (units[first], units[second]), ranks[first] * ranks[second]


def _silent(member: Member) -> bool:
    return member.role.kind is Kind.REGULAR


def _key(r: Relationship) -> tuple[int, ...]:
    axes = (-1 if axis is None else axis for axis in (r.axis, r.partner_axis))
    return (*sorted((r.param, r.partner)), *axes)


def _legs(r: Relationship) -> tuple[tuple[int, int | None], tuple[int, int | None]]:
    return (r.param, r.axis), (r.partner, r.partner_axis)


def _identity(r: Relationship) -> tuple[Any, ...]:
    return r.param, r.partner, r.interaction_type, r.axis, r.partner_axis, r.heads, r.bias
