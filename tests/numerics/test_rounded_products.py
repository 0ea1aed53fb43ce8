"""Newton-Schulz with the products of a GPU that was told to be fast: TF32, bf16."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hina_kohya.numerics.newton_schulz import orthogonalise
from tests.oracles import muon
from tests.support.precision import rounded
from tests.support.spectra import spectrum


class RoundedProducts(TorchDispatchMode):
    """Factors of every product have so many bits after the first."""

    def __init__(self, bits):
        super().__init__()
        self.bits, self.products = bits, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            self.products += 1
            first = 1 if "add" in name else 0
            args = (*args[:first], *(rounded(x, self.bits) for x in args[first : first + 2]))
        return func(*args, **(kwargs or {}))


# Shapes of adapters with spectra over so many decades: the table of NUMERICS, section 3, and its transposes
INPUTS = [
    ((8, 1280), 3),
    ((16, 640), 6),
    ((128, 1280), 3),
    ((1280, 8), 3),
    ((640, 16), 6),
    ((64, 64), 4),
    ((8, 1280), 0),
]


@pytest.mark.parametrize("bits", [23, 10, 7], ids=["fp32", "tf32", "bf16"])
@pytest.mark.parametrize(("shape", "decades"), INPUTS, ids=str)
def test_singular_values_stay_in_the_band(shape, decades, bits):
    values = np.geomspace(1, 10.0**-decades, min(shape))
    x = torch.stack([spectrum(*shape, values, seed) for seed in range(3)]).float()
    with RoundedProducts(bits) as mode:
        out = orthogonalise(x)
    assert mode.products == 15
    found = torch.linalg.svdvals(out.double())
    assert found.max() <= muon.BAND[1] * (1.02 if bits == 7 else 1.001)
    expected = muon.on_singular_value(values / np.linalg.norm(values))
    if bits >= 10:  # and none is lost that fp32 lifts
        lifted = torch.from_numpy(np.sort(expected)[::-1].copy())
        assert (found.sort(descending=True).values - lifted).abs().max() <= (0.06 if bits == 10 else 0.002)
