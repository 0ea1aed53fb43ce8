"""`PlainModule`: LyCORIS's LoRA of one layer in bypass form, which can see what its directions do, and drop some."""

import functools
import math
from typing import Any

import torch
from lycoris.modules.locon import LoConModule
from torch import Tensor, nn
from torch.nn import functional as F

from hina_kohya.adlrns.adapter.arguments import check_module
from hina_kohya.adlrns.adapter.choice import Sums
from hina_kohya.core.reshaping import Change

_ROUNDING = 2**-7  # of an alpha that was kept in bf16


class Watch:
    """One object a network. measuring: the forwards of this step are to be summed up."""

    def __init__(self) -> None:
        self.measuring = False


class PlainModule(LoConModule):
    """W x + scale * up(down(x)), as `lycoris.kohya` with algo=lora and bypass_mode=True; so are its tensors and files.

    A step that measures adds to `grams`, [2, R, R] on the device: sums over positions of h h^T, h = down x, and of
    d d^T, d the gradient by h. `positions` counts them.
    """

    name = "adlrns"
    lora_up: Any
    lora_down: Any
    alpha: Any
    op: Any
    weight_list_det: list[str] = []  # its files are LoCon's, and are found as such

    def __init__(
        self,
        lora_name: str,
        org_module: nn.Module,
        multiplier: float = 1.0,
        lora_dim: int = 4,
        alpha: Any = 1,
        dropout: float = 0.0,
        rank_dropout: float = 0.0,
        module_dropout: float = 0.0,
        use_tucker: bool = False,
        **kwargs: Any,
    ):
        check_module(lora_name, lora_dim, {**kwargs, "use_tucker": use_tucker})
        _check_layer(lora_name, org_module)
        kwargs["bypass_mode"] = True
        super().__init__(
            lora_name, org_module, multiplier, lora_dim, alpha, dropout, rank_dropout, module_dropout, **kwargs
        )
        self.watch = Watch()
        self.grams: Tensor | None = None
        self.positions = 0.0

    def bypass_forward_diff(self, x: Tensor, scale: Any = 1) -> Tensor:
        diff = super().bypass_forward_diff(x, scale)
        if self.watch.measuring and self.training and diff.requires_grad:
            with torch.no_grad():
                hidden = self._rows(self._down(x))
            diff.register_hook(functools.partial(self._observe, hidden, self.scale * scale))
        return diff

    def _down(self, x: Tensor) -> Tensor:
        weight = self.lora_down.weight.to(x)
        if not self.isconv:
            return F.linear(x, weight)
        return self.op(x, weight, None, self.lora_down.stride, self.lora_down.padding)

    def _rows(self, values: Tensor) -> Tensor:
        """[positions, channels]"""
        return (values.movedim(1, -1) if self.isconv else values).flatten(0, -2)

    @torch.no_grad()
    def _observe(self, hidden: Tensor, scale: float, gradient: Tensor) -> None:
        sensitivity = self._rows(gradient).float() @ self.lora_up.weight.flatten(1).float() * scale
        grams = torch.stack([each.T @ each for each in (hidden.float(), sensitivity)])
        grams = grams.where(grams.isfinite().all(), 0)  # fp16's overflow makes it no statistic
        self.grams = grams if self.grams is None else self.grams + grams
        self.positions += len(hidden)

    def seen(self) -> Sums:
        return Sums(self._empty() if self.grams is None else self.grams, self.positions)

    def _empty(self) -> Tensor:
        return torch.zeros(2, self.lora_dim, self.lora_dim, device=self.lora_down.weight.device)

    def forget(self) -> None:
        self.grams, self.positions = None, 0.0

    def changes(self, basis: Tensor, rank: int) -> dict[Tensor, Change]:
        """What makes the first `rank` directions of a basis [2, R, R] out of those that are trained."""
        transform, inverse = basis[0].T[:rank], basis[1][:rank]
        return {
            self.lora_up.weight: Change(1, transform, inverse),
            self.lora_down.weight: Change(0, inverse, transform),
        }

    @torch.no_grad()
    def follow(self) -> None:
        """After its factors changed their rank: each direction is as strong as before."""
        rank = len(self.lora_down.weight)
        self.alpha.mul_(rank / self.lora_dim)
        self.lora_dim = rank
        names = ("out_channels", "in_channels") if self.isconv else ("out_features", "in_features")
        for layer, name in zip((self.lora_down, self.lora_up), names, strict=True):
            setattr(layer, name, rank)
        self.forget()

    def resize(self, rank: int) -> None:
        """To a file's rank, whose values are about to be loaded."""
        if rank != self.lora_dim:
            up, down = self.lora_up.weight, self.lora_down.weight
            up.data, down.data = (
                up.data.new_zeros(len(up), rank, *up.shape[2:]),
                down.data.new_zeros(rank, *down.shape[1:]),
            )
            self.follow()

    def load_weight_hook(self, module: nn.Module, incompatible_keys: Any) -> None:
        super().load_weight_hook(module, incompatible_keys)
        scale = float(self.alpha) / self.lora_dim
        if not math.isclose(scale, self.scale, rel_tol=_ROUNDING):
            self.scale = scale


def _check_layer(lora_name: str, layer: Any) -> None:
    """Raises ValueError for convolutions that LyCORIS's bypass does not compute."""
    if not isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return
    if layer.groups != 1 or any(each != 1 for each in layer.dilation) or layer.padding_mode != "zeros":
        raise ValueError(
            f"{lora_name}: a convolution with groups, dilation or a padding_mode has no bypass in LyCORIS; "
            "exclude the layer in the preset, or write bins=2"
        )
