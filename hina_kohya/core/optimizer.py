"""The optimizer that all others are: makes the plan, steps it, and saves and loads what was learned on the way."""

import dataclasses as dc
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hina_kohya.core.chain import run
from hina_kohya.core.group_optimizer import GroupOptimizer
from hina_kohya.core.groups import Betas, number_of
from hina_kohya.core.hyper import Interval, check_value
from hina_kohya.core.parameter import Parameter, parameters_of
from hina_kohya.core.plan import Plan
from hina_kohya.core.precision import full_precision
from hina_kohya.core.schedules import NewRate
from hina_kohya.core.state import checkpoint
from hina_kohya.core.state.codec import codec
from hina_kohya.core.state.counters import SkippedSteps
from hina_kohya.core.stepping import Watcher, step_plan
from hina_kohya.core.technique import Technique


class HinaOptimizer(GroupOptimizer):
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

    asked: Mapping[str, Sequence[str]] = {}  # argument -> the techniques that it acts by
    watcher: Watcher | None = None

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
        self._codec, self._override, self._compile = codec(state), override_hyperparameters, compile
        self._announced = False
        self.new_rates: tuple[NewRate, ...] = ()  # set by `load_state_dict`, for `core.schedules.hold_rates`
        chain = {technique.name: dc.asdict(self._codec.checked(technique)) for technique in techniques}
        defaults = {"lr": lr, "weight_decay": weight_decay, "techniques": chain}
        if betas is not None:
            defaults["betas"] = tuple(betas)
        super().__init__(params, defaults, decay_roles, lora_scale)

    def _start_anew(self) -> None:
        super()._start_anew()
        self._plan: Plan | None = None
        self.skipped = SkippedSteps()

    # The plan

    def parameters(self) -> list[Parameter]:
        """Every parameter as a plan made now would have it, in the order of the param groups."""
        return parameters_of(self.param_groups, self.members, self._ties(), self.state, self._codec)

    def replan(self) -> None:
        """Forgets the plan; the next step builds one and takes over what `state` shows."""
        if self._plan is not None:
            self.skipped.earlier = self.skipped_steps()
        self._plan = None
        super().replan()

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
        chain = _compiled() if self._compile else run
        step_plan(plan, self.param_groups, chain, name=self.member_name, watcher=self.watcher)
        self.skipped.look(plan.counters, self.member_name, len(self.members))

    def _follow_betas(self) -> None:
        """Lets the plan have the betas that the groups have by now."""
        changes = self._follow_groups()
        if changes and self._plan is not None and not self._plan.retime(changes):
            self.replan()

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
        fitting = checkpoint.load(self, state_dict, super().load_state_dict, keep_settings=self._override)
        self._start_anew()
        self._betas = [tuple(group.get("betas", ())) for group in self.param_groups]
        self.new_rates = fitting.new_rates
        self.state = defaultdict(dict, fitting.state)
        self._after_load(state_dict, fitting.places)

    def _after_load(self, saved: Mapping[str, Any], places: Sequence[int]) -> None:
        """For subclasses that save more; ``places`` are this run's parameters among the checkpoint's."""

    def __getstate__(self) -> dict[str, Any]:
        own = ("_codec", "_override", "_compile", "_announced", "new_rates")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in own}}


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(run, dynamic=True)
