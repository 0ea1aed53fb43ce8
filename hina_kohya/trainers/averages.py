"""The average of an adapter over the steps, kept while it trains and saved beside each of the trainer's files.

`--network_args ema=0.1`. A power profile (`loras.power_profile`) of what each step left behind, in float32 on the
parameters' device: with `ema=0.05` step 2000 moves the average by 0.9 % of its distance to the weights, far less than
bf16 can hold of it, and bf16 with stochastic rounding would add noise of about three units in the last place. The file
has the adapter's dtype. The average is part of the optimizer's state, so that every trainer saves and resumes it.
"""

import json
import logging
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hina_kohya.files import atomic
from hina_kohya.loras import power_profile
from hina_kohya.loras.metadata import AVERAGE
from hina_kohya.trainers import saving, scalars
from hina_kohya.trainers.errors import UserError

logger = logging.getLogger("hina_kohya")

KEY = "hina_average"  # in the optimizer's state
# The width of the average of networks whose optimizer has not been made.
_waiting: "weakref.WeakKeyDictionary[nn.Module, float]" = weakref.WeakKeyDictionary()
_kept: "weakref.WeakKeyDictionary[nn.Module, Average]" = weakref.WeakKeyDictionary()


def keep(network: Any, ema: float) -> None:
    """From its first step on an average of this network is kept, and written whenever its weights are."""
    _waiting[network] = ema
    saving.after(network, write)


def waits(network: nn.Module) -> bool:
    """Whether `keep` was called for a network, and no optimizer of its was seen yet."""
    return network in _waiting


def follow(optimizer: Optimizer) -> None:
    """The networks that this optimizer trains are averaged after each of its steps. Raises UserError where it cannot
    be."""
    own = {id(param) for group in optimizer.param_groups for param in group["params"]}
    for network in list(_waiting):
        named = {name: param for name, param in network.named_parameters() if id(param) in own}
        if named:
            _kept[network] = Average(named, optimizer, _waiting.pop(network))


def write(network: Any, file: Path, dtype: Any, metadata: Mapping[str, str] | None) -> None:
    """`NAME-ema.safetensors` beside a file of the network, whole or not at all; nothing where none is kept."""
    average = _kept.get(network)
    if average is not None:
        average.take()
    if average is None or not average.steps:
        if average is not None or network in _waiting:
            logger.warning("hina-kohya: %s has no average beside it: no step was seen yet", file)
        return
    record = json.dumps({"done": f"hina-kohya: {average}"})
    with average.in_place(), atomic(file.with_name(f"{file.stem}-ema{file.suffix}")) as unfinished:
        saving.plainly(network, unfinished, dtype, {**(metadata or {}), AVERAGE: record})


class Average:
    """Of the parameters that an optimizer steps. steps: those that are in it, and in `values` by name."""

    def __init__(self, named: Mapping[str, nn.Parameter], optimizer: Optimizer, ema: float):
        if callable(getattr(optimizer, "eval", None)):
            what = f"{type(optimizer).__name__} saves an average by itself"
            raise UserError(f"network_args: ema={ema:g} is of no use here: {what}; remove ema")
        if not scalars.runs_step_hooks(optimizer):
            what = f"{type(optimizer).__name__} does not run torch's step hooks"
            raise UserError(f"network_args: ema={ema:g} sees no step, since {what}; remove ema")
        self.ema, self.steps = ema, 0
        self.values: dict[str, Tensor] = {}
        self._gamma = power_profile.exponent(ema)
        self._named = dict(named)
        self._is_due = False
        optimizer.register_step_pre_hook(lambda *_: self.take())
        optimizer.register_step_post_hook(lambda *_: self._step())
        self._ride_along(optimizer)

    def __str__(self) -> str:
        return f"average of {self.steps} steps, power profile ema={self.ema:g}"

    def _step(self) -> None:
        self._is_due = True

    @torch.no_grad()
    def take(self) -> None:
        """The weights as the last step left them, and what the trainer did to them since (`scale_weight_norms`)."""
        if not self._is_due:
            return
        self._is_due = False
        if any(value.shape != self._named[name].shape for name, value in self.values.items()):
            # Its ranks were chosen (ADLRNS): what is left has other directions than what was averaged.
            logger.info("hina-kohya: the network has other ranks from here on, and its average (ema) begins anew")
            self.steps, self.values = 0, {}
        self.steps += 1
        if not self.values:
            self.values = {name: _wide(param).clone() for name, param in self._named.items()}
            return
        share = 1 - power_profile.decay(self.steps, self._gamma)
        for values, params in self._alike():
            torch._foreach_lerp_(values, [_wide(param) for param in params], share)

    def _alike(self) -> Sequence[tuple[list[Tensor], list[Tensor]]]:
        """Averages and parameters, those of one device and dtype together."""
        lists: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
        for name, param in self._named.items():
            values, params = lists.setdefault((param.device, param.dtype), ([], []))
            values.append(self.values[name])
            params.append(param.detach())
        return list(lists.values())

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Meanwhile the parameters are their averages."""
        own = {name: param.data for name, param in self._named.items()}
        try:
            for name, param in self._named.items():
                param.data = self.values[name].to(param.dtype)
            yield
        finally:
            for name, param in self._named.items():
                param.data = own[name]

    def _ride_along(self, optimizer: Optimizer) -> None:
        """In `state_dict`, which trainers save. Not by torch's hooks: bitsandbytes loads without calling them."""
        state_dict, load_state_dict = optimizer.state_dict, optimizer.load_state_dict

        def with_average(*args: Any, **kwargs: Any) -> dict[str, Any]:
            self.take()
            return {**state_dict(*args, **kwargs), KEY: {"ema": self.ema, "steps": self.steps, "values": self.values}}

        def without_average(saved: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
            self._check(saved.get(KEY))
            result = load_state_dict({key: value for key, value in saved.items() if key != KEY}, *args, **kwargs)
            self._resume(saved.get(KEY))
            return result

        vars(optimizer).update(state_dict=with_average, load_state_dict=without_average)

    def _check(self, saved: Mapping[str, Any] | None) -> None:
        if not saved or not saved["steps"]:
            return
        own, other = ({name: each.shape for name, each in named.items()} for named in (self._named, saved["values"]))
        if own != other:
            raise ValueError("the average in the checkpoint is of another network; use the same --network_args")

    def _resume(self, saved: Mapping[str, Any] | None) -> None:
        self._is_due = False
        if saved is None:
            logger.warning("resume: the state has no average (ema); it begins with the steps of this run")
        if saved is None or not saved["steps"]:
            self.steps, self.values = 0, {}
            return
        if saved["ema"] != self.ema:
            logger.warning("resume: the average was kept with ema=%g and goes on with %g", saved["ema"], self.ema)
        self.steps = saved["steps"]
        self.values = {
            name: _wide(saved["values"][name]).to(param.device, copy=True) for name, param in self._named.items()
        }


def _wide(tensor: Tensor) -> Tensor:
    """In float32 at least; itself where it is that."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
