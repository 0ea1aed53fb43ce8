"""The metric of an adapter (`loras.metric`), gathered in the last steps of its training and saved beside its last file.

`--network_args calibrate_steps=64`. What `hina-kohya resize --calibrate` starts the trainer for once more. The factors
still move a little while it is gathered; it is of columns of factors, and these stay what they are.
"""

import logging
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from hina_kohya.loras import gathering, metric
from hina_kohya.loras.errors import AdapterError
from hina_kohya.loras.gathering import Gathering
from hina_kohya.trainers import saving, scalars
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.network_args import CALIBRATE_STEPS

logger = logging.getLogger("hina_kohya")

_waiting: "weakref.WeakKeyDictionary[nn.Module, LastSteps]" = weakref.WeakKeyDictionary()  # whose optimizer is not made


def keep(network: Any, steps: int) -> None:
    """The last `steps` steps of this network, which is not on its models yet, are looked at."""
    last = _waiting[network] = LastSteps(network, steps)
    saving.after(network, lambda _network, file, _dtype, _metadata: last.write(file))


def waits(network: nn.Module) -> bool:
    """Whether `keep` was called for a network, and no optimizer of its was seen yet."""
    return network in _waiting


def follow(optimizer: Optimizer, left: Callable[[], int], scaler: Callable[[], Any]) -> None:
    """The networks that this optimizer trains are looked at in the last of its steps.

    left: steps that the trainer has still to count; scaler: what scales fp16's losses, or None. Both are asked later.

    Raises UserError where that cannot be.
    """
    own = {id(param) for group in optimizer.param_groups for param in group["params"]}
    for network in list(_waiting):
        if any(id(param) in own for param in network.parameters()):
            _waiting.pop(network).begin(network, optimizer, left, scaler)


def layers_of(network: Any) -> dict[str, nn.Module]:
    """Name -> layer, of a network that is not yet on its models: sd-scripts', musubi-tuner's, LyCORIS'."""
    lists = [value for value in vars(network).values() if isinstance(value, (list, tuple, nn.ModuleList))]
    layers = {}
    for module in (each for some in lists for each in some):
        layer = getattr(module, "org_module", None)
        layer = layer[0] if isinstance(layer, (list, tuple)) else layer
        if isinstance(layer, nn.Module) and hasattr(module, "lora_name"):
            layers[module.lora_name] = layer
    return layers


class LastSteps:
    """Of one network. Layers are held weakly: trainers free text encoders that they do not need any more."""

    def __init__(self, network: Any, steps: int):
        self.steps = steps
        self._layers = {name: weakref.ref(layer) for name, layer in layers_of(network).items()}
        self._left: Callable[[], int] = lambda: steps + 1
        self._waits = True
        self._gathering: Gathering | None = None
        self._problem = "the run ended before its last steps began"

    def begin(
        self, network: nn.Module, optimizer: Optimizer, left: Callable[[], int], scaler: Callable[[], Any]
    ) -> None:
        option = f"network_args: {CALIBRATE_STEPS}={self.steps}"
        if not scalars.runs_step_hooks(optimizer):
            what = f"{type(optimizer).__name__} does not run torch's step hooks"
            raise UserError(f"{option} sees no step, since {what}; remove {CALIBRATE_STEPS}")
        try:
            _of_weights(network, gathering.check)
        except AdapterError as error:
            raise UserError(f"{option}: {error}; remove {CALIBRATE_STEPS}") from error
        self._left, owner = left, weakref.ref(network)

        def before_step(*_: Any) -> None:
            if self._waits and left() - 1 <= self.steps:  # the trainer counts this one when it is done
                self._waits = False
                self._gather(owner(), scaler())

        optimizer.register_step_pre_hook(before_step)

    def _gather(self, network: Any, scaler: Any) -> None:
        """From here on. What goes wrong is no reason to end a run that has nearly come to its end."""
        layers = {name: layer for name, each in self._layers.items() if (layer := each()) is not None}
        try:
            last = self._gathering = _of_weights(network, lambda file: Gathering.on(layers, file))
        except (AdapterError, OSError) as error:
            self._problem = str(error)
            return
        last.__enter__()
        if scaler is not None and scaler.is_enabled():
            scale = scaler.scale

            def scaled(loss: Any) -> Any:
                last.loss_scale = torch.tensor(float(scaler.get_scale()))
                return scale(loss)

            scaler.scale = scaled

    def write(self, file: Path) -> None:
        """Beside the adapter that the last step left."""
        try:
            if self._left() > 0:
                return
            if self._gathering is None:
                raise AdapterError(self._problem)
            self._gathering.save(metric.beside(file), file)
        except (AdapterError, UserError, OSError) as error:  # UserError: no trainer's loop saves
            logger.warning("hina-kohya: %s has no metric beside it: %s", file, error)


def _of_weights(network: Any, look: Callable[[Path], Any]) -> Any:
    """What `look` makes of a file with the weights as they are."""
    # Windows keeps a file that is mapped.
    with tempfile.TemporaryDirectory(prefix="hina-calibration-", ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "weights.safetensors"
        saving.plainly(network, file)
        return look(file)
