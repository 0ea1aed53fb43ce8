"""The one class that is a torch.optim.Optimizer: gathers, runs chains, scatters, and keeps what a checkpoint needs."""

import dataclasses as dc
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hina_kohya.core import starting
from hina_kohya.core.chain import run
from hina_kohya.core.groups import Betas, check_betas, check_group, number_of, retimed_options
from hina_kohya.core.hyper import Interval, check_value
from hina_kohya.core.parameter import Parameter, Ties, parameters_of, ties_of
from hina_kohya.core.plan import Plan
from hina_kohya.core.precision import full_precision
from hina_kohya.core.schedules import NewRate
from hina_kohya.core.state import checkpoint
from hina_kohya.core.state.codec import codec
from hina_kohya.core.state.counters import SkippedSteps
from hina_kohya.core.stepping import Run, refuse_sparse, step_bucket
from hina_kohya.core.technique import Technique
from hina_kohya.parameters import roles
from hina_kohya.parameters.members import checked_roles, members_of
from hina_kohya.parameters.names import named


class HinaOptimizer(torch.optim.Optimizer):
    """Runs a chain of techniques over buckets of same-shape parameters.

    Args:
        params: what any torch optimizer takes; names are found where there are any (`parameters.names`).
        techniques: the chain; each parameter gets the techniques that fit its role and shape.
        lr, weight_decay: per param group, as in torch; lr may be a tensor of one element.
        betas: what the chain was made with, if schedulers and groups may change them.
        state: how moments are kept: "8bit", "bf16" or "fp32".
        decay_roles: roles that decay besides the factors, or "all" (`parameters.roles` lists the names).
        lora_scale: alpha / rank of adapters, where no trainer's hook says it.
        compile: compile the chain with torch.compile (one graph a chain, dynamic in all sizes).
        override_hyperparameters: on `load_state_dict`, keep this optimizer's settings instead of the checkpoint's.

    Raises ValueError for values out of bounds, at construction.
    """

    asked: Mapping[str, str] = {}  # technique -> the argument that asks for it
    watcher: Callable[..., Run] | None = None  # makes of (bucket, rows, run) what looks on while `run` steps them

    def __init__(
        self,
        params: Any,
        techniques: Iterable[Technique],
        *,
        lr: float | Tensor,
        weight_decay: float,
        betas: Betas | None = None,
        state: str = "8bit",
        decay_roles: Sequence[str] | str = (),
        lora_scale: float | None = None,
        compile: bool = False,
        override_hyperparameters: bool = False,
    ):
        check_value("lr", number_of(lr), 1e-3, Interval("[0, inf)"))
        check_value("weight_decay", weight_decay, 1e-2, Interval("[0, inf)"))
        check_value("lora_scale", 1.0 if lora_scale is None else lora_scale, 1.0, Interval("(0, inf)"))
        for name, value in (("compile", compile), ("override_hyperparameters", override_hyperparameters)):
            check_value(name, value, False, None)
        self._codec, self._decay_roles, self._scale = codec(state), checked_roles(decay_roles), lora_scale
        self._override, self._compile, self._announced = override_hyperparameters, compile, False
        self.new_rates: tuple[NewRate, ...] = ()  # set by `load_state_dict`, for `core.schedules.hold_rates`
        self._start_anew()
        chain = {technique.name: dc.asdict(self._codec.checked(technique)) for technique in techniques}
        defaults = {"lr": lr, "weight_decay": weight_decay, "techniques": chain}
        if betas is not None:
            defaults["betas"] = tuple(betas)
        # torch would turn a view of a mapping into a list before add_param_group sees it
        super().__init__([{"params": params}] if hasattr(params, "mapping") else params, defaults)

    def _start_anew(self) -> None:
        self._plan: Plan | None = None
        self._members: list[roles.Member] | None = None
        self._betas: list[Betas] = []  # of each group, as its techniques have them
        self.skipped = SkippedSteps()

    # Parameters, names and roles

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        betas = self.defaults.get("betas")
        check_group(param_group, len(self.param_groups), betas)
        params, names = named(param_group["params"], param_group.pop("named", param_group.pop("param_names", None)))
        for param in params:
            if isinstance(param, Tensor) and param.is_complex():
                raise ValueError(
                    f"a parameter of shape {tuple(param.shape)} is {param.dtype}; only real ones are trained"
                )
        param_group["params"] = params
        # torch allows names in all groups or none; sd-scripts' networks mix. So they are set after its check.
        held = [group.pop("param_names", None) for group in self.param_groups]
        try:
            super().add_param_group(param_group)
        finally:
            for group, group_names in zip(self.param_groups, held, strict=False):
                if group_names is not None:
                    group["param_names"] = group_names
        group = self.param_groups[-1]
        if names is not None:
            group["param_names"] = names
        self._betas.append(() if betas is None else betas)
        self._follow_betas()
        self.replan()

    def _follow_betas(self) -> None:
        """Lets the techniques have the betas that the groups have by now."""
        moved: dict[int, tuple[Betas, Betas]] = {}
        for number, group in enumerate(self.param_groups):
            before, after = self._betas[number], tuple(group.get("betas", ()))
            if before != after:
                check_betas(f"param group {number}: betas", after, self.defaults.get("betas"))
                group["betas"], self._betas[number] = after, after
                group["techniques"] = retimed_options(group["techniques"], before, after)
                moved[number] = before, after
        if moved and self._plan is not None and not self._plan.retime(moved):
            self.replan()

    @property
    def members(self) -> list[roles.Member]:
        """Every parameter with its name, role and partners, in the order of the param groups."""
        if self._members is None:
            members = roles.with_products(self._resolved())
            self._members = starting.with_starts(members, self.param_groups, self.state)
        return self._members

    def _resolved(self) -> list[roles.Member]:
        return members_of(self.param_groups, self._decay_roles, self._scale)

    def member_name(self, index: int) -> str:
        """A parameter by index over all groups: its name, or where it is."""
        if name := self.members[index].name:
            return name
        for number, group in enumerate(self.param_groups):
            if index < len(group["params"]):
                return f"group {number}, parameter {index}"
            index -= len(group["params"])
        raise IndexError(index)

    def _ties(self) -> Ties:
        return ties_of(self.members)

    def params(self) -> list[Tensor]:
        return [param for group in self.param_groups for param in group["params"]]

    def parameters(self) -> list[Parameter]:
        """Every parameter as a plan made now would have it, in the order of the param groups."""
        return parameters_of(self.param_groups, self.members, self._ties(), self.state, self._codec)

    def replan(self) -> None:
        """Forgets the plan; the next step builds one and takes over what `state` shows."""
        if self._plan is not None:
            self.skipped.earlier = self.skipped_steps()
        self._plan = self._members = None

    def plan(self) -> Plan:
        """The plan for the parameters as they are now."""
        if self._plan is not None and not self._plan.fits():
            self.replan()
        if self._plan is None:
            self._plan = Plan(self.parameters(), self._codec)
            self._plan.adopt(self.state)
            self._plan.show(self.state)
        return self._plan

    def skipped_steps(self) -> Counter[int]:
        """By parameter index, steps whose gradient was not finite, so that it did not move; waits for the device."""
        return self.skipped.until_now(None if self._plan is None else self._plan.counters)

    # The step

    @torch.compiler.disable
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with full_precision({param.device.type for param in self.params()}):
            self._step()
        return loss

    def _step(self) -> None:
        self._follow_betas()
        self._before_step()
        if self._plan is not None and not self._plan.follows():
            self.replan()
        plan = self.plan()
        if not self._announced:
            self._announce()
            self._announced = True
        rates = plan.rates.of(self.param_groups)
        active = [(bucket, rate, bucket.active_rows()) for bucket, rate in zip(plan.buckets, rates, strict=True)]
        refuse_sparse(plan, self.member_name)  # before any parameter moves
        plan.publish()
        chain = _compiled() if self._compile else run
        for bucket, rate, rows in active:
            if rows:
                step_bucket(plan, bucket, rows, rate, self.watcher(bucket, rows, chain) if self.watcher else chain)
        plan.forget()
        self.skipped.look(plan.counters, self.member_name, len(self.members))

    def _before_step(self) -> None:
        """For subclasses: gradients are there, nothing has moved."""

    def _announce(self) -> None:
        """For subclasses: at the first step."""

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        self.skipped.say(self.skipped_steps(), self.member_name, len(self.members))
        return {**super().state_dict(), checkpoint.KEY: checkpoint.about(self)}

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads a checkpoint exactly: tensors are placed untouched, by name where both sides have names.

        Settings come from the checkpoint, as in torch; ``override_hyperparameters`` keeps this optimizer's. Raises
        ValueError, before anything changes, where groups, names, shapes or kinds of state do not fit.
        """
        loaded: dict[Tensor, dict[str, Any]] = {}
        places: list[int] = []

        def take_state(_optimizer, adapted: dict[str, Any]) -> dict[str, Any]:
            fitting = checkpoint.fit(
                adapted, self.param_groups, self.members, keep_settings=self._override, name=type(self).__name__
            )
            loaded.update(fitting.state)
            places.extend(fitting.places)
            self.new_rates = fitting.new_rates
            return {**adapted, "state": {}, "param_groups": fitting.param_groups}

        # torch's loader does hooks and groups, and would cast the state to the parameter's dtype: it must not see it.
        handle = self.register_load_state_dict_pre_hook(take_state)
        try:
            super().load_state_dict(dict(state_dict))
        finally:
            handle.remove()
        self._start_anew()
        self._betas = [tuple(group.get("betas", ())) for group in self.param_groups]
        self.state = defaultdict(dict, loaded)
        self._after_load(state_dict, places)

    def _after_load(self, saved: Mapping[str, Any], places: Sequence[int]) -> None:
        """For subclasses that save more; ``places`` are this run's parameters among the checkpoint's."""

    def __getstate__(self) -> dict[str, Any]:
        own = {"_codec", "_decay_roles", "_scale", "_override", "_compile", "_announced", "_betas", "new_rates"}
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_plan" not in self.__dict__:  # a copy or a pickle, not torch's `load_state_dict`
            self._start_anew()
        super().__setstate__(state)


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(run, dynamic=True)
