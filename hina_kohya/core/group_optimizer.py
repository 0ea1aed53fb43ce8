"""Who the parameters of an optimizer are, param group by param group: names, roles, partners, and betas that move."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hina_kohya.core import starting
from hina_kohya.core.groups import BetaChanges, Betas, check_betas, check_group, retimed_options
from hina_kohya.core.parameter import Ties, ties_of
from hina_kohya.parameters import roles
from hina_kohya.parameters.members import checked_roles, members_of
from hina_kohya.parameters.names import named


class GroupOptimizer(torch.optim.Optimizer):
    """A torch optimizer that knows each of its parameters. `HinaOptimizer` steps them.

    Args:
        params: what any torch optimizer takes; names are found where there are any (`parameters.names`).
        defaults: of every param group; ``betas`` among them if schedulers and groups may change them.
        decay_roles: roles that decay besides the factors, or "all" (`parameters.roles` lists the names).
        lora_scale: alpha / rank of adapters, where no trainer's hook says it.
    """

    def __init__(
        self, params: Any, defaults: dict[str, Any], decay_roles: Sequence[str] | str, lora_scale: float | None
    ):
        self._decay_roles, self._scale = checked_roles(decay_roles), lora_scale
        self._start_anew()
        # torch would turn a view of a mapping into a list before add_param_group sees it
        super().__init__([{"params": params}] if hasattr(params, "mapping") else params, defaults)

    def _start_anew(self) -> None:
        self._members: list[roles.Member] | None = None
        self._betas: list[Betas] = []  # of each group, as its techniques have them

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
        with _without_names(self.param_groups):
            super().add_param_group(param_group)
        if names is not None:
            self.param_groups[-1]["param_names"] = names
        self._betas.append(() if betas is None else betas)
        self._follow_groups()
        self.replan()

    def _follow_groups(self) -> BetaChanges:
        """Gives the techniques of each group the betas that it has by now; returns those that changed."""
        changes: dict[int, tuple[Betas, Betas]] = {}
        for number, group in enumerate(self.param_groups):
            before, after = self._betas[number], tuple(group.get("betas", ()))
            if before != after:
                check_betas(f"param group {number}: betas", after, self.defaults.get("betas"))
                group["betas"], self._betas[number] = after, after
                group["techniques"] = retimed_options(group["techniques"], before, after)
                changes[number] = before, after
        return changes

    @property
    def members(self) -> list[roles.Member]:
        """Every parameter with its name, role and partners, in the order of the param groups."""
        if self._members is None:
            members = roles.with_products(self._resolved())
            self._members = starting.with_starts(members, self.param_groups, self.state)
        return self._members

    def replan(self) -> None:
        """Forgets who the parameters are; who asks next looks at them anew."""
        self._members = None

    def _resolved(self) -> list[roles.Member]:
        return members_of(self.param_groups, self._decay_roles, self._scale)

    def _ties(self) -> Ties:
        return ties_of(self.members)

    def params(self) -> list[Tensor]:
        return [param for group in self.param_groups for param in group["params"]]

    def member_name(self, index: int) -> str:
        """A parameter by index over all groups: its name, or where it is."""
        if name := self.members[index].name:
            return name
        for number, group in enumerate(self.param_groups):
            if index < len(group["params"]):
                return f"group {number}, parameter {index}"
            index -= len(group["params"])
        raise IndexError(index)

    def __getstate__(self) -> dict[str, Any]:
        own = ("_decay_roles", "_scale", "_betas")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_members" not in self.__dict__:  # a copy or a pickle, not torch's `load_state_dict`
            self._start_anew()
        super().__setstate__(state)


@contextmanager
def _without_names(groups: Sequence[dict[str, Any]]) -> Iterator[None]:
    """Within it the groups have no names: torch allows them in all or none, and sd-scripts' networks mix."""
    names = [(group, group.pop("param_names")) for group in groups if "param_names" in group]
    try:
        yield
    finally:
        for group, own in names:
            group["param_names"] = own
