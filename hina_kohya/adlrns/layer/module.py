"""A Linear or convolution as W ~ up @ down, of which each sample uses as many directions as its complexity asks for."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .complexity import GateNetwork, LightweightScorer, cells_of
from .grouped import CellContext, group, run_grouped
from .matrices import MatricesOfCells, factor, run_matrices
from .precision import KeepsBuffers
from .scheduling import RankScheduler

CONVOLUTIONS: list[Any] = [F.linear, F.conv1d, F.conv2d, F.conv3d]


class DynamicLowRankLayer(KeepsBuffers):
    """``y = up[:, :r] @ (down[:r] @ x + shift[k, :r]) + bias[k]`` for a sample in cell k of rank r = ranks[k].

    ``layer(x, budget=5.0) -> (output, current_rank)``: current_rank is the mean rank over the samples of the batch (a
    float; nan for an empty batch), the budget the mean MACs of a sample in **percent of the dense layer's**. Without a
    budget the last `set_budget` holds, at first full rank. Each output row depends on its own sample only.

    in_features, out_features : channels, for a convolution
    r_max, r_min : most and fewest directions of a sample
    kernel_size  : () is a Linear, (3,), (3, 3), ... a convolution, with its stride, padding and dilation
    cells        : complexity cells, see `LightweightScorer`; `calibrate` makes them and their gains from a sample batch
    scorer_hidden, num_gate_blocks : with gate blocks, cells and ranks are learned: training runs all directions
        under soft gates (`energy` is then their share, with a gradient), eval runs each cell's open blocks only
    context      : set where the layer is part of a `CompressedModel`, which then decides the cells
    """

    ranks: Tensor
    gain: Tensor
    share: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        r_max: int,
        r_min: int = 4,
        bias: bool = True,
        cells: int = 6,
        scheduler: str = "energy_aware",
        scorer_hidden: int = 0,
        num_gate_blocks: int = 0,
        kernel_size: tuple[int, ...] = (),
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        context: CellContext | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        inner = in_features * math.prod(kernel_size)
        if min(in_features, out_features) < 1 or not 1 <= r_max <= min(inner, out_features):
            raise ValueError(
                f"r_max = {r_max} of a layer {inner} -> {out_features} must be from 1 to {min(inner, out_features)}"
            )
        if scorer_hidden and not num_gate_blocks:
            raise ValueError(f"scorer_hidden = {scorer_hidden} learns through gates only; set num_gate_blocks, e.g. 6")
        if kernel_size and r_min < 1:
            raise ValueError(f"r_min = {r_min} of a convolution must be at least 1")
        self.scheduler = RankScheduler(scheduler, r_min, r_max)
        self.in_features, self.out_features, self.kernel_size = in_features, out_features, tuple(kernel_size)
        self.inner, self.r_min, self.r_max, self.dims = inner, r_min, r_max, len(kernel_size)
        self.how = {"stride": stride, "padding": padding, "dilation": dilation} if kernel_size else {}
        self.context = context
        self.cells = cells = num_gate_blocks or cells
        self.scorer = self.gate = None
        if context is None:
            self.scorer = LightweightScorer(in_features, scorer_hidden, cells, 1 if kernel_size else -1)
            self.gate = GateNetwork(num_gate_blocks) if num_gate_blocks else None
        where = {"device": device, "dtype": dtype}
        self.down = nn.Parameter(factor(r_max, inner, transposed=not kernel_size, **where))
        self.up = nn.Parameter(factor(out_features, r_max, transposed=not kernel_size, **where))
        # The last row is that of samples without a finite score.
        self.shift = nn.Parameter(torch.zeros(cells + 1, r_max, **where)) if bias else None
        self.bias = nn.Parameter(torch.zeros(cells + 1, out_features, **where)) if bias else None
        nn.init.normal_(self.up, std=(3 * r_max) ** -0.5)  # outputs as large as those of nn.Linear
        with torch.no_grad():
            self.down.copy_(nn.init.orthogonal_(torch.empty(r_max, inner)))
        ranks = [*self._block_ends(), r_max] if self.gate else [r_max] * (cells + 1)
        self.register_buffer("ranks", torch.tensor(ranks))
        self.register_buffer("gain", torch.zeros(cells, r_max, dtype=torch.float64))
        self.register_buffer("share", torch.zeros(cells, dtype=torch.float64))
        self._plans: dict[float | None, tuple[int, ...]] = {}
        self._matrices = MatricesOfCells()
        self.energy: Tensor | None = None
        self.to(device)

    # What it costs.

    @property
    def dense_macs(self) -> int:
        """Of one position: a row of a Linear, an output pixel of a convolution."""
        return self.inner * self.out_features

    @property
    def direction_macs(self) -> int:
        return self.inner + self.out_features

    @property
    def full_rank(self) -> int:
        return min(self.inner, self.out_features)

    @property
    def least_budget(self) -> float:
        """The smallest budget there is, that of r_min."""
        return 100 * self.r_min * self.direction_macs / self.dense_macs

    @property
    def planned(self) -> float:
        """Mean cost over the calibration samples at the present ranks, in the budget's unit."""
        ranks = self.ranks[:-1].double()
        mean = float((ranks * self.share).sum() / self.share.sum()) if self.share.any() else float(ranks[0])
        return 100 * mean * self.direction_macs / self.dense_macs

    # Planning.

    @torch.no_grad()
    def calibrate(self, x: Tensor, refit: bool = True) -> None:
        """Cells (if ``refit``), shares and gains from a batch of inputs, with equal weight on all outputs."""
        if self.scorer is None:
            raise ValueError("this layer is part of a CompressedModel, which decides the cells; calibrate that")
        if refit:
            score = self.scorer.fit(x)
            if self.gate is not None:
                self.gate.fit(score)
        cell = self._cell(x)
        hidden = self._project(x, self.down, None)
        square = hidden.double().square().movedim(1 if self.dims else -1, -1)
        gain = square.reshape(len(x), -1, self.r_max).mean(1) * self.up.double().square().sum(0)
        counts = torch.bincount(cell, minlength=self.cells + 1)[: self.cells]
        total = gain.new_zeros(self.cells + 1, self.r_max).index_add_(0, cell, gain)[: self.cells]
        self.set_gains(total / counts.clamp_min(1)[:, None], counts)

    @torch.no_grad()
    def set_gains(self, gain: Tensor, counts: Tensor) -> None:
        """gain: [cells, r_max]; counts: [cells], samples seen in each."""
        if gain.shape != self.gain.shape or not gain.isfinite().all():
            raise ValueError(f"gains must be finite, of shape {tuple(self.gain.shape)}; got {tuple(gain.shape)}")
        self.gain.copy_(gain)
        self.share.copy_((counts / counts.sum()).clamp_min(1e-9))  # a cell that never occurs still needs a rank
        self._forget()

    def set_budget(self, budget: float) -> None:
        """Hold a budget (percent of the dense MACs) until the next call of this."""
        self.ranks.copy_(torch.tensor(self.plan(budget)))
        self._plans.pop(None, None)

    def plan(self, budget: float | None = None) -> tuple[int, ...]:
        """The rank of each cell, and of samples without a finite score; kept until gains, share or ranks change."""
        if budget not in self._plans:
            self._plans[budget] = self._allocate(budget)
        return self._plans[budget]

    def _allocate(self, budget: float | None) -> tuple[int, ...]:
        if budget is None:
            return tuple(self.ranks.tolist())
        gain, share = self.gain, self.share
        if not share.any():  # not calibrated: every sample is in cell 0, and the weights alone tell the gains
            norms = self.up.detach().double().square().sum(0) * self.down.detach().double().square().sum(1)
            gain, share = norms.expand_as(gain), torch.full_like(share, 1e-9)
            share[0] = 1.0
        if not gain.isfinite().all():
            raise ValueError("a weight is not finite, so there is no gain to plan with; load sound weights")
        ranks = self.scheduler(gain, 100 * self.direction_macs / self.dense_macs, share, budget)
        return (*ranks.tolist(), self.r_max)

    @torch.no_grad()
    def trim(self, r_max: int) -> None:
        """Forget all directions after the first ``r_max``; no budget will buy them again."""
        self.r_max = self.scheduler.r_max = r_max = max(r_max, self.r_min, 1)
        self.down, self.up = nn.Parameter(self.down[:r_max].clone()), nn.Parameter(self.up[:, :r_max].clone())
        if self.shift is not None:
            self.shift = nn.Parameter(self.shift[:, :r_max].clone())
        self.gain = self.gain[:, :r_max].clone()
        self.ranks = self.ranks.clamp(max=r_max)
        self._forget()

    def _forget(self) -> None:
        self._plans.clear()
        self._matrices.forget()

    def _block_ends(self) -> list[int]:
        steps = self.cells - 1
        return [self.r_min + (self.r_max - self.r_min) * b // steps for b in range(self.cells)]

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._forget()

    def _apply(self, *args, **kwargs) -> Any:
        self._forget()  # what is kept would hold the memory that the weights leave
        return super()._apply(*args, **kwargs)

    # Running.

    def forward(self, x: Tensor, budget: float | None = None) -> Any:
        """(output, mean rank); the output alone within a `CompressedModel`."""
        if self.gate is not None and self.training:
            if budget is not None:
                raise ValueError(f"budget = {budget}: gates learn their own cost in training; budgets are for eval")
            return self._soft(x)
        if self.context is None:
            groups = group(*self._score(x))
        elif self.context.groups is None or self.context.groups.samples != len(x):
            raise ValueError(
                f"a batch of {len(x)} samples came to a layer of a CompressedModel whose own batch it is not; call "
                "the model itself, and keep samples along dimension 0"
            )
        else:
            groups = self.context.groups
        plan, samples = self.plan(budget), groups.samples
        device = "cpu" if x.is_cpu else x.device.type  # making the name takes a CPU as long as a small product
        if self.dims or torch.is_grad_enabled() or torch.is_autocast_enabled(device):
            y = run_grouped(x, groups, lambda rows, k: self._one(rows, k, plan[k], samples))
        else:
            y = run_matrices(x, groups, self._matrices(plan, self.down, self.shift, self.up, self.bias))
        spent = sum([plan[k] * (stop - start) for k, start, stop in groups.spans])
        if self.context is None:
            return y, spent / samples if samples else math.nan
        if samples:
            self.context.macs += spent * self.direction_macs * (y.numel() // (samples * self.out_features))
        return y

    def _score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [N], and the edges [cells] between which they are in a cell."""
        if torch.is_grad_enabled():  # no_grad takes as long as a small product, where it changes nothing, too
            with torch.no_grad():
                return self._score(x)
        assert self.scorer is not None
        return self.scorer(x), self.scorer.edges if self.gate is None else self.gate.edges()

    def _cell(self, x: Tensor) -> Tensor:
        return cells_of(*self._score(x))

    def _one(self, x: Tensor, k: int, r: int, samples: int) -> Tensor:
        """x: samples of one cell."""
        shift = None if self.shift is None else self.shift[k, :r]
        if self.dims:
            down, up = self.down[:r], self.up[:, :r].reshape(self.out_features, r, *(1,) * self.dims)
        else:  # sliced so that gradients come in the order of their parameters, which saves copies
            down, up = self.down.T[:, :r].T, self.up.T[:r].T
        hidden = self._project(x, down, shift)
        if self.scheduler.kind == "adaptive" and self.training and hidden.requires_grad and k < self.cells:
            seen = hidden.detach()
            hidden.register_hook(lambda grad: self._follow(k, grad * samples * seen))
        return CONVOLUTIONS[self.dims](hidden, up, None if self.bias is None else self.bias[k])

    def _project(self, x: Tensor, down: Tensor, shift: Tensor | None) -> Tensor:
        if not self.dims:
            return F.linear(x, down, shift)
        return CONVOLUTIONS[self.dims](x, down.view(-1, self.in_features, *self.kernel_size), shift, **self.how)

    def _soft(self, x: Tensor) -> tuple[Tensor, float]:
        """All directions, each under its block's gate."""
        assert self.scorer is not None
        assert self.gate is not None
        score = self.scorer(x)
        cell = cells_of(score, self.gate.edges())
        gates = self.gate(score)
        ends = self._block_ends()
        sizes = torch.tensor([end - start for start, end in zip([0, *ends], ends, strict=False)], device=x.device)
        weight = gates.repeat_interleave(sizes, 1)
        soft_rank = (gates * sizes).sum(1).mean()
        self.energy = soft_rank * self.direction_macs / self.dense_macs
        hidden = self._project(x, self.down, None)
        along = (slice(None), slice(None), *(None,) * self.dims)
        if not self.dims:
            along = (slice(None), *(None,) * (x.dim() - 2), slice(None))
        shift, bias = self.shift, self.bias
        if shift is not None:
            hidden = hidden + shift[cell][along]
        up = self.up.view(self.out_features, self.r_max, *(1,) * self.dims)
        y = CONVOLUTIONS[self.dims](hidden * weight[along].to(hidden.dtype), up)
        return y if bias is None else y + bias[cell][along], float(soft_rank.detach())

    @torch.no_grad()
    def _follow(self, k: int, seen: Tensor) -> None:
        """Gains from the training backward: dL/dh * h is (g.u)(v.x) of each sample; directions not run keep theirs."""
        r = seen.shape[1 if self.dims else -1]
        square = seen.double().square().movedim(1 if self.dims else -1, -1).flatten(0, -2).mean(0)
        self.gain[k, :r] = self.scheduler.blend(self.gain[k, :r], square)
        for budget in [b for b in self._plans if b is not None]:
            del self._plans[budget]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "energy": None}  # it belongs to a graph, which cannot be copied

    def extra_repr(self) -> str:
        kind = f"kernel_size={self.kernel_size}, " if self.dims else ""
        ranks = f"r_min={self.r_min}, r_max={self.r_max}, ranks={self.plan()}"
        return f"{self.in_features}, {self.out_features}, {kind}{ranks}"
