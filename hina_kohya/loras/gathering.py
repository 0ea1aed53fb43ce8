"""Gather a metric: hooks on the layers of a model that an adapter is on, while it sees a few batches.

```python
with Gathering(model, "lora.safetensors") as metric:  # the adapter is on, its parameters are trainable
    for batch in batches:
        loss(model, batch).backward()  # a mean over the batch, as trainers compute it
metric.save("lora.metric.safetensors")
```

`hina-kohya resize lora.safetensors --calibrate lora.metric.safetensors ...` then keeps what the loss needs. Nothing of
the model changes; a few dozen batches are enough, since only K x K matrices are estimated.
"""

import dataclasses as dc
import functools
import statistics
from collections.abc import Callable, Mapping
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
from hina_kohya.loras.metric import ADAPTER, DOWN, SAMPLES, UP, VERSION
from hina_kohya.loras.reading import refuse_same, sha256
from hina_kohya.loras.summing import Module, Source, gather

MOST = 512  # columns of a product; a LoKr of whole matrices has more, and K x K matrices would outgrow the model
Find = Callable[[Module, names.Model], nn.Module | None]  # the layer of a module; None: not looked at


@dc.dataclass
class _Sums:
    """Of one module. down, up: sums over samples of S^T S and S S^T, in fp32 where the layer is.

    samples: how many, on the layer's device; rows, calls: first dimensions of its inputs in all, and visits
    """

    product: Product
    layer: nn.Module
    down: Tensor
    up: Tensor
    samples: Tensor
    rows: int = 0
    calls: int = 0

    def move(self, device: torch.device) -> None:
        if self.down.device != device:
            self.down, self.up, self.samples = (each.to(device) for each in (self.down, self.up, self.samples))
            up, down = self.product.up.to(device), self.product.down.to(device)
            self.product = dc.replace(self.product, up=up, down=down)


class Gathering:
    """Context manager; hooks are on inside the block. part: which model of the adapter it is, of `names.Place.part`.

    loss_scale: by what the loss is multiplied before its gradient is taken, as fp16 needs it; read at every gradient

    Raises AdapterError where the model lacks a layer of the adapter.
    """

    def __init__(self, model: nn.Module, adapter: Path | str, part: str = names.UNET):
        layers = {name.replace(".", "_"): layer for name, layer in model.named_modules()}

        def find(module: Module, naming: names.Model) -> nn.Module | None:
            is_other = module.place is not None and module.place.part != part
            return None if is_other else _layer(layers, module, naming)

        self._prepare(adapter, find)

    @classmethod
    def on(cls, layers: Mapping[str, nn.Module], adapter: Path | str) -> "Gathering":
        """Of all models at once. layers: module of the adapter -> its layer, as the network of a trainer has them."""

        def find(module: Module, _: names.Model) -> nn.Module:
            if module.name not in layers:
                raise AdapterError(
                    f"the network that is trained has no {module.name}, which {adapter} has; calibrate with the TOML "
                    "that the adapter was trained with"
                )
            return layers[module.name]

        gathering = cls.__new__(cls)
        gathering._prepare(adapter, find)
        return gathering

    def _prepare(self, adapter: Path | str, find: Find) -> None:
        self.path, self.loss_scale = Path(adapter), torch.tensor(1.0)
        self._handles: list[Any] = []
        self._sums: dict[str, _Sums] = {}
        products, naming = _products(self.path)
        for module, product in products:
            if (layer := find(module, naming)) is not None:
                sums = torch.zeros(2, *[product.up.shape[1]] * 2)
                self._sums[module.name] = _Sums(product, layer, sums[0], sums[1], torch.tensor(0.0))

    def __enter__(self) -> "Gathering":
        for sums in self._sums.values():
            self._handles.append(sums.layer.register_forward_hook(functools.partial(self._forward, sums)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _forward(self, sums: _Sums, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """The layer's output here is its own and the adapter's together, so its gradient is what the adapter sees.

        Gradient checkpointing runs a layer twice, and one of the outputs gets a gradient.
        """
        if not output.requires_grad:
            return
        sums.move(output.device)
        with torch.autocast(output.device.type, enabled=False), torch.no_grad():
            hidden = _positions(layer, _down(sums.product, layer, args[0].float()))
        output.register_hook(functools.partial(self._backward, sums, hidden))

    @torch.no_grad()
    def _backward(self, sums: _Sums, hidden: Tensor, gradient: Tensor) -> None:
        """The loss is a mean over the batch, so a sample's own gradient is as many times as large.

        A gradient that is not finite, of an fp16 loss whose scale is still sought, is left out without waiting for it.
        """
        batch = len(hidden)
        with torch.autocast(gradient.device.type, enabled=False):
            wide = gradient.float() * (batch / self.loss_scale.to(gradient.device))
            core = (_positions(sums.layer, wide) @ sums.product.up).mT @ hidden  # [batch, K, K]
            fine = core.isfinite().all()
            core = torch.where(fine, core, 0)
            sums.up += (core @ core.mT).sum(0)
            sums.down += (core.mT @ core).sum(0)
            sums.samples += fine * batch
        sums.rows += batch
        sums.calls += 1

    def tensors(self) -> dict[str, Tensor]:
        """`<module>.down` and `<module>.up`: what `metric` calls A and G, [K, K], fp32, on the CPU.

        Raises AdapterError for modules that do something and that no gradient reached.
        """
        silent = [name for name, sums in self._sums.items() if not float(sums.samples) and _acts(sums.product)]
        if silent:
            raise AdapterError(
                f"no gradient reached {len(silent)} of {len(self._sums)} modules, the first {silent[0]}; put the "
                "adapter on the model, leave its parameters trainable, and call backward inside the block"
            )
        # Where positions are laid one after the other, or equal captions read once, a batch is not what it seems.
        batches = {name: sums.rows / sums.calls for name, sums in self._sums.items() if sums.calls}
        usual = statistics.median(batches.values()) if batches else 1.0
        tensors = {}
        for name, sums in self._sums.items():
            excess = batches.get(name, usual) / usual
            up = sums.up.double() / (excess**2 * max(float(sums.samples) / excess, 1.0))
            size = float(sums.down.double().trace()) or 1.0
            tensors[f"{name}.{DOWN}"] = (sums.down.double() / size).float().cpu()
            tensors[f"{name}.{UP}"] = up.float().cpu()
        return tensors

    @property
    def samples(self) -> int:
        """Of which the metric is a mean, in most modules."""
        return int(statistics.median([float(sums.samples) for sums in self._sums.values() if sums.calls] or [0]))

    def save(self, path: Path | str, adapter: Path | str | None = None) -> None:
        """Write the metric file, whole or not at all. Raises AdapterError and OSError.

        adapter: the file that it is of, where that has been trained on since
        """
        adapter = self.path if adapter is None else Path(adapter)
        refuse_same([adapter], Path(path))
        tensors = self.tensors()
        metadata = {VERSION: "2", ADAPTER: sha256(adapter), SAMPLES: str(self.samples)}
        with atomic(Path(path)) as unfinished:
            save_file(tensors, unfinished, metadata)


def check(adapter: Path) -> None:
    """Raises AdapterError for a file that no metric can be gathered of."""
    _products(adapter)


def _products(adapter: Path) -> tuple[list[tuple[Module, Product]], names.Model]:
    """The modules with directions, in fp32, and what their names depend on."""
    modules, naming, _, _ = gather([Source(adapter)])
    products = []
    for module in modules:
        form = module.form()
        if form is None:
            continue
        if module.is_dora:
            raise AdapterError(
                f"{adapter}: {module.name} is a DoRA, and its magnitudes have a part in the loss that no metric of the "
                "direction alone has; resize it by the weights"
            )
        product = form.product()
        rank = product.up.shape[1]
        if rank > MOST:
            raise AdapterError(
                f"{adapter}: {module.name} is a product of {rank} columns and a metric has {MOST} at most; make a LoRA "
                "of it first: hina-kohya resize --keep 0.999"
            )
        products.append((module, dc.replace(product, up=product.up.float(), down=product.down.float())))
    return products, naming


def _acts(product: Product) -> bool:
    return bool(product.up.any() and product.down.any())


def _layer(layers: dict[str, nn.Module], module: Module, naming: names.Model) -> nn.Module:
    """By its path in diffusers' names, the original's, or whatever stands after kohya's prefix."""
    aliases = [module.name]
    if module.place is not None:
        aliases = [module.place.path, names.native(module.place, naming)]
    aliases += [module.name.removeprefix(prefix) for prefix in ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")]
    for name in aliases:
        layer = layers.get(name.replace(".", "_"))
        if layer is not None:
            return layer
    raise AdapterError(f"the model has no layer for {module.name}; give the model that the adapter is of")


def _convolution(layer: nn.Module) -> nn.Conv2d | None:
    base: Any = getattr(layer, "base_layer", layer)  # peft's wrapper
    return base if isinstance(base, nn.Conv2d) else None


def _down(product: Product, layer: nn.Module, x: Tensor) -> Tensor:
    convolution = _convolution(layer)
    if convolution is None:
        return x @ product.down.T
    kernel = product.down.reshape(len(product.down), -1, *convolution.kernel_size)
    return F.conv2d(x, kernel, None, convolution.stride, convolution.padding, convolution.dilation)


def _positions(layer: nn.Module, tensor: Tensor) -> Tensor:
    """[batch, positions, channels]; a convolution's have channels first."""
    if _convolution(layer) is not None:
        return tensor.flatten(2).mT
    return tensor.reshape(len(tensor), -1, tensor.shape[-1])
