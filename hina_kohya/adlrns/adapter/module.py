"""`AdlrnsModule`: LyCORIS's adapter of one layer, with other directions of one pair of factors in every state."""

import contextvars
import functools
import math
from typing import Any

import torch
from lycoris.modules.base import LycorisBaseModule
from torch import Tensor, nn

from hina_kohya.adlrns.adapter import execution
from hina_kohya.adlrns.adapter.arguments import check_module
from hina_kohya.adlrns.adapter.execution import Batch, Directions
from hina_kohya.adlrns.adapter.files import share_of_energy
from hina_kohya.adlrns.adapter.gains import columns
from hina_kohya.adlrns.adapter.states import States

# What a network that is being made tells its modules: LyCORIS hands them a fixed list of arguments.
MAKING: contextvars.ContextVar[States | None] = contextvars.ContextVar("hina_adlrns_making", default=None)
_TEXT_ENCODER = "lora_te"
_ALWAYS = Batch((0,))
_NARROW = 64  # directions up to which, in training, fewer products cost more than they save: time does not follow rank


class _Factor(nn.Module):
    def __init__(self, *shape: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))


class AdlrnsModule(LycorisBaseModule):
    """W x + scale * up[:, S] down[S] x, S the directions kept in the sample's state; scale = alpha / R, whatever S is.

    lora_up [out, R, 1..], lora_down [R, in / groups, k..]; adlrns_kept [K, R] bool; adlrns_stats [2, K, R]: gain and
    energy of each direction in each state, in arbitrary units. A text encoder's module has one state. Merged, it is the
    mean over the states: each direction weighted by the share of its energy in states that keep it.
    """

    name = "adlrns"
    support_module = {"linear", "conv1d", "conv2d", "conv3d"}
    weight_list = ["lora_up.weight", "lora_down.weight", "alpha", "adlrns_kept", "adlrns_stats"]
    weight_list_det = ["adlrns_kept"]
    alpha: Tensor
    adlrns_kept: Tensor
    adlrns_stats: Tensor
    shape: tuple[int, ...]

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
        rs_lora: bool = False,
        states: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(lora_name, org_module, multiplier, dropout, rank_dropout, module_dropout)
        if self.module_type not in self.support_module:
            raise ValueError(f"{lora_name}: {self.module_type} is not supported by adlrns; exclude it in the preset")
        check_module(lora_name, lora_dim, {**kwargs, "use_tucker": use_tucker})
        self.states = MAKING.get() or States(1)
        count = states or (1 if lora_name.startswith(_TEXT_ENCODER) else self.states.count)
        self.lora_dim = lora_dim
        out, *inner = self._sizes(org_module)
        self.lora_up = _Factor(out, lora_dim, *[1] * (len(inner) - 1))
        self.lora_down = _Factor(lora_dim, *inner)
        nn.init.kaiming_uniform_(self.lora_down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_up.weight)
        alpha = (float(alpha or 0) or lora_dim) * (math.sqrt(lora_dim) if rs_lora else 1)
        self.register_buffer("alpha", torch.tensor(alpha))
        self.scale = alpha / lora_dim
        self.register_buffer("adlrns_kept", torch.ones(count, lora_dim, dtype=torch.bool))
        falling = 1 - torch.arange(lora_dim) / lora_dim
        self.register_buffer("adlrns_stats", torch.stack([falling, torch.ones(lora_dim)])[:, None].repeat(1, count, 1))
        self.window: Tensor | None = None
        self.grams: Tensor | None = None  # sums of `balance`, until there is a basis
        self.basis: Tensor | None = None  # [2, R, R] of `balance`: what is trained are the factors before it
        self._plan: tuple[torch.device, list[Directions]] | None = None
        self._unions: dict[frozenset[int], Directions] = {}

    def _sizes(self, layer: Any) -> tuple[int, ...]:
        """(out, in / groups, k..) of the weight, which LyCORIS 3.4 has wrong with groups; also sets the product."""
        if self.module_type == "linear":
            self.product = execution.Product(self.op, {})
            return layer.out_features, layer.in_features
        if layer.padding_mode != "zeros":
            raise ValueError(
                f"{self.lora_name}: padding_mode {layer.padding_mode!r} is not supported; exclude the layer"
            )
        where = {name: getattr(layer, name) for name in ("stride", "padding", "dilation")}
        self.product = execution.Product(self.op, where, layer.groups)
        self.shape = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
        return self.shape

    @classmethod
    def make_module_from_state_dict(cls, lora_name: str, orig_module: nn.Module, *weights: Any) -> "AdlrnsModule":
        _, down, alpha, kept, _ = weights
        if down is None or alpha is None:
            raise ValueError(f"{lora_name} has a table of directions, but not both factors and alpha: not a whole file")
        module = cls(lora_name, orig_module, 1.0, down.shape[0], float(alpha), states=kept.shape[0])
        tensors = dict(zip(cls.weight_list, weights, strict=True))
        module.load_state_dict({name: tensor for name, tensor in tensors.items() if tensor is not None}, strict=False)
        return module

    def load_weight_prehook(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        """Files of a plain LoRA have no table: ours stays. Raises ValueError where a table does not fit."""
        for name in ("adlrns_kept", "adlrns_stats"):
            own, given = getattr(self, name), state_dict.get(f"{prefix}{name}")
            if given is None and f"{prefix}lora_up.weight" in state_dict:
                state_dict[f"{prefix}{name}"] = own
            elif given is not None and given.shape != own.shape:
                raise ValueError(
                    f"{prefix}{name} is {tuple(given.shape)}, this network's {tuple(own.shape)}; "
                    f"write bins={given.shape[-2]} and network_dim={given.shape[-1]} as the file was made with"
                )

    def load_weight_hook(self, module: nn.Module, incompatible_keys: Any) -> None:
        self._plan = None
        self.scale = float(self.alpha) / self.lora_dim

    def set_table(self, kept: Tensor, gain: Tensor, energy: Tensor) -> None:
        """[K, R] each."""
        self.adlrns_kept.copy_(kept)
        self.adlrns_stats.copy_(torch.stack([gain, energy]))
        self._plan = None

    def set_basis(self, basis: Tensor | None) -> None:
        """Of the same product; the table is that of its directions."""
        self.basis = None if basis is None else basis.float()

    def plan(self, device: torch.device) -> list[Directions]:
        """The directions of each state."""
        if self._plan is None or self._plan[0] != device:
            self._plan = device, execution.plan(self.adlrns_kept, device)
            self._unions = {}
        return self._plan[1]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base = self.org_forward(x, *args, **kwargs)
        if self.module_dropout and self.training and torch.rand(()) < self.module_dropout:
            return base + self._none().to(base.dtype)
        return base + self.bypass_forward_diff(x, self.multiplier).to(base.dtype)

    def bypass_forward(self, x: Tensor, scale: float = 1) -> Tensor:
        return self.org_forward(x) + self.bypass_forward_diff(x, scale)

    def bypass_forward_diff(self, x: Tensor, scale: float = 1) -> Tensor:
        batch = _ALWAYS if len(self.adlrns_kept) == 1 else self.states.batch(self.training)
        run = functools.partial(self._run, scale=scale * self.scale)
        training = self.training and torch.is_grad_enabled()
        if batch is None:
            diff = run(x, Directions(self.lora_dim))
        elif training and (self.states.probing or self.lora_dim <= _NARROW):
            diff = run(x, Directions(self.lora_dim), batch=batch)
        elif self.states.whole and batch.mixed:
            diff = run(x, self._union(batch, x.device))
        else:
            diff = execution.grouped(x, batch, self.plan(x.device), run)
        return self.drop(diff)

    def _run(self, x: Tensor, directions: Directions, scale: float, batch: Batch | None = None) -> Tensor:
        """batch: whose states decide, of all directions, which ones reach the output."""
        if not directions.count:
            weight = torch.empty(self.shape, device="meta")
            where = {} if self.product.linear else {**self.product.where, "groups": self.product.groups}
            like = self.product.op(torch.empty(x.shape, device="meta"), weight, None, **where)
            return x.new_zeros(like.shape) + self._none().to(x.dtype)
        hidden = self.product.hidden(x, self.down(directions).to(x)) * scale
        if batch is not None:
            hidden = self._kept(hidden, batch)
        if self.rank_dropout and self.training:
            hidden = hidden * self._rank_mask(hidden, directions.count)
        return self.product.expand(hidden, self.up(directions).to(x))

    def up(self, directions: Directions) -> Tensor:
        """[out, r, 1..] in the basis that kept directions are of."""
        factor = self.lora_up.weight
        if self.basis is None:
            return directions.of(factor, 1)
        mixed = _product(factor.flatten(1), directions.of(self.basis[0].to(factor.device), 1))
        return mixed.view(*mixed.shape, *factor.shape[2:])

    def down(self, directions: Directions) -> Tensor:
        """[r, in / groups, k..] in the basis that kept directions are of."""
        factor = self.lora_down.weight
        if self.basis is None:
            return directions.of(factor, 0)
        return _product(directions.of(self.basis[1].to(factor.device), 0), factor.flatten(1)).view(
            -1, *factor.shape[1:]
        )

    def _kept(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Hidden values of all directions, those that are not kept as zeros; a probing step notes their gradients."""
        kept = self.adlrns_kept
        if self.states.whole and batch.mixed:
            kept = kept[list(set(batch.states))].any(0)
        elif batch.mixed:
            kept = kept[batch.tensor(hidden.shape[0], hidden.device)]
        else:
            kept = kept[batch.states[0]]
        through = self.product.a_direction(kept.to(hidden), hidden.dim()) * hidden
        if self.states.probing and through.requires_grad:
            through.register_hook(functools.partial(self._observe, hidden.detach(), batch))
        return through

    def _none(self) -> Tensor:
        """0, of which every factor gets a gradient of zeros: a process without one would hang the others."""
        return self.lora_up.weight[:, :0].sum() + self.lora_down.weight[:0].sum()

    def _rank_mask(self, hidden: Tensor, rank: int) -> Tensor:
        mask = (torch.rand(rank, device=hidden.device) > self.rank_dropout).to(hidden)
        return self.product.a_direction(mask, hidden.dim())

    def _union(self, batch: Batch, device: torch.device) -> Directions:
        self.plan(device)
        states = frozenset(batch.states)
        if states not in self._unions:
            self._unions[states] = execution.plan(self.adlrns_kept[list(states)].any(0, keepdim=True), device)[0]
        return self._unions[states]

    @torch.no_grad()
    def _observe(self, hidden: Tensor, batch: Batch, gradient: Tensor) -> None:
        samples = len(batch.states) if len(batch.states) > 1 else self.states.samples
        if hidden.shape[0] % samples:
            if batch.mixed:
                return  # shared by samples of several states, so it tells of none of them
            samples = hidden.shape[0]
        hidden, gradient = hidden.float(), gradient.float()
        directional = self.product.a_sample(hidden * gradient, samples) * samples  # of a sample's loss alone
        energy = self.product.a_sample(hidden.square(), samples)
        positions = hidden.numel() / samples / self.lora_dim / self.product.groups
        if self.window is None:
            self.window = self.empty_window().to(hidden.device)
        sensitivity = self.product.a_sample(gradient.square(), samples) * samples**2
        rows = columns(directional, energy, sensitivity, positions)
        self.window.index_add_(0, batch.tensor(samples, hidden.device), rows)
        if self.states.balancing:
            self._add_grams(hidden, gradient * samples)

    def _add_grams(self, hidden: Tensor, gradient: Tensor) -> None:
        rows = torch.stack([self.product.a_position(each) for each in (hidden, gradient)])
        grams = rows.mT @ rows
        grams = grams.where(grams.isfinite().all(), 0)
        self.grams = grams if self.grams is None else self.grams + grams

    def empty_window(self) -> Tensor:
        """Sums of `gains.columns` in each state."""
        return torch.zeros(len(self.adlrns_kept), 2 + 4 * self.lora_dim)

    def macs(self) -> float:
        """Multiply-adds of one direction at one position of the output."""
        return self.lora_down.weight[0].numel() * self.product.groups + self.lora_up.weight.shape[0]

    def get_diff_weight(
        self, multiplier: float = 1.0, shape: Any = None, device: Any = None
    ) -> tuple[Tensor, Tensor | None]:
        whole = Directions(self.lora_dim)
        up, down = self.up(whole).flatten(1), self.down(whole).flatten(1)
        mean = share_of_energy(self.adlrns_kept, self.adlrns_stats[1]).to(up)
        diff = (up * mean) @ down * (self.scale * multiplier)
        return diff.reshape(self.shape if shape is None else shape).to(device or diff.device), None

    def get_merged_weight(
        self, multiplier: float = 1.0, shape: Any = None, device: Any = None
    ) -> tuple[Tensor, Tensor | None]:
        diff, _ = self.get_diff_weight(multiplier, shape, device)
        weight: Any = self.org_weight
        return weight.to(diff.device) + diff, None

    @torch.no_grad()
    def apply_max_norm(self, max_norm: float, device: Any = None) -> Any:
        """Both factors shrink until the norm of all directions together is at most max_norm."""
        up, down = (factor.weight.flatten(1).float() for factor in (self.lora_up, self.lora_down))
        norm = ((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt() * self.scale
        ratio = (max_norm / norm).clamp(max=1)
        for factor in (self.lora_up, self.lora_down):
            factor.weight.mul_(ratio.sqrt())
        return ratio < 1, norm * ratio


def _product(first: Tensor, second: Tensor) -> Tensor:
    """At least in float32, autocast or not: a basis and its inverse have to stay each other's."""
    wide = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    with torch.autocast(first.device.type, enabled=False):
        return first.to(wide) @ second.to(wide)
