"""A step of a plan, bucket by bucket and chunk by chunk: gather, run the chain, keep what is valid, scatter."""

import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hina_kohya.core import chain
from hina_kohya.core.bucket import Bucket
from hina_kohya.core.plan import Plan
from hina_kohya.core.rates import RowRates
from hina_kohya.core.state.slab import Rows
from hina_kohya.numerics.reduce import mat_norm

Run = Callable[..., Any]  # chain.run, or the same compiled
Watcher = Callable[[Bucket, Sequence[int], Run], Run]  # makes what looks on while ``run`` steps these rows


def step_plan(
    plan: Plan,
    groups: Sequence[Mapping[str, Any]],
    run: Run,
    *,
    name: Callable[[int], str],
    watcher: Watcher | None = None,
) -> None:
    """Every parameter that has a gradient. Raises RuntimeError, before any moves, for a gradient that is not dense."""
    rates = plan.rates.of(groups)
    active = [(bucket, rate, bucket.active_rows()) for bucket, rate in zip(plan.buckets, rates, strict=True)]
    _refuse_sparse(plan, name)
    plan.publish()
    for bucket, rate, rows in active:
        if rows:
            _step_bucket(plan, bucket, rows, rate, watcher(bucket, rows, run) if watcher else run)
    plan.forget()


def _step_bucket(plan: Plan, bucket: Bucket, rows: Sequence[int], rates: RowRates, run: Run) -> None:
    """``rates`` are those of all rows, ``rows`` the ones that have a gradient."""
    bucket.tried[rows] += 1
    for picked, where in bucket.chunks(rows):
        _step_chunk(plan, bucket, picked, where, rates.of(where), run)


def effective_rates(plan: Plan, bucket: Bucket, rates: RowRates) -> Tensor:
    """float64 [N, 1, 1] the learning rate that the entries of each row have on average, at the coming step."""
    means = []
    for picked, where in bucket.chunks(range(len(bucket))):
        param = bucket.gather([bucket.params[row] for row in picked])
        s = bucket.signal(param, torch.zeros_like(param), rates.of(where), bucket.steps[where], where)
        effective = chain.rates(bucket.chain, s, _read(bucket, where), plan.others(bucket, where))
        means.append(effective.mean(dim=(-2, -1), keepdim=True).double())
    return torch.cat(means)


def _read(bucket: Bucket, where: Rows) -> dict[str, dict[str, Tensor]]:
    """By technique and slot, the state of these rows."""
    states: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for (technique, name), slab in bucket.slabs.items():
        states[technique][name] = slab.read(where, bucket.compute)
    return states


def _step_chunk(plan: Plan, bucket: Bucket, picked: Sequence[int], where: Rows, rates: RowRates, run: Run) -> None:
    param = bucket.gather([bucket.params[row] for row in picked])
    grad = bucket.gather([bucket.params[row].grad for row in picked])  # type: ignore[misc]
    step, valid = bucket.steps[where] + 1, _squares_are_finite(grad)
    s, states = bucket.signal(param, grad, rates, step, where), _read(bucket, where)
    new, changed = run(bucket.chain, s, states, plan.others(bucket, where))
    rounded = bucket.key.dtype == torch.bfloat16 or any(slab.rounds for slab in bucket.slabs.values())
    seed = bucket.seeds(where, step) if rounded else None
    for (technique, name), slab in bucket.slabs.items():
        if changed[technique][name] is not states[technique][name]:
            salted = None if seed is None else seed ^ _salt(slab.key)
            slab.write(where, changed[technique][name], salted, valid, states[technique][name])
    bucket.scatter(new, valid, param, picked, seed)
    if isinstance(where, slice):
        bucket.steps[where].add_(valid.flatten())
    else:
        bucket.steps.index_add_(0, where, valid.flatten().to(bucket.steps.dtype))


def _refuse_sparse(plan: Plan, name: Callable[[int], str]) -> None:
    for bucket in plan.buckets:
        for index, param in zip(bucket.indices, bucket.params, strict=True):
            if param.grad is not None and param.grad.layout is not torch.strided:
                raise RuntimeError(
                    f"parameter {name(index)} has a {param.grad.layout} gradient; use dense ones (sparse=False)"
                )


def _squares_are_finite(grad: Tensor) -> Tensor:
    """bool [k, 1, 1]: neither NaN nor inf in it, nor numbers whose squares, over the matrix, would become inf."""
    return mat_norm(grad) < torch.finfo(grad.dtype).max ** 0.5 / 32


def _salt(key: str) -> int:
    """A signed 32-bit number that makes the rounding of one slot independent of another's."""
    return zlib.crc32(key.encode()) - (1 << 31)
