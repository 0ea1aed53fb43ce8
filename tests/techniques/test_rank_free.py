"""One learning rate for every rank and alpha: the same path of W for every alpha, and what the log says of it."""

import logging

import pytest
import torch

import hina_kohya
from hina_kohya import AutomagicCameAMP, HinaAdamW
from hina_kohya.parameters.members import SCALE
from tests.support.chains import chains_of
from tests.support.stepping import make_params

# One module of each algorithm, which start as they do in training: one factor at zero.
MODULES = {
    "lora": {"lora_down.weight": (4, 6), "lora_up.weight": (5, 4)},
    "loha": {"hada_w1_a": (5, 2), "hada_w1_b": (2, 6), "hada_w2_a": (5, 2), "hada_w2_b": (2, 6)},
    "lokr": {"lokr_w1": (2, 2), "lokr_w2_a": (3, 2), "lokr_w2_b": (2, 3)},
    "glora": {"a1.weight": (6, 2), "a2.weight": (2, 6)},
}
ZERO = {"lora": "lora_up.weight", "loha": "hada_w2_a", "lokr": "lokr_w2_b", "glora": "a2.weight"}


def weight(algo, tensors):
    a, *rest = tensors
    if algo == "lora":
        return rest[0] @ a
    if algo == "loha":
        return (a @ rest[0]) * (rest[1] @ rest[2])
    return torch.kron(a, rest[0] @ rest[1]) if algo == "lokr" else a @ rest[0]


def path(algo, scale, make, by_attribute=True, steps=12):
    """s W at each step of fitting a fixed target."""
    shapes = {f"lora_unet_a.{role}": shape for role, shape in MODULES[algo].items()}
    params = make_params(torch.float64, shapes=shapes)
    params[f"lora_unet_a.{ZERO[algo]}"].data.zero_()
    for param in params.values() if by_attribute else ():
        setattr(param, SCALE, scale)
    optimizer = make(params.items(), scale)
    target = torch.randn(weight(algo, list(params.values())).shape, generator=torch.Generator().manual_seed(3))
    result = []
    for _ in range(steps):
        optimizer.zero_grad()
        (scale * weight(algo, list(params.values())) - target).square().sum().backward()
        optimizer.step()
        result.append(scale * weight(algo, list(params.values())).detach())
    return torch.stack(result)


def maker(cls=HinaAdamW, **options):
    options = {"lr": 0.02, "weight_decay": 0.1, "state": "fp32", "rank_free_lr": True, **options}
    return lambda named, scale: cls(named, **options)


MAKERS = {
    "adam": maker(use_lora_muon=False, eps=1e-30),
    "muon": maker(use_muon=True, eps=1e-30),
    "lora muon": maker(eps=1e-30),
    "came": maker(AutomagicCameAMP, eps=(1e-40, 1e-40, 1e-40)),
    "tam": maker(use_tam=True, use_lora_muon=False, eps=1e-30),
}


@pytest.mark.parametrize("algo", MODULES)
@pytest.mark.parametrize("name", MAKERS)
def test_w_goes_the_same_way_for_every_alpha(name, algo):
    """No step here sees the size of a gradient, so this holds to rounding."""
    plain, small = path(algo, 1.0, MAKERS[name]), path(algo, 1 / 16, MAKERS[name])
    torch.testing.assert_close(small, plain, rtol=1e-5, atol=1e-7)


def test_without_it_a_small_alpha_is_a_small_rate():
    off = maker(rank_free_lr=False)
    plain, small = path("lora", 1.0, off), path("lora", 1 / 16, off)
    assert small[-1].norm() < plain[-1].norm() / 4


@pytest.mark.parametrize("scale", [1 / 16, 1 / 2, 1.0, 4.0])
def test_lora_muon_makes_up_for_half_of_a_small_alpha(scale):
    """The path of W at a small alpha is the one of a larger rate whose factor is the root."""
    rate = 0.02
    free = path("lora", scale, maker(rank_free_lr=False, weight_decay=0.0, lr=rate))
    unknown = path(
        "lora", scale, maker(rank_free_lr=False, weight_decay=0.0, lr=rate * max(1.0, scale**-0.5)), by_attribute=False
    )
    torch.testing.assert_close(free, unknown)


def test_a_checkpoint_from_before_goes_on_at_its_rate():
    shapes = {"lora_unet_a.lora_down.weight": (2, 6), "lora_unet_a.lora_up.weight": (6, 2)}
    optimizer = HinaAdamW(make_params(shapes=shapes).items(), lr=1e-3, lora_scale=0.25)
    assert optimizer.effective_lr == pytest.approx([2e-3])
    saved = optimizer.state_dict()
    del saved["param_groups"][0]["techniques"]["lora_muon"]["alpha_root"]
    optimizer.load_state_dict(saved)
    assert optimizer.effective_lr == pytest.approx([1e-3])


def test_other_steps_have_their_own_ways_with_alpha():
    adam = maker(rank_free_lr=False, use_lora_muon=False)
    assert torch.equal(path("lora", 0.25, adam), path("lora", 0.25, adam, by_attribute=False))


def test_alpha_can_be_an_argument():
    def given(named, scale):
        return HinaAdamW(named, lr=0.02, state="fp32", rank_free_lr=True, lora_scale=scale)

    assert torch.equal(path("lora", 0.25, given, by_attribute=False), path("lora", 0.25, given))


@pytest.mark.parametrize("options", [{"use_lora_muon": True}, {"use_lora_muon": False}])
def test_the_effective_rate_has_the_factor(options):
    shapes = {"lora_unet_a.lora_down.weight": (2, 6), "lora_unet_a.lora_up.weight": (6, 2)}
    optimizer = HinaAdamW(make_params(shapes=shapes).items(), lr=1e-3, rank_free_lr=True, lora_scale=0.5, **options)
    down, up = 2.0, 4.0  # sqrt(8 / 2), and over 0.5
    expected = 4.0 if options["use_lora_muon"] else (down + up) / 2
    assert optimizer.effective_lr == pytest.approx([1e-3 * expected])


@pytest.mark.parametrize("cls", ["HinaAdamW", "AdaptiveHinaAdamW", "AutomagicCameAMP8bit", "COptim8bit"])
def test_the_first_line_says_it(cls, caplog):
    shapes = {"lora_unet_a.lora_down.weight": (2, 6), "lora_unet_a.lora_up.weight": (6, 2), "head.weight": (4, 4)}
    for scale, words in (
        (None, "alpha / rank of 2 of 2 tensors not known and taken for 1"),
        (0.25, "alpha / rank 0.25"),
    ):
        params = make_params(shapes=shapes)
        optimizer = getattr(hina_kohya, cls)(params.items(), rank_free_lr=True, lora_scale=scale)
        with caplog.at_level(logging.INFO, logger="hina_kohya"):
            assert f"rank_free_lr for rank 2, {words}" in optimizer.summary()


def test_the_first_line_says_what_a_small_alpha_does():
    shapes = {"lora_unet_a.lora_down.weight": (2, 6), "lora_unet_a.lora_up.weight": (6, 2)}
    summaries = {
        scale: HinaAdamW(make_params(shapes=shapes).items(), lora_scale=scale).summary() for scale in (None, 0.25, 1.0)
    }
    assert summaries[0.25].endswith(", learning rate of pairs times 2 for alpha / rank of 0.25")
    assert summaries[None].endswith(", alpha / rank of 2 of 2 tensors not known and taken for 1: set lora_scale")
    assert "alpha" not in summaries[1.0]


@pytest.mark.parametrize("value", [0.0, -1.0, "a lot", float("nan")])
def test_a_wrong_alpha_is_refused(value):
    with pytest.raises(ValueError, match="lora_scale"):
        HinaAdamW(make_params().items(), lora_scale=value)


@pytest.mark.parametrize("cls", ["HinaAdamW", "AdaptiveHinaAdamW"])
def test_does_not_take_the_place_of_lora_muon(cls):
    params = make_params(shapes={"lora_unet_a.lora_down.weight": (4, 6), "lora_unet_a.lora_up.weight": (5, 4)})
    plain, free = (getattr(hina_kohya, cls)(params.items(), **more) for more in ({}, {"rank_free_lr": True}))
    for before, after in zip(chains_of(plain), chains_of(free), strict=True):
        assert [technique.name for technique in before] == [technique.name for technique in after]
    assert all(technique.rank_free for chain in chains_of(free) for technique in chain if technique.name == "lora_muon")
