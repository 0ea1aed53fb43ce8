"""Gather a metric: hooks on the layers of a model that an adapter is on, while it sees a few batches.

```python
with Gathering(model, "lora.safetensors") as metric:  # the adapter is on, its parameters are trainable
    for batch in batches:
        loss(model, batch).backward()  # a mean over the batch, as trainers compute it
metric.save("lora.metric.safetensors")
```

`hina-kohya resize lora.safetensors --metric lora.metric.safetensors ...` then keeps what the loss needs. Nothing of the
model changes; a few dozen batches are enough, since only K x K matrices are estimated.
"""

import dataclasses as dc
import functools
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from hina_kohya.files import atomic
from hina_kohya.loras import names
from hina_kohya.loras.errors import AdapterError
from hina_kohya.loras.forms import Product
from hina_kohya.loras.metric import ADAPTER, GRADIENTS, INPUTS, SAMPLES, VERSION
from hina_kohya.loras.reading import sha256
from hina_kohya.loras.summing import Module, Source, gather

MOST = 512  # columns of a product; a LoKr of whole matrices has more, and K x K matrices would outgrow the model


@dc.dataclass
class _Sums:
    """Of one module, over all positions. inputs: sum of h h^T; gradients: sum of d d^T, d of each sample's own loss."""

    product: Product
    layer: nn.Module
    inputs: Tensor
    gradients: Tensor
    positions: int = 0
    samples: int = 0


class Gathering:
    """Context manager; hooks are on inside the block. part: which model of the adapter it is, of `names.Place.part`.

    Raises AdapterError where the model lacks a layer of the adapter.
    """

    def __init__(self, model: nn.Module, adapter: Path | str, part: str = names.UNET):
        self.path = Path(adapter)
        modules, naming, _, _ = gather([Source(self.path)])
        layers = {name.replace(".", "_"): layer for name, layer in model.named_modules()}
        self._sums: dict[str, _Sums] = {}
        for module in modules:
            form = module.form()
            if form is None or (module.place is not None and module.place.part != part):
                continue
            layer = _layer(layers, module, naming)
            product = form.product()
            rank = product.up.shape[1]
            if rank > MOST:
                raise AdapterError(
                    f"{module.name} is a product of {rank} columns and a metric has {MOST} at most; make a LoRA of it "
                    "first: hina-kohya resize --keep 0.999"
                )
            narrow = dc.replace(product, up=product.up.float(), down=product.down.float())
            self._sums[module.name] = _Sums(narrow, layer, torch.zeros(rank, rank), torch.zeros(rank, rank))
        self._handles: list[Any] = []

    def __enter__(self) -> "Gathering":
        for sums in self._sums.values():
            self._handles.append(sums.layer.register_forward_hook(functools.partial(_forward, sums)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def tensors(self) -> dict[str, Tensor]:
        """`<module>.inputs`, a mean over positions, and `<module>.gradients`, a mean over samples of their sums.

        Raises AdapterError for modules that no gradient reached.
        """
        silent = [name for name, sums in self._sums.items() if not sums.samples]
        if silent:
            raise AdapterError(
                f"no gradient reached {len(silent)} of {len(self._sums)} modules, the first {silent[0]}; put the "
                "adapter on the model, leave its parameters trainable, and call backward inside the block"
            )
        found = {}
        for name, sums in self._sums.items():
            found[f"{name}.{INPUTS}"] = sums.inputs / sums.positions
            found[f"{name}.{GRADIENTS}"] = sums.gradients / sums.samples
        return found

    def save(self, path: Path | str) -> None:
        """Write the metric file, whole or not at all. Raises AdapterError and OSError."""
        samples = str(max((sums.samples for sums in self._sums.values()), default=0))
        tensors = self.tensors()
        metadata = {VERSION: "1", ADAPTER: sha256(self.path), SAMPLES: samples}
        with atomic(Path(path)) as unfinished:
            save_file(tensors, unfinished, metadata)


def _layer(layers: dict[str, nn.Module], module: Module, naming: names.Model) -> nn.Module:
    """By its path in diffusers' names, the original's, or whatever stands after kohya's prefix."""
    wanted = [module.name]
    if module.place is not None:
        wanted = [module.place.path, names.native(module.place, naming)]
    wanted += [module.name.removeprefix(prefix) for prefix in ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")]
    for name in wanted:
        layer = layers.get(name.replace(".", "_"))
        if layer is not None:
            return layer
    raise AdapterError(f"the model has no layer for {module.name}; give the model that the adapter is of")


def _forward(sums: _Sums, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
    """The layer's output here is its own and the adapter's together, so its gradient is what the adapter sees."""
    if not output.requires_grad:  # gradient checkpointing runs a block once without, and again with
        return
    x = args[0].detach()
    hidden = _positions(_down(sums.product, layer, x.float()))
    sums.inputs += (hidden.T @ hidden).cpu()
    sums.positions += len(hidden)
    sums.samples += len(x)
    output.register_hook(functools.partial(_backward, sums, len(x)))


def _backward(sums: _Sums, batch: int, gradient: Tensor) -> None:
    """The loss is a mean over the batch, so a sample's own gradient is `batch` times as large."""
    up = sums.product.up.to(gradient.device)
    flat = _positions(gradient.float() * batch) @ up
    sums.gradients += (flat.T @ flat).cpu()


def _down(product: Product, layer: nn.Module, x: Tensor) -> Tensor:
    down = product.down.to(x.device)
    base: Any = getattr(layer, "base_layer", layer)  # peft's wrapper
    if isinstance(base, nn.Conv2d):
        kernel = down.reshape(down.shape[0], -1, *base.kernel_size)
        return F.conv2d(x, kernel, None, base.stride, base.padding, base.dilation)
    return x @ down.T


def _positions(tensor: Tensor) -> Tensor:
    """[positions, channels]; images have channels first."""
    tensor = tensor.movedim(1, -1) if tensor.dim() == 4 else tensor
    return tensor.reshape(-1, tensor.shape[-1])
