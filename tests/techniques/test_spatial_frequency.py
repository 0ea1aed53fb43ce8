"""The spatial low-pass through the real optimizer: against its oracle, and what a filter promises."""

from functools import partial

import numpy as np
import pytest
import torch

from hina_kohya.core.registry import build
from hina_kohya.parameters.roles import resolve
from tests.oracles.adamw import AdamW
from tests.oracles.edge_suppression import Before
from tests.oracles.spatial_frequency import spatial_frequency
from tests.support import promises
from tests.support.adam_chain import optimizer, run, starts
from tests.support.chains import STATES
from tests.support.oracle_runs import DECAY, close, gradients, rate
from tests.support.signals import signal
from tests.support.stepping import SHAPES as EVERY_SHAPE
from tests.support.stepping import make_params

KERNELS = [(3, 3), (1, 3), (3, 1), (2, 2), (4, 4), (5, 5), (4, 7), (16, 16)]
SHAPES = {f"k{h}x{w}.weight": (4, 3, h, w) for h, w in KERNELS} | {
    "lora_unet_c.lora_down.weight": (4, 3, 3, 3),
    "lora_unet_c.lora_up.weight": (6, 4, 1, 1),
    "head.weight": (7, 5),
    "bias": (7,),
}
OPTIONS = [{}, {"preserve": 0.0}, {"preserve": 0.5, "penalty": 0.7}, {"penalty": 1.0}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_against_the_oracle(options):
    grads = gradients(SHAPES, SHAPES, 8)
    final, _ = run("spatial_frequency", SHAPES, grads, **options)
    for name, p in starts(SHAPES).items():
        each = Before(lambda g: spatial_frequency(g, **options), AdamW(), DECAY)
        for step, by_name in enumerate(grads):
            p = each.step(p, by_name[name], rate(step))
        close(final[name], p)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_the_oracle_against_numpys_transform(kernel):
    height, width = kernel
    g = np.random.default_rng(0).normal(size=(2, 3, *kernel))
    f = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    f /= f.max()
    gain = np.where(f > 0.5, 1 - 0.7 * (f - 0.5) / 0.5, 1.0)
    close(spatial_frequency(g, 0.5, 0.7), np.fft.ifft2(np.fft.fft2(g) * gain).real)


def fitted(shape, name="layer.weight", **options):
    return build("spatial_frequency", **options).fit(resolve([name], [shape])[0])


def filtered(x, **options):
    """[N, out, in, kh, kw] through the technique."""
    technique = fitted(x.shape[1:], **options)
    assert technique is not None
    s = signal(grad=x.flatten(2), dtype=x.dtype)
    return technique.apply(s, {}).grad.view(x.shape)


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


ACTING = {
    "lora_unet_c.lora_down.weight": (4, 3, 3, 3),
    "layer.weight": (8, 4, 1, 3),
    "lora_unet_t.lokr_t2": (4, 4, 3, 3),
    "lora_unet_t.lora_mid.weight": (4, 4, 3, 3),
    "lora_unet_f.diff": (8, 4, 3, 3),
}
IDLE = {
    "lora_unet_c.lora_up.weight": (6, 4, 1, 1),
    "head.weight": (7, 5),
    "positions": (1, 77, 8),
    "gain": (),
    "lora_unet_o.oft_blocks": (2, 3, 4, 4),  # BOFT: 4-d, and no kernel
}


def test_only_kernels_have_it():
    for name, shape in ACTING.items():
        technique = fitted(shape, name)
        assert technique is not None
        assert (technique.height, technique.width) == shape[2:], name
    assert not any(fitted(shape, name) for name, shape in IDLE.items())
    assert {name for name, shape in EVERY_SHAPE.items() if fitted(shape, name)} == {"lora_unet_c.lora_down.weight"}


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_what_a_low_pass_promises(kernel):
    x, y = noise(2, 4, 3, *kernel), noise(2, 4, 3, *kernel, seed=1)
    options = {"preserve": 0.5, "penalty": 0.9}
    out = filtered(x, **options)
    constant = x[..., :1, :1].expand(x.shape).contiguous()
    torch.testing.assert_close(filtered(constant, **options), constant, rtol=1e-14, atol=1e-14)
    energy = lambda t: t.square().sum(dim=(-2, -1))
    assert (energy(out) < energy(x)).all()
    torch.testing.assert_close(out.mean(dim=(-2, -1)), x.mean(dim=(-2, -1)))
    torch.testing.assert_close(filtered(2 * x - y, **options), 2 * out - filtered(y, **options))
    assert torch.equal(filtered(x * 2.0**-60, **options), out * 2.0**-60)
    random = torch.Generator().manual_seed(3)
    rows, columns = torch.randperm(4, generator=random), torch.randperm(3, generator=random)
    moved = filtered(x[:, rows][:, :, columns].contiguous(), **options)
    torch.testing.assert_close(moved, out[:, rows][:, :, columns], rtol=1e-13, atol=1e-14)
    for axis in (-2, -1):  # a filter does not know where the kernel begins, nor which side is up
        torch.testing.assert_close(filtered(x.roll(1, axis), **options), out.roll(1, axis))
        torch.testing.assert_close(filtered(x.flip(axis), **options), out.flip(axis))
    assert torch.equal(filtered(x, penalty=0.0), x)


def test_the_highest_frequency_loses_the_penalty_and_the_lower_nothing():
    chess = torch.tensor([[1.0, -1], [-1, 1]], dtype=torch.float64).repeat(2, 2).expand(1, 2, 3, 4, 4).contiguous()
    torch.testing.assert_close(filtered(chess, penalty=0.3), 0.7 * chess)
    stripes = torch.tensor([1.0, -1], dtype=torch.float64).repeat(2).expand(1, 2, 3, 4, 4).contiguous()  # f = 0.71
    torch.testing.assert_close(filtered(stripes, penalty=0.3), stripes, rtol=0, atol=1e-14)
    torch.testing.assert_close(
        filtered(stripes, penalty=0.3, preserve=0.5), (1 - 0.3 * (0.5**0.5 - 0.5) / 0.5) * stripes
    )
    turned = stripes.mT.contiguous()
    torch.testing.assert_close(
        filtered(turned, penalty=0.3, preserve=0.5), filtered(stripes, penalty=0.3, preserve=0.5).mT
    )


@pytest.mark.parametrize("options", [{"penalty": 0.0}, {"penalty": 0.5}, {"preserve": 0.3}], ids=str)
def test_every_option_changes_the_update(options):
    shapes = {"layer.weight": (4, 3, 3, 3)}
    grads = gradients(shapes, shapes, 4)
    finals = [run("spatial_frequency", shapes, grads, **chosen)[0]["layer.weight"] for chosen in ({}, options)]
    assert not np.allclose(*finals, rtol=1e-6)


def convolutions(per_shape):
    return {f"m{i}_{k}.weight": (4, 3, k, k) for i in range(per_shape) for k in (3, 5)}


@pytest.mark.slow
def test_resume_bad_neighbours_zeros_and_cost(monkeypatch):
    make = partial(optimizer, name="spatial_frequency")
    for state in STATES:
        for dtype in (torch.float32, torch.bfloat16):
            params = make_params(dtype, shapes=convolutions(2))
            promises.resumes_exactly(partial(make, state=state, decay=DECAY), params, steps=6)
        promises.bears_zeros(partial(make, state=state))
    promises.spares_neighbours(make, {3: torch.nan}, convolutions(3), victims="m0_3", steps=8)
    promises.operations_go_with_shapes(make, lambda size: make_params(shapes=convolutions(size)), sizes=(2, 4))
    promises.chunks_change_no_bit(monkeypatch, make, convolutions(3))


def test_a_bad_value_stays_in_its_kernel():
    x = noise(1, 4, 3, 3, 3, dtype=torch.float32)
    clean = filtered(x)
    x[0, 1, 2, 0, 0] = torch.nan
    out = filtered(x)
    assert out[0, 1, 2].isnan().all()
    out[0, 1, 2] = clean[0, 1, 2]
    assert torch.equal(out, clean)


@pytest.mark.parametrize(
    "options", [{"preserve": 1.0}, {"preserve": -0.1}, {"penalty": 1.1}, {"penalty": -0.1}], ids=str
)
def test_bounds(options):
    with pytest.raises(ValueError, match="is outside"):
        build("spatial_frequency", **options)
