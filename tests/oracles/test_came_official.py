"""The CAME oracle against the authors' package, float64, 300 steps with a changing lr."""

import numpy as np
import pytest
import torch

from tests.oracles.came import CAME
from tests.support.official import TOL, drift, gradients, lr_at

came_pytorch = pytest.importorskip("came_pytorch")

OPTIONS = {"betas": (0.8, 0.99, 0.995), "eps": (1e-10, 1e-6), "clip_threshold": 0.7, "weight_decay": 0.1}
options = pytest.mark.parametrize("options", [{}, OPTIONS], ids=["defaults", "others"])


@options
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (10, 1), (1, 9), (16,), (1,)], ids=str)
def test_vectors_and_matrices(shape, sparse, options):
    oracle = CAME(**options, count_zeros=True)
    assert drift(oracle, lambda params: came_pytorch.CAME(params, lr=1.0, **options), shape, sparse) <= TOL


@options
@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (6, 4, 1, 1)], ids=str)
def test_convolutions_are_the_authors_on_the_flattened_matrix(shape, options):
    """The authors' code factors the last two axes, so on the convolution itself it does something else."""
    p = np.random.default_rng(1).standard_normal(shape)
    whole, flat = torch.nn.Parameter(torch.tensor(p)), torch.nn.Parameter(torch.tensor(p).flatten(1))
    official = came_pytorch.CAME([whole, flat], lr=1.0, **options)
    oracle = CAME(**options)
    for t, g in enumerate(gradients(shape)):
        official.param_groups[0]["lr"] = lr_at(t)
        whole.grad, flat.grad = torch.tensor(g), torch.tensor(g).flatten(1)
        official.step()
        p = oracle.step(p, g, lr_at(t))
    np.testing.assert_allclose(p, flat.detach().numpy().reshape(shape), rtol=0, atol=TOL * np.abs(p).max())
    assert np.abs(p - whole.detach().numpy()).max() > 1e-3 * np.abs(p).max()
