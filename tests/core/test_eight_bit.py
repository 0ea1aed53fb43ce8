"""8-bit moments follow the fp32 ones over many steps: `benchmarks/eight_bit.py`, shorter, with other seeds."""

import pytest
import torch

from benchmarks import eight_bit
from hina_kohya import AutomagicCameAMP8bit, COptim8bit, HinaAdamW
from hina_kohya.core.registry import build
from hina_kohya.core.state.codec import EightBit
from tests.support.chains import chains_of
from tests.support.stepping import make_params

# What a spike leaves behind, and a fall of the gradients, shows after a time constant of beta2.
STEPS, SEED = 2500, 7


@pytest.fixture(scope="module")
def runs():
    torch.set_num_threads(1)
    with torch.no_grad():
        found = [eight_bit.replay(shape, [SEED], STEPS, [eight_bit.SHIPPED]) for shape in ((8, 256), (256, 8))]
    return {row["scenario"]: row for row in eight_bit.summary(found)[0]}


@pytest.mark.slow
@pytest.mark.parametrize("scenario", [each.name for each in eight_bit.SCENARIOS])
def test_steps_are_those_of_fp32(runs, scenario):
    """The median within 5 %, the 99th percentile at most 1.6, in every window."""
    low, high, most = eight_bit.BOUNDS
    row = runs[scenario]
    assert low <= row["median_low"]
    assert row["median_high"] <= high
    assert row["high"] <= most
    assert row["low"] >= 0.55
    assert row["direction"] <= 0.03


@pytest.mark.slow
def test_the_optimizer_itself_follows():
    """HinaAdamW through its own step: one spike in each block, and 1,500 steps later."""
    results = []
    for state in ("fp32", "8bit"):
        params = {"w.weight": torch.nn.Parameter(torch.zeros(8, 128))}
        optimizer = HinaAdamW(
            params.items(), lr=1.0, weight_decay=0.0, state=state, use_lora_muon=False, use_cautious=False
        )
        generator = torch.Generator().manual_seed(11)
        squares = torch.zeros(8, 128)
        for step in range(2000):
            grad = torch.randn(8, 128, generator=generator)
            if step == 400:
                grad.view(-1, 256)[:, 17] *= 1000
            params["w.weight"].grad = grad
            before = params["w.weight"].detach().clone()
            optimizer.step()
            if step >= 1700:
                squares += (params["w.weight"].detach() - before).square()
        results.append(squares)
    ratio = (results[1] / results[0]).sqrt().flatten()
    assert 0.95 <= ratio.median() <= 1.05
    assert ratio.quantile(0.99) <= 1.6


@pytest.mark.slow
def test_without_new_squares_the_average_decays_exactly():
    """Its codes stay and its scale falls: no rounding, no random walk."""
    codec, slot = EightBit(), eight_bit.Slot.UNSIGNED
    x = torch.rand(2, 8, 40, generator=torch.Generator().manual_seed(0)) ** 6
    seeds = torch.tensor([3, 4], dtype=torch.int32).view(2, 1, 1)
    parts = codec.encode(x, slot, seeds)
    value = codec.decode(parts, 8, 40, slot)
    for step in range(3002):
        parts = codec.encode(value * 0.999, slot, seeds + step, (value, parts))
        value = codec.decode(parts, 8, 40, slot)
        if step == 1:  # by now the scale has room above the largest value
            first, code = value, parts[""].clone()
    stayed = (parts[""] == code).flatten(1)[:, : 8 * 40].view(2, 8, 40)
    assert stayed.float().mean() > 0.85  # fp32 rounds, too
    torch.testing.assert_close(value[stayed], first[stayed] * 0.999**3000, rtol=1e-3, atol=0)


def test_pieces_change_no_bit(monkeypatch):
    codec = EightBit()
    x = torch.randn(1, 300, 70, generator=torch.Generator().manual_seed(0))
    seed = torch.tensor([[[5]]], dtype=torch.int32)
    results = []
    for cached in (1 << 18, 1000, 1):
        monkeypatch.setattr("hina_kohya.numerics.pieces.CACHED", cached)
        for slot, values in ((eight_bit.Slot.SIGNED, x), (eight_bit.Slot.UNSIGNED, x.square())):
            parts = codec.encode(values, slot, seed)
            again = codec.encode(values * 0.9, slot, seed, (codec.decode(parts, 300, 70, slot), parts))
            results.append([*parts.values(), *again.values(), codec.decode(again, 300, 70, slot)])
    for other in (results[2:4], results[4:6]):
        for mine, theirs in zip(results[:2], other, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


LONG = [
    (HinaAdamW, {"betas": (0.9999, 0.99999)}, "adam keeps an average with decay 0.9999"),
    (AutomagicCameAMP8bit, {"enable_dual_momentum": True, "long_term_beta": 0.9999}, "dual_momentum keeps an average"),
    (COptim8bit, {"momentum_scales": (1, 1000)}, "contextual_cautious keeps an average with decay 0.999"),
]


@pytest.mark.parametrize(("cls", "options", "words"), LONG, ids=lambda value: str(value)[:40])
def test_averages_that_8_bits_cannot_follow_are_refused(cls, options, words):
    """At decay 0.9999 the cosine to fp32's average is below 0.93, whatever the code."""
    params = make_params()
    with pytest.raises(ValueError, match=rf"{words}.* 8 bits follow one of up to 0.995; use state='bf16' or 'fp32'"):
        cls(params.items(), **options)
    if cls is HinaAdamW:
        cls(params.items(), state="bf16", **options)
        of_a_group = cls([{"params": params.items(), "betas": (0.9999, 0.99999)}])
        with pytest.raises(ValueError, match="8 bits follow"):
            chains_of(of_a_group)


@pytest.mark.parametrize(("beta", "least"), [(0.9, 0.998), (0.95, 0.996), (0.98, 0.99), (0.99, 0.98), (0.995, 0.96)])
def test_averages_that_are_allowed_follow(beta, least):
    """Cosine to the fp32 average, on noise with scales of its own by row and column."""
    generator = torch.Generator().manual_seed(1)
    scale = (torch.randn(8, 1, generator=generator) + torch.randn(1, 256, generator=generator)).exp()
    codec, slot = EightBit(), eight_bit.Slot.SIGNED
    parts = codec.empty(1, 8, 256, torch.empty(0), slot)
    value, exact, cosines = codec.decode(parts, 8, 256, slot), torch.zeros(1, 8, 256), []
    for step in range(int(6 / (1 - beta))):
        grad = torch.randn(1, 8, 256, generator=generator) * scale
        exact = exact.lerp(grad, 1 - beta)
        parts = codec.encode(value.lerp(grad, 1 - beta), slot, None, (value, parts))
        value = codec.decode(parts, 8, 256, slot)
        if step > 3 / (1 - beta):
            a, b = ((x / scale).flatten() for x in (value, exact))
            cosines.append(torch.nn.functional.cosine_similarity(a, b, dim=0))
    assert torch.stack(cosines).mean() >= least
    assert build("dual_momentum").memory <= EightBit.slowest  # the default is one of them
