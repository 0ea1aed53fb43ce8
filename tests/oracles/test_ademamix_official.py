"""The AdEMAMix oracle against pytorch_optimizer's, float64, 300 steps with a changing lr.

Its warm-ups are off and its decay is decoupled. With its `cautious` it masks the short average alone: not ours.
"""

import importlib.metadata

import pytest

from tests.oracles.dual_momentum import AdEMAMix
from tests.support.official import SHAPES, TOL, drift

pytorch_optimizer = pytest.importorskip("pytorch_optimizer")


@pytest.mark.skipif(int(importlib.metadata.version("pytorch_optimizer").partition(".")[0]) < 4, reason="older than 4.0")
@pytest.mark.parametrize(("betas", "alpha", "eps"), [((0.9, 0.999, 0.99), 1.0, 1e-8), ((0.7, 0.9, 0.9999), 5.0, 1e-3)])
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ademamix(shape, foreach, betas, alpha, eps):
    def official(params):
        return pytorch_optimizer.AdEMAMix(
            params, lr=1.0, betas=betas, alpha=alpha, eps=eps, weight_decay=0.1, weight_decouple=True, foreach=foreach
        )

    assert drift(AdEMAMix(betas, alpha, eps, 0.1), official, shape) <= TOL
