"""One rank for every layer and every sample: what compression without ADLRNS gives, to compare with."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .capture import Statistics, inputs, passes
from .complexity import LightweightScorer
from .compression import factors


def static_ranks(model: nn.Sequential, loader: Iterable[Any], rank: int, two_sided: bool = True) -> nn.Sequential:
    """A copy with each Linear as two of ``rank``, by SVD in the metric of its input E[x x^T] (as
    SVD-LLM), or in both that and E[g g^T]."""
    model = copy.deepcopy(model).eval()
    scorer = LightweightScorer(cells=1)
    scorer.fit_scores(torch.cat([scorer(inputs(batch)) for batch in loader]))
    modules: dict[str, Any] = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    stats = {name: Statistics(1) for name in modules}
    for name, rows in passes(model, modules, loader, None, scorer):
        stats[name].add(rows)
    for name, module in modules.items():
        seen = stats[name]
        if rank > min(module.weight.shape):
            raise ValueError(f"rank = {rank} of {name} must be at most {min(module.weight.shape)}")
        output_metric = seen.output_metric() if two_sided else torch.eye(len(module.weight), dtype=torch.float64)
        down, up = factors(module.weight.detach().double(), seen.xx / seen.rows.sum(), output_metric)
        first, second = nn.Linear(module.in_features, rank, bias=False), nn.Linear(rank, module.out_features)
        with torch.no_grad():
            first.weight.copy_(down[:rank])
            second.weight.copy_(up[:, :rank])
            second.bias.copy_(module.bias if module.bias is not None else torch.zeros(module.out_features))
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, nn.Sequential(first, second).to(module.weight))
    return model
