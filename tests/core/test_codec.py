"""Codecs: what is stored, how far it may be off, and that blocks and roundings keep to themselves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hina_kohya import HinaAdamW
from hina_kohya.core.state import codec as codecs
from hina_kohya.core.technique import Slot
from hina_kohya.numerics import companding
from hina_kohya.numerics.rounding import random_bits16, stochastic_round_bf16
from tests.support.stepping import make_params, train

EIGHT = codecs.codec("8bit")


def spread(shape, seed=0, decades=3):
    """Values over several decades, as second moments are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * 10 ** (decades * torch.rand(shape, generator=generator) - decades)


def unsigned(x, seed=0):
    return EIGHT.encode(x, Slot.UNSIGNED, torch.full((len(x), 1, 1), seed, dtype=torch.int32))


def encode(x, slot):
    return unsigned(x) if slot is Slot.UNSIGNED else EIGHT.encode(x, slot, None)


@given(
    m=st.integers(1, 40),
    n=st.integers(1, 40),
    count=st.integers(1, 3),
    slot=st.sampled_from([Slot.SIGNED, Slot.UNSIGNED]),
)
@settings(max_examples=60, deadline=None)
def test_round_trip_is_near_and_stable(m, n, count, slot):
    x = spread((count, m, n))
    x = x if slot is Slot.SIGNED else x.square()
    parts = encode(x, slot)
    again = EIGHT.decode(parts, m, n, slot)
    blocks, size = EIGHT.layout(m, n)
    assert size <= 256
    assert blocks * size - m * n < blocks
    # half of a code, of 8/140 to 8/14 of the value, or a whole one, of 16/310 to 16/55
    scale = parts["scale"].expand(count, blocks, size).flatten(1)[:, : m * n].view(count, m, n)
    power, levels, part = {Slot.SIGNED: (8, 140, 0.55), Slot.UNSIGNED: (16, 310, 1.1)}[slot]
    width = power / levels * (scale / x.abs().clamp(min=1e-30)) ** (1 / power)
    least = {Slot.SIGNED: 1e-8, Slot.UNSIGNED: 1e-12}[slot]
    seen = x.abs() > 10 * least * scale
    assert ((again - x).abs() <= part * width * 1.3 * x.abs())[seen].all()
    assert (again.abs() <= 30 * least * scale)[~seen].all()
    if slot is Slot.SIGNED:
        assert torch.equal(encode(again, slot)[""], parts[""])


def test_no_block_holds_values_of_two_matrices():
    x = spread((3, 5, 7))
    alone = EIGHT.encode(x[1:2], Slot.SIGNED, None)
    x[0], x[2] = 1e6, 1e-9
    together = EIGHT.encode(x, Slot.SIGNED, None)
    assert torch.equal(together[""][1:2], alone[""])
    assert torch.equal(together["scale"][1:2], alone["scale"])


def test_unsigned_has_no_zero_code():
    """A v that decodes to zero makes the step m / eps."""
    codes = torch.arange(256, dtype=torch.int16)
    values = companding.decode_unsigned(codes.to(torch.uint8), torch.ones(1))
    assert (values > 0).all()
    assert (values.diff() > 0).all()
    torch.testing.assert_close(values[-1], torch.tensor(1.0))
    v = torch.zeros(1, 1, 256)
    v[..., 0] = 1.0
    assert (EIGHT.decode(unsigned(v), 1, 256, Slot.UNSIGNED) > 0).all()


def test_zero_blocks_stay_zero():
    for slot in (Slot.SIGNED, Slot.UNSIGNED):
        parts = encode(torch.zeros(2, 20, 20), slot)
        assert not EIGHT.decode(parts, 20, 20, slot).any()


def test_bitsandbytes_reads_and_writes_the_same_codes():
    """The GPU path: bitsandbytes' kernels with our codes as a table, here on its CPU backend."""
    blocks = spread((3, 1, 300)).view(3, 2, 150)
    scale = companding.largest(blocks)
    ours, theirs = (companding.encode_signed(blocks, scale), scale), codecs._bitsandbytes_encode(blocks)
    torch.testing.assert_close(ours[1], theirs[1])
    # bitsandbytes rounds to the nearest value (its CPU kernel only nearly), companding to the nearest root
    apart = (ours[0].int() - theirs[0].int()).abs()
    assert (apart <= 1).float().mean() > 0.98
    assert (apart[blocks.abs() > 1e-3 * ours[1]] <= 1).all()
    torch.testing.assert_close(codecs._bitsandbytes_decode(*theirs, Slot.SIGNED), companding.decode_signed(*theirs))
    squares = unsigned(blocks.square())
    read = codecs._bitsandbytes_decode(squares[""], squares["scale"], Slot.UNSIGNED)
    torch.testing.assert_close(read, companding.decode_unsigned(squares[""], squares["scale"]))


def test_a_tensor_of_16_elements_is_8_bit():
    params = make_params(shapes={"lora_unet_k.lokr_w1": (4, 4)})
    optimizer = HinaAdamW(params.items(), use_lora_muon=False)
    train(optimizer, params, 1)
    state = optimizer.state[params["lora_unet_k.lokr_w1"]]
    assert state["adam.exp_avg"].dtype == torch.int8
    assert state["adam.exp_avg_sq"].dtype == torch.uint8
    assert optimizer.get_memory_efficiency_report()["8bit_parameters"] == 16


def test_stochastic_rounding_is_unbiased_both_ways():
    low, ulp = 1.0, 2.0**-7
    for fraction in (0.1, 0.5, 0.9):
        for sign in (1, -1):
            x = torch.full((1, 1000, 1000), sign * (low + fraction * ulp))
            rounded = stochastic_round_bf16(x, torch.tensor([[[12345]]], dtype=torch.int32)).float()
            assert set(rounded.unique().tolist()) == {sign * low, sign * (low + ulp)}
            # a million coins: five standard deviations are 0.0025
            assert abs((rounded.mean().item() - sign * low) / (sign * ulp) - fraction) < 0.0025


def test_stochastic_rounding_keeps_what_bf16_holds():
    exact = torch.tensor([0.0, -0.0, 1.0, -2.5, 1e-38, 3.3895e38]).bfloat16().float().view(1, 1, -1)
    for seed in range(20):
        rounded = stochastic_round_bf16(exact, torch.tensor([[[seed]]], dtype=torch.int32))
        assert torch.equal(rounded.float(), exact)
    cuda_nan = torch.full((1, 1, 64), 0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    for broken in (cuda_nan, -cuda_nan, torch.full((1, 1, 64), torch.inf)):
        assert stochastic_round_bf16(broken, torch.ones(1, 1, 1, dtype=torch.int32)).isnan().all()
    largest = torch.full((1, 1, 64), torch.finfo(torch.float32).max)
    assert not stochastic_round_bf16(largest, torch.ones(1, 1, 1, dtype=torch.int32)).isnan().any()


def test_seeds_give_independent_bits():
    seeds = torch.arange(64, dtype=torch.int32).view(-1, 1, 1)
    bits = random_bits16(seeds, torch.Size((64, 64, 64))).double().flatten(1)
    assert abs(bits.mean() / 65535) < 0.005
    correlation = torch.corrcoef(bits) - torch.eye(64)
    assert correlation.abs().max() < 0.09  # 5.5 standard deviations of 1/64 over 2016 pairs


def test_bf16_average_keeps_decaying():
    """Rounding to nearest would freeze v at 1: 0.999 of it rounds back."""
    codec, v = codecs.codec("bf16"), torch.ones(1, 32, 32)
    for step in range(2000):
        seed = torch.tensor([[[step * 7919]]], dtype=torch.int32)
        v = codec.decode(codec.encode(v * 0.999, Slot.UNSIGNED, seed), 32, 32, Slot.UNSIGNED)
    assert abs(v.mean().item() / 0.999**2000 - 1) < 0.05


@pytest.mark.slow
def test_bf16_parameters_feel_a_decay_below_their_resolution():
    for dtype in (torch.bfloat16, torch.float32):
        param = torch.nn.Parameter(torch.ones(64, 64, dtype=dtype))
        optimizer = HinaAdamW([param], lr=1e-3, weight_decay=0.1, use_cautious=False)
        for _ in range(100):
            param.grad = torch.zeros_like(param)
            optimizer.step()
        assert abs(param.double().mean().item() - 0.9999**100) < 1e-3


def test_unknown_state_names_the_known_ones():
    with pytest.raises(ValueError, match="state = '4bit' is no way to store state; did you mean 8bit?"):
        HinaAdamW(make_params().values(), state="4bit")
