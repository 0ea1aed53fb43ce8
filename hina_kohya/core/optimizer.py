"""The one class that is a torch.optim.Optimizer: gathers, runs chains, scatters, and keeps what a checkpoint needs."""

import dataclasses as dc
import logging
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hina_kohya.core import checkpoint, registry, report, roles
from hina_kohya.core.bucket import Bucket, to_device
from hina_kohya.core.chain import Chain, run
from hina_kohya.core.codec import codec
from hina_kohya.core.hyper import Interval, check_value
from hina_kohya.core.members import checked_roles, members_of, splits_lr
from hina_kohya.core.names import named
from hina_kohya.core.plan import Plan, fitted, is_frozen
from hina_kohya.core.pooling import Ties, ties_of
from hina_kohya.core.signal import Signal
from hina_kohya.core.slab import Rows
from hina_kohya.core.technique import Technique

logger = logging.getLogger("hina_kohya")

Closure = Callable[[], Any]


class HinaOptimizer(torch.optim.Optimizer):
    """Runs a chain of techniques over buckets of same-shape parameters.

    Args:
        params: what any torch optimizer takes; names are found where there are any (`core.names`).
        techniques: the chain; each parameter gets the techniques that fit its role and shape.
        lr, weight_decay: per param group, as in torch.
        state: how moments are kept: "8bit", "bf16" or "fp32".
        decay_roles: roles that decay besides the factors, or "all" (`core.roles` lists the names).
        compile: compile the chain with torch.compile (one graph a chain, dynamic in all sizes).
        override_hyperparameters: on `load_state_dict`, keep this optimizer's settings instead of the checkpoint's.

    Raises ValueError for values out of bounds, at construction.
    """

    def __init__(
        self,
        params: Any,
        techniques: Iterable[Technique],
        *,
        lr: float,
        weight_decay: float,
        state: str = "8bit",
        decay_roles: Sequence[str] | str = (),
        compile: bool = False,
        override_hyperparameters: bool = False,
    ):
        check_value("lr", lr, 1e-3, Interval("[0, inf)"))
        check_value("weight_decay", weight_decay, 1e-2, Interval("[0, inf)"))
        check_value("compile", compile, False, None)
        check_value("override_hyperparameters", override_hyperparameters, False, None)
        self._codec = codec(state)
        self._decay_roles = checked_roles(decay_roles)
        self._override, self._run = override_hyperparameters, _compiled() if compile else run
        self._plan: Plan | None = None
        self._members: list[roles.Member] | None = None
        self._announced = False
        chain = {technique.name: dc.asdict(technique) for technique in techniques}
        if hasattr(params, "mapping"):  # torch would turn the view into a list before add_param_group sees it
            params = [{"params": params}]
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "techniques": chain})

    # Parameters, names and roles

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        params, names = named(param_group["params"], param_group.pop("named", param_group.pop("param_names", None)))
        param_group["params"] = params
        # torch allows names in all groups or none; sd-scripts' networks mix. So they are set after its check.
        held = [group.pop("param_names", None) for group in self.param_groups]
        try:
            super().add_param_group(param_group)
        finally:
            for group, group_names in zip(self.param_groups, held, strict=False):
                if group_names is not None:
                    group["param_names"] = group_names
        if names is not None:
            self.param_groups[-1]["param_names"] = names
        for param in params:
            if param.is_complex():
                raise ValueError(
                    f"a parameter of shape {tuple(param.shape)} is {param.dtype}; only real ones are trained"
                )
        self._replan()

    @property
    def members(self) -> list[roles.Member]:
        """Every parameter with its name, role and partners, in the order of the param groups."""
        if self._members is None:
            self._members = self._resolved()
        return self._members

    def _resolved(self) -> list[roles.Member]:
        return members_of(self.param_groups, self._decay_roles)

    def ties(self) -> Ties:
        """For each parameter, those that share its pooled numbers."""
        return ties_of(self.members)

    def params(self) -> list[Tensor]:
        return [param for group in self.param_groups for param in group["params"]]

    def chains(self) -> list[Chain]:
        """The chain of every parameter; an empty one where it is frozen and was never trained."""
        chains: list[Chain] = []
        members = iter(self.members)
        for group, split in zip(self.param_groups, splits_lr(self.param_groups, self.members), strict=True):
            techniques = [registry.build(name, **options) for name, options in group["techniques"].items()]
            wanted = [technique for technique in techniques if not (split and technique.splits_lr)]
            for param, member in zip(group["params"], members, strict=False):
                idle = is_frozen(param) and not self.state.get(param)
                chains.append(() if idle else fitted(wanted, member))
        return chains

    def _replan(self) -> None:
        """Forgets the plan; the next step builds one and takes over what `state` shows."""
        if self._plan is not None:
            self._plan.count_steps(self.state)
        self._plan = self._members = None

    def plan(self) -> Plan:
        """The plan for the parameters as they are now."""
        if self._plan is None or not self._plan.fits():
            if self._plan is not None:
                self._plan.count_steps(self.state)
            groups = self.group_of().tolist()
            self._plan = Plan(self.params(), self.members, self.chains(), self._codec, groups, self.ties())
            self._plan.adopt(self.state)
            self._plan.show(self.state)
        return self._plan

    # The step

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._before_step()
        plan = self.plan()
        if not self._announced:
            self._announced = True
            logger.info(self.summary())
        active = [(bucket, rows) for bucket in plan.buckets if (rows := bucket.active_rows())]
        for bucket, rows in active:  # before any parameter moves
            self._refuse_sparse(bucket, rows)
        plan.publish()
        group_of = self.group_of()
        for bucket, rows in active:
            bucket.steps[rows] += 1
            scalars = self.scalars(bucket, group_of)
            for picked, where in bucket.chunks(rows):
                self._step_chunk(plan, bucket, picked, where, scalars)
        plan.forget()
        return loss

    def _before_step(self) -> None:
        """For subclasses: gradients are there, nothing has moved."""

    def _step_chunk(self, plan: Plan, bucket: Bucket, picked: Sequence[int], where: Rows, scalars: Tensor) -> None:
        param = bucket.gather([bucket.params[row] for row in picked])
        grad = bucket.gather([bucket.params[row].grad for row in picked])  # type: ignore[misc]
        lr, decay, step, rank = scalars[:, where].view(4, -1, 1, 1).unbind(0)
        s = Signal(param, param, grad, grad, lr, decay, step, cofactor_rank=rank)
        states = defaultdict(dict)
        for (technique, name), slab in bucket.slabs.items():
            states[technique][name] = slab.read(where, bucket.compute)
        new, states = self._run(bucket.chain, s, states, *plan.shared(bucket, where))
        rounded = bucket.key.dtype == torch.bfloat16 or any(slab.rounds for slab in bucket.slabs.values())
        seed = bucket.seeds(picked) if rounded else None
        for (technique, name), slab in bucket.slabs.items():
            salted = None if seed is None else seed ^ _salt(slab.key)
            slab.write(where, states[technique][name], salted)
        bucket.scatter(new, picked, seed)

    def group_of(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.param_groups)), [len(group["params"]) for group in self.param_groups])

    def scalars(self, bucket: Bucket, group_of: np.ndarray) -> Tensor:
        """float64 [4, N]: learning rate, decay, step and cofactor rank of each row."""
        groups = group_of[bucket.indices]
        lr = np.array([float(group["lr"]) for group in self.param_groups])[groups]
        decay = np.array([float(group["weight_decay"]) for group in self.param_groups])[groups] * bucket.decays
        return to_device(np.stack([lr, decay, bucket.steps, bucket.ranks]), bucket.key.device)

    def _refuse_sparse(self, bucket: Bucket, rows: Sequence[int]) -> None:
        for row in rows:
            grad = bucket.params[row].grad
            if grad is not None and grad.layout is not torch.strided:
                name = self.members[bucket.indices[row]].name or f"of shape {tuple(bucket.key.shape)}"
                raise RuntimeError(f"parameter {name} has a {grad.layout} gradient; use dense ones (sparse=False)")

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        if self._plan is not None:
            self._plan.count_steps(self.state)
        return super().state_dict()

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads a checkpoint exactly: tensors are placed untouched, by name where both sides have names.

        Settings come from the checkpoint, as in torch; ``override_hyperparameters`` keeps this optimizer's. Raises
        ValueError, before anything changes, where groups, names, shapes or kinds of state do not fit.
        """
        loaded: dict[Tensor, dict[str, Any]] = {}
        places: list[int] = []

        def take_state(_optimizer, adapted: dict[str, Any]) -> dict[str, Any]:
            fitting = checkpoint.fit(adapted, self.param_groups, self.members, keep_settings=self._override)
            loaded.update(fitting.state)
            places.extend(fitting.places)
            return {**adapted, "state": {}, "param_groups": fitting.param_groups}

        # torch's loader does hooks and groups; it must not see the state, which it would cast to the parameter's dtype.
        handle = self.register_load_state_dict_pre_hook(take_state)
        try:
            super().load_state_dict(dict(state_dict))
        finally:
            handle.remove()
        self._plan = self._members = None
        self.state = defaultdict(dict, loaded)
        self._after_load(state_dict, places)

    def _after_load(self, saved: Mapping[str, Any], places: Sequence[int]) -> None:
        """For subclasses that save more; ``places`` are this run's parameters among the checkpoint's."""

    def __getstate__(self) -> dict[str, Any]:
        if self._plan is not None:
            self._plan.count_steps(self.state)
        own = {"_codec", "_decay_roles", "_override", "_run", "_announced"}
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_plan", None)
        self.__dict__.setdefault("_members", None)

    # What it says of itself

    def summary(self) -> str:
        """The one line that is logged at the first step."""
        used = f"{self.get_memory_efficiency_report()['bytes_per_parameter']:.2f} bytes of state a parameter"
        return f"{roles.summary_line(report.trained(self))}; {type(self).__name__}, {self._codec.name}, {used}"

    @property
    def effective_lr(self) -> list[float]:
        """For each param group, the learning rate its elements get on average, role rules included."""
        return report.effective_lr(self)

    def get_optimization_info(self) -> dict[str, Any]:
        """Type, features in effect, conflicts, what was recognised, progress and memory; JSON-serialisable."""
        return report.information(self)

    def get_memory_efficiency_report(self) -> dict[str, Any]:
        """Exact bytes of state, in all and a parameter."""
        return report.memory(self)


def _salt(key: str) -> int:
    """A signed 32-bit number that makes the rounding of one slot independent of another's."""
    return zlib.crc32(key.encode()) - (1 << 31)


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(run, dynamic=True)
