"""The Newton-Schulz iteration: singular values into the known band, and every matrix of a batch for itself."""

import numpy as np
import pytest
import torch

from hina_kohya.numerics.newton_schulz import orthogonalise
from tests.oracles import muon
from tests.support.spectra import matrices, spectrum

SHAPES = [(5, 5), (4, 40), (40, 4), (16, 17), (2, 3), (1, 6), (6, 1)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@each_shape
@pytest.mark.parametrize("rounds", [1, 2, 5, 8])
def test_is_the_iteration_and_its_exact_value(shape, rounds):
    x = matrices(3, *shape)
    for mine, each in zip(orthogonalise(x, rounds), x, strict=True):
        np.testing.assert_allclose(mine, muon.newton_schulz(each.numpy(), rounds), rtol=0, atol=1e-11)
        np.testing.assert_allclose(mine, muon.svd(each.numpy(), rounds), rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(8, 320), (320, 8), (12, 12), (32, 40)], ids=str)
def test_singular_values_reach_the_band(shape, dtype):
    low, high = muon.BAND
    values = np.geomspace(1, 2e-3 * np.sqrt(min(shape)), min(shape))
    out = orthogonalise(spectrum(*shape, values)[None].to(dtype))[0].double()
    found = torch.linalg.svdvals(out)
    assert found.min() >= low
    assert found.max() <= high
    # The singular vectors stay: out is the polar factor up to the band.
    polar = torch.from_numpy(muon.polar(spectrum(*shape, values).numpy()))
    assert torch.linalg.matrix_norm(out - polar, 2) <= max(1 - low, high - 1) + 1e-3


@pytest.mark.parametrize("decades", [0, 2, 4, 8])
@pytest.mark.parametrize("shape", [(8, 320), (64, 64)], ids=str)
def test_float32_is_good_enough_for_any_spectrum(shape, decades):
    """What the Gram matrix squares away in float32 is a thousandth of the band, even where singular values vanish."""
    x = spectrum(*shape, np.geomspace(1, 10.0**-decades, min(shape)))[None]
    off = orthogonalise(x.float()).double() - orthogonalise(x)
    assert torch.linalg.matrix_norm(off, 2) <= 5e-3


def test_rank_deficient_matrices_stay_rank_deficient():
    x = spectrum(8, 40, [1.0, 0.5])[None]
    for out in (orthogonalise(x), orthogonalise(x.float()).double()):
        found = torch.linalg.svdvals(out)[0]
        assert found[:2].min() >= muon.BAND[0]
        assert found[2:].max() <= 1e-3


@each_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_gives_zero(shape, dtype):
    assert torch.equal(orthogonalise(torch.zeros(2, *shape, dtype=dtype)), torch.zeros(2, *shape, dtype=dtype))


@each_shape
def test_transposition(shape):
    x = matrices(3, *shape)
    torch.testing.assert_close(orthogonalise(x.mT.contiguous()).mT, orthogonalise(x), rtol=0, atol=1e-12)


def test_rotation_of_either_side():
    x, left, right = matrices(3, 6, 9), *(torch.linalg.qr(matrices(k, k, seed=k))[0] for k in (6, 9))
    torch.testing.assert_close(orthogonalise(left @ x @ right), left @ orthogonalise(x) @ right, rtol=0, atol=1e-11)


@pytest.mark.parametrize("power", [-124, -60, -1, 3, 60, 120])
def test_scale(power):
    """By powers of two, so bit for bit; below 2^-124 the entries of a quarter would lose digits."""
    x = matrices(3, 6, 9, dtype=torch.float32).clamp(-3, 3)
    x = x.where(x.abs() > 0.25, 0.25)
    assert torch.equal(orthogonalise(x * 2.0**power), orthogonalise(x))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shape", [(6, 9), (9, 6)], ids=str)
def test_a_bad_matrix_is_alone(shape, bad):
    x = matrices(4, *shape, dtype=torch.float32)
    clean = orthogonalise(x)
    x[2, 1, 3] = bad
    out = orthogonalise(x)
    assert out[2].isnan().all()
    kept = [0, 1, 3]
    assert torch.equal(out[kept], clean[kept])


def test_batches_and_single_matrices():
    x = matrices(2, 3, 5, 7)
    out = orthogonalise(x)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(orthogonalise(x[i, j]), out[i, j], rtol=0, atol=1e-12)
    assert orthogonalise(x[:0]).shape == (0, 3, 5, 7)


def test_the_input_is_not_written_to():
    x = matrices(2, 5, 5)
    kept = x.clone()
    orthogonalise(x)
    assert torch.equal(x, kept)
