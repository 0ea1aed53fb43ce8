"""Param groups by role, on the real LyCORIS: names, LoRA+ for every algorithm, decay for what should decay."""

import pytest
import torch
from lycoris.kohya import create_network
from torch import nn

from hina_kohya import HinaAdamW
from hina_kohya.trainers import tags
from hina_kohya.trainers.errors import PluginError, UserError
from hina_kohya.trainers.groups import regroup
from hina_kohya.trainers.network_args import NetworkOptions, take
from hina_kohya.trainers.networks import adopt


class Transformer2DModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_out, self.conv = nn.Linear(64, 128), nn.Linear(128, 64), nn.Conv2d(8, 8, 3)
        self.norm = nn.LayerNorm(32)


class CLIPAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(64, 64)


def network(**kwargs):
    unet, text_encoder = nn.Module(), nn.Module()
    unet.block, text_encoder.block = Transformer2DModel(), CLIPAttention()
    made = create_network(1.0, 4, 1, None, text_encoder, unet, preset="attn-mlp", **kwargs)
    made.apply_to(text_encoder, unet, True, True)
    return made


def prepared(options, text_encoder_lr=1e-4, **kwargs):
    made = network(**kwargs)
    options, _ = take(options)
    adopt(made, options)
    groups, descriptions = made.prepare_optimizer_params(text_encoder_lr, 1e-3, 1e-3)
    assert len(groups) == len(descriptions)
    names = [name for group in groups for name, _ in group["params"]]
    assert sorted(names) == sorted(name for name, _ in made.named_parameters())
    return dict(zip(descriptions, groups, strict=True))


def endings(group):
    return {name.partition(".")[2] for name, _ in group["params"]}


def test_without_options_only_names_are_added():
    made = network(algo="lokr", factor=4)
    before, said = made.prepare_optimizer_params(1e-4, 1e-3, 1e-3)
    after, still_said = regroup(before, said, made.named_parameters(), NetworkOptions())
    assert said == still_said == ["textencoder", "unet"]
    for old, new in zip(before, after, strict=True):
        assert [id(p) for p in old["params"]] == [id(p) for _, p in new["params"]]
        assert {**old, "params": 0} == {**new, "params": 0}
        assert [name for name, _ in new["params"]] == list(old["params"].mapping)
    names = [name for name, _ in after[1]["params"]]
    assert torch.optim.AdamW(after, lr=1.0).param_groups[1]["param_names"] == names


@pytest.mark.parametrize(
    ("kwargs", "fast"),
    [
        ({"algo": "lora"}, {"lora_up.weight"}),
        ({"algo": "lora", "dora_wd": "True"}, {"lora_up.weight"}),
        ({"algo": "loha"}, {"hada_w2_a"}),
        ({"algo": "lokr", "factor": 4}, {"lokr_w2_b"}),
        ({"algo": "lokr", "factor": 4, "full_matrix": "True"}, {"lokr_w2"}),
        ({"algo": "glora"}, {"a2.weight", "b2.weight"}),
        ({"algo": "full"}, {"weight"}),
    ],
    ids=lambda each: each.get("algo") if isinstance(each, dict) else "",
)
def test_lora_plus_acts_on_what_starts_at_zero(kwargs, fast):
    groups = prepared({"loraplus_lr_ratio": "16"}, loraplus_lr_ratio="16", **kwargs)
    assert list(groups)[:1] in (["textencoder"], ["textencoder plus"])
    assert endings(groups["unet plus"]) == fast
    assert groups["unet plus"]["lr"] == pytest.approx(16e-3)
    assert groups["textencoder plus"]["lr"] == pytest.approx(16e-4)
    if "unet" in groups:
        assert not endings(groups["unet"]) & fast
        assert groups["unet"]["lr"] == 1e-3
    if kwargs["algo"] != "full":
        for _, param in groups["unet plus"]["params"]:
            assert not param.any()


def test_lora_plus_for_one_part_only():
    groups = prepared({"loraplus_unet_lr_ratio": 4, "loraplus_text_encoder_lr_ratio": 2}, algo="loha")
    assert groups["unet plus"]["lr"] == pytest.approx(4e-3)
    assert groups["textencoder plus"]["lr"] == pytest.approx(2e-4)
    assert list(prepared({"loraplus_unet_lr_ratio": 4}, algo="loha")) == ["textencoder", "unet", "unet plus"]


def test_a_network_with_its_own_lora_plus_is_left_alone():
    zero, other = nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.ones(4, 4))
    branch = [
        {"params": {"lora_unet_a.lokr_w2": zero}.values(), "lr": 1e-3},
        {"params": {"lora_unet_a.lokr_w1": other}.values(), "lr": 16e-3},
    ]
    groups, said = regroup(branch, ["unet", "unet plus"], [], NetworkOptions(loraplus_lr_ratio=16.0))
    assert [group["lr"] for group in groups] == [1e-3, 16e-3]
    assert said == ["unet", "unet plus"]


def test_factors_decay_and_scales_do_not():
    groups = prepared({"weight_decay": "0.1"}, algo="lora", dora_wd="True")
    assert list(groups) == ["textencoder", "textencoder no decay", "unet", "unet no decay"]
    assert endings(groups["unet"]) == {"lora_down.weight", "lora_up.weight"}
    assert endings(groups["unet no decay"]) == {"dora_scale"}
    assert groups["unet"]["weight_decay"] == 0.1
    assert groups["unet no decay"]["weight_decay"] == 0.0
    assert groups["unet"]["lr"] == groups["unet no decay"]["lr"] == 1e-3


def test_norms_and_scalars_do_not_decay():
    made = network(algo="lokr", factor=4, use_scalar="True")
    options, _ = take({"weight_decay": 0.1})
    adopt(made, options)
    groups, said = made.prepare_optimizer_params(1e-4, 1e-3, 1e-3)
    assert endings(dict(zip(said, groups, strict=True))["unet no decay"]) == {"scalar"}


def test_roles_by_pattern():
    groups = prepared({"weight_decay": "0.1", "wd_roles": "lokr_w1,dora_*"}, algo="lokr", factor=4, dora_wd="True")
    assert endings(groups["unet"]) == {"lokr_w1", "dora_scale"}
    groups = prepared({"wd_roles": "default, dora_scale"}, algo="lora", dora_wd="True")
    assert list(groups) == ["textencoder", "unet"]
    assert "weight_decay" not in groups["unet"]


def test_names_by_pattern():
    groups = prepared({"wd_exclude": "lora_te_* *lora_down*"}, algo="lora")
    assert list(groups) == ["textencoder no decay", "unet", "unet no decay"]
    assert endings(groups["unet no decay"]) == {"lora_down.weight"}
    assert "weight_decay" not in groups["unet"]


def test_both_at_once():
    groups = prepared({"weight_decay": 0.1, "loraplus_lr_ratio": 4}, algo="lokr", factor=4, dora_wd="True")
    assert [name for name in groups if "unet" in name] == ["unet", "unet no decay", "unet plus"]


def test_hina_adamw_follows_the_groups():
    made = network(algo="lora", dora_wd="True")
    options, _ = take({"weight_decay": 0.5, "wd_roles": "dora_scale"})
    adopt(made, options)
    groups, _ = made.prepare_optimizer_params(0.0, 1e-3, 1e-3)
    optimizer = HinaAdamW(groups, lr=1e-3, state="fp32")
    before = {name: param.detach().clone() for name, param in made.named_parameters()}
    for param in made.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    for name, param in made.named_parameters():
        if name.startswith("lora_unet"):
            moved = before[name] * (1 - 1e-3 * 0.5) if "dora_scale" in name else before[name]
            torch.testing.assert_close(param.detach(), moved)


def test_lists_without_names_or_descriptions():
    made = network(algo="lora", dora_wd="True")
    plain = [{"params": list(made.parameters())}]
    groups, said = regroup(plain, None, made.named_parameters(), NetworkOptions())
    assert said is None
    assert "lr" not in groups[0]
    groups, said = regroup(plain, None, made.named_parameters(), NetworkOptions(weight_decay=0.1))
    assert said in (["unet", "unet no decay"], ["textencoder", "textencoder no decay"])
    groups, _ = regroup(plain, None, made.named_parameters(), NetworkOptions(loraplus_lr_ratio=2.0), default_lr=1e-3)
    assert groups[1]["lr"] == 2e-3


def test_parameters_that_nobody_names_stay_as_they_are():
    plain = [{"params": [nn.Parameter(torch.zeros(2))], "lr": 1.0}]
    groups, _ = regroup(plain, None, [], NetworkOptions())
    assert groups == plain
    with pytest.raises(UserError, match="gives none"):
        regroup(plain, None, [], NetworkOptions(weight_decay=0.1))


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"weight_decay": "much"}, "weight_decay='much' must be a number at least 0"),
        ({"weight_decay": "-1"}, "at least 0"),
        ({"weight_decay": "nan"}, "at least 0"),
        ({"loraplus_lr_ratio": "0"}, "above 0"),
        ({"wd_roles": "dora_scal"}, "did you mean dora_scale"),
    ],
)
def test_bad_options(kwargs, said):
    with pytest.raises(UserError, match=said):
        take(kwargs)


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(UserError, match=r"matches no parameter; names look like lora_te"):
        prepared({"wd_exclude": "lora_te3_*"}, algo="lora")


def test_options_are_taken_out_of_the_networks_arguments():
    options, rest = take({"algo": "lokr", "weight_decay": "0.1", "wd_roles": "default", "loraplus_lr_ratio": "2"})
    assert rest == {"algo": "lokr", "loraplus_lr_ratio": "2"}
    assert options == NetworkOptions(weight_decay=0.1, wd_roles=("default",), loraplus_lr_ratio=2.0)


def test_the_old_signature_gets_groups_only():
    made = network(algo="lokr", factor=4, dora_wd="True")
    adopt(made, NetworkOptions(weight_decay=0.1))
    assert isinstance(made.prepare_optimizer_params(1e-4, 1e-3), list)


def test_our_type_errors_are_not_type_errors(monkeypatch):
    made = network(algo="lokr", factor=4)
    adopt(made, NetworkOptions())

    def broken(*_):
        raise TypeError("a bug of ours")

    monkeypatch.setattr(tags, "attach", broken)
    with pytest.raises(PluginError, match="a bug of ours"):
        made.prepare_optimizer_params(1e-4, 1e-3, 1e-3)


def test_the_networks_own_type_error_stays_one():
    """sd-scripts then asks again without the learning rate."""
    made = network(algo="lokr", factor=4)
    made.prepare_optimizer_params = lambda text_encoder_lr, unet_lr: [{"params": list(made.parameters())}]
    adopt(made, NetworkOptions())
    with pytest.raises(TypeError):
        made.prepare_optimizer_params(1e-4, 1e-3, 1e-3)
    (group,) = made.prepare_optimizer_params(1e-4, 1e-3)
    assert all(name.startswith("lora_") for name, _ in group["params"])


def test_musubi_tuners_call_gets_groups_and_descriptions():
    for returned in (lambda self, unet_lr: [{"params": list(self.parameters()), "lr": unet_lr}], None):
        made = network(algo="lokr", factor=4)
        if returned is not None:
            made.prepare_optimizer_params = returned.__get__(made)
        adopt(made, NetworkOptions(weight_decay=0.1, loraplus_lr_ratio=4.0))
        groups, descriptions = made.prepare_optimizer_params(unet_lr=1e-3)
        assert len(groups) == len(descriptions)
        assert {group["lr"] for group in groups} == {1e-3, 4e-3}
        assert all(descriptions)


@pytest.mark.parametrize("call", [(1, 2, 3, 4), (1,), ()])
def test_a_call_that_nobody_knows_is_refused_with_its_place(call):
    made = network(algo="lokr", factor=4)
    adopt(made, NetworkOptions())
    with pytest.raises(UserError, match=r"test_groups\.py: test_a_call_that_nobody_knows.* prepare_optimizer_params"):
        made.prepare_optimizer_params(*call)


@pytest.mark.parametrize(
    "returned", [None, 1, [1], {"a": []}, ([], [], []), ([{"params": []}], []), ([{"params": []}], [1]), [{"lr": 1.0}]]
)
def test_groups_in_a_shape_that_nobody_knows_are_refused(returned):
    made = network(algo="lokr", factor=4)
    made.prepare_optimizer_params = lambda *_: returned
    adopt(made, NetworkOptions())
    with pytest.raises(UserError, match="LycorisNetworkKohya returned .* for its param groups"):
        made.prepare_optimizer_params(1e-4, 1e-3, 1e-3)


def test_adopting_twice_is_adopting_once():
    made = network(algo="lokr", factor=4, dora_wd="True")
    adopt(made, NetworkOptions(weight_decay=0.1))
    adopt(made, NetworkOptions())
    groups, _ = made.prepare_optimizer_params(1e-4, 1e-3, 1e-3)
    assert len(groups) == 4


def test_adv_optm_finds_its_tags():
    groups = prepared({}, algo="lora", dora_wd="True")
    for name, param in groups["unet"]["params"]:
        tagged = [tag for tag in ("_is_lora_A", "_is_lora_B", "_is_dora_scale", "is_vector") if hasattr(param, tag)]
        wanted = {"lora_down.weight": "_is_lora_A", "lora_up.weight": "_is_lora_B", "dora_scale": "_is_dora_scale"}
        assert tagged == [wanted[name.partition(".")[2]]]


def test_adv_optm_scales_by_its_tags():
    """Its LoRA-aware branch acts: A and B of one shape get different updates only when they are tagged."""
    adv_optm = pytest.importorskip("adv_optm")

    def steps(tagged):
        params = [nn.Parameter(torch.ones(4, 8)) for _ in range(2)]
        if tagged:
            from hina_kohya.parameters.roles import resolve

            names = ["lora_unet_a.lora_down.weight", "lora_unet_b.lora_up.weight"]
            tags.attach(resolve(names, [tuple(param.shape) for param in params]), params)
        optimizer = adv_optm.AdamW_adv(params, lr=0.1, spectral_normalization=True)
        for param in params:
            param.grad = torch.ones(4, 8)  # of rank one, so that its power iteration is exact
        optimizer.step()
        return [(1 - param.detach()).mean() for param in params]

    (plain_a, plain_b), (aware_a, aware_b) = steps(False), steps(True)
    torch.testing.assert_close(plain_a, plain_b)
    torch.testing.assert_close(aware_b, plain_b)
    torch.testing.assert_close(aware_a, aware_b * (8 / 4) ** 0.5)
