"""How complex is a sample: one scalar score, the cell it falls in, and gates that open as it rises."""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .precision import KeepsBuffers

# Tensors, as an operation with a number takes twice as long; of no dimensions, to join those of any device.
TINY = torch.tensor(torch.finfo(torch.float32).tiny, device="cpu")
INFINITY = torch.tensor(math.inf, device="cpu")


class LightweightScorer(KeepsBuffers):
    """The score of a sample is its variance and a little of its squared mean, twice what float32 was seen to round off,
    which keeps it above zero. Cells are quantiles of it over the fitted samples.

    Without parameters (``hidden_dim`` 0, the default) there is nothing to learn. With them the score is multiplied by
    exp(2 f) of a small network f on the standardised features, taken as -20 or 20 where it is beyond them; f starts at
    zero and learns through a `GateNetwork`.

    in_features : features of a sample, needed for ``hidden_dim`` only
    cells       : how many cells; until `fit` all samples fall in cell 0
    feature_dim : where a sample has its features: -1, or 1 for images

    A sample without a finite score falls in cell number ``cells``, which every layer runs at full rank. Inputs are
    never changed.
    """

    edges: Tensor

    def __init__(self, in_features: int = 0, hidden_dim: int = 0, cells: int = 6, feature_dim: int = -1):
        super().__init__()
        if cells < 1:
            raise ValueError(f"cells = {cells} must be at least 1")
        if hidden_dim and in_features < 1:
            raise ValueError(f"in_features = {in_features} must be given for a scorer with hidden_dim = {hidden_dim}")
        self.cells, self.feature_dim = cells, feature_dim
        self.register_buffer("edges", torch.full((cells,), math.inf, dtype=torch.float32))  # upper ends
        self.learned = None
        if hidden_dim:
            self.learned = nn.Sequential(nn.Linear(in_features, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 1))
            last = cast(nn.Linear, self.learned[2])
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, ...], floating -> scores [N], float32; infinite for a sample with a value that is not finite.

        With one cell there is nothing to tell apart, and x may be whole numbers, such as tokens."""
        if self.cells == 1 and not x.is_floating_point() and not x.is_complex():
            return torch.zeros(len(x), device=x.device)
        if not x.is_floating_point() or x.dim() < 2:
            raise ValueError(
                f"the input is {x.dtype} of shape {tuple(x.shape)}; a score needs floats, [N, features...]; whole "
                "numbers can be the input with cells=1 only"
            )
        # Not Tensor.var, which takes as long as a whole layer on a CPU; and one dimension after another, as float32
        # would lose a thousandth in a single sum of an image's squares.
        total = norm = x.float().contiguous()  # in another order it would round off more
        count = longest = 1
        while total.dim() > 1:
            size = total.shape[-1]
            count, longest = count * size, max(longest, size)
            total, norm = total.sum(-1), torch.linalg.vector_norm(norm, dim=-1)
        count = max(1, count)  # a sample of no tokens has no values
        square = torch.add(TINY, norm * norm, alpha=1 / count)
        rounded = 1e-6 + 4e-9 * longest  # twice what was seen
        score = torch.addcmul(square, total, total, value=(rounded - 1) / count**2)
        if self.learned is not None:
            features = x.float().movedim(self.feature_dim, -1)
            each = features.flatten(1, -2).mean(1) if features.dim() > 2 else features
            standardised = each / log_deviation(score).exp()[:, None]
            learned = self.learned(standardised.to(next(self.learned.parameters()).dtype))[:, 0].float()
            score = score * (2 * learned.clamp(-20, 20)).exp()  # unbounded, a score would be infinite, its gradient NaN
        return torch.fmin(score, INFINITY)  # of NaN and infinity it is infinity

    @torch.no_grad()
    def fit(self, x: Tensor) -> Tensor:
        """Take the quantiles of the samples' scores as edges; returns the scores."""
        score = self(x)
        self.fit_scores(score)
        return score

    @torch.no_grad()
    def fit_scores(self, score: Tensor) -> None:
        self.edges[:-1] = quantiles(score, self.cells)

    @torch.no_grad()
    def cell(self, x: Tensor) -> Tensor:
        """[N], in [0, cells]; a pure function of each sample and the edges."""
        return cells_of(self(x), self.edges)


def cells_of(score: Tensor, edges: Tensor) -> Tensor:
    """edges: [cells], the last infinite -> [N]; infinity is above all edges."""
    return torch.bucketize(score.detach(), edges.detach(), right=True)


def quantiles(score: Tensor, parts: int) -> Tensor:
    """[N] -> [parts - 1], ascending: what divides the finite scores into parts of equal size"""
    finite = score[score.isfinite()].sort().values
    if not len(finite):
        raise ValueError("no sample has a finite score; the calibration data is empty or not finite")
    return finite[torch.arange(1, parts, device=score.device) * len(finite) // parts]


def log_deviation(score: Tensor) -> Tensor:
    """[N] -> [N], the log of the standard deviation that a score stands for"""
    return score.clamp_min(torch.finfo(torch.float32).tiny).log() / 2


class GateNetwork(nn.Module):
    """Blocks of directions that open one after another as the score rises; the scores at which they do are learned, as
    logs of standard deviations.

    Block 0 is always open, block b opens at ``edges()[b - 1]``. `forward` gives soft gates for training; outside of
    training a block is open or not, which makes ``num_blocks`` cells.
    """

    def __init__(self, num_blocks: int = 6, temperature: float = 0.25):
        super().__init__()
        if num_blocks < 2 or not temperature > 0:
            raise ValueError(f"num_blocks = {num_blocks}, temperature = {temperature}: at least 2 and above 0")
        self.num_blocks, self.temperature = num_blocks, temperature
        self.first = nn.Parameter(torch.zeros(1))
        self.steps = nn.Parameter(torch.zeros(num_blocks - 2))  # gaps, as softplus: the edges stay in order

    def edges(self) -> Tensor:
        """[num_blocks], ascending, the score at which each block's cell ends: the last at infinity"""
        logs = self._logs()
        return torch.cat([(2 * logs).exp(), logs.new_full((1,), math.inf)])

    def _logs(self) -> Tensor:
        first, steps = self.first.float(), self.steps.float()  # scores in half precision would overflow
        return torch.cat([first, first + F.softplus(steps).cumsum(0)])

    def forward(self, score: Tensor) -> Tensor:
        """[N] -> [N, num_blocks] in (0, 1], falling along the blocks."""
        soft = torch.sigmoid((log_deviation(score)[:, None] - self._logs()) / self.temperature)
        return torch.cat([torch.ones_like(soft[:, :1]), soft], 1)

    @torch.no_grad()
    def fit(self, score: Tensor) -> None:
        """Start from the quantiles of the scores."""
        logs = log_deviation(quantiles(score, self.num_blocks))
        self.first.copy_(logs[:1])
        self.steps.copy_(logs.diff().clamp_min(1e-3).expm1().log())
