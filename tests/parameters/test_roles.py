"""Names -> roles: with the installed LyCORIS for real, and with names recorded from other versions and sd-scripts."""

import logging
import math
import subprocess
import sys
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hina_kohya.parameters import role_table
from hina_kohya.parameters.roles import REGULAR, Kind, identify, resolve, summary, summary_line

kohya = pytest.importorskip("lycoris.kohya")


# --- real networks -----------------------------------------------------------------------------------------------


class Transformer2DModel(nn.Module):  # LyCORIS finds modules by class name
    def __init__(self):
        super().__init__()
        self.to_q = nn.Linear(32, 64)
        self.to_out = nn.Linear(64, 32, bias=False)
        self.proj = nn.Conv2d(32, 64, 1)
        self.conv = nn.Conv2d(64, 64, 3)
        self.norm = nn.LayerNorm(64)


BLOCKS, LAYERS = 2, 4
MODULES = BLOCKS * LAYERS


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """A LyCORIS preset for the class above; presets are class attributes there, so they are put back afterwards."""
    path = tmp_path_factory.mktemp("preset") / "preset.toml"
    path.write_text(
        "enable_conv = true\nunet_target_module = ['Transformer2DModel']\nunet_target_name = []\n"
        "text_encoder_target_module = []\ntext_encoder_target_name = []\n"
    )
    network = kohya.LycorisNetworkKohya
    before = {key: value for key, value in vars(network).items() if key.isupper()}
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    yield str(path)
    logging.disable(disabled)
    for key, value in before.items():
        setattr(network, key, value)


def real(preset, algo, dim=4, **options):
    """A network as it trains: (network, parameters, members)."""
    if algo not in kohya.network_module_dict:
        pytest.skip(f"this LyCORIS has no {algo}")
    torch.manual_seed(0)
    unet = nn.ModuleList(Transformer2DModel() for _ in range(BLOCKS))
    network = kohya.create_network(
        1.0, dim, 1, None, [], unet, algo=algo, preset=preset, **{key: str(value) for key, value in options.items()}
    )
    network.apply_to([], unet, False, True)
    named = list(network.named_parameters())
    members = resolve([name for name, _ in named], [p.shape for _, p in named])
    return network, [p for _, p in named], members


# algo, options, roles of one block (4 layers, one of them a 3x3 convolution), pairs of one block
NORM = {"norm_weight": 1, "norm_bias": 1}
LOHA = dict.fromkeys(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), 4)
W1, W2 = {"lokr_w1": 4}, {"lokr_w2_a": 4, "lokr_w2_b": 4}
GLORA = dict.fromkeys(("glora_a1", "glora_a2", "glora_b1", "glora_b2"), 4)
LORA = {"lora_down": 4, "lora_up": 4}
REAL = [
    ("lora", {}, LORA, 4),
    ("locon", {"use_tucker": True}, {**LORA, "lora_mid": 1}, 3),
    ("lora", {"dora_wd": True, "train_norm": True}, {**LORA, "dora_scale": 4, **NORM}, 4),
    ("lora", {"use_scalar": True}, {**LORA, "scalar": 4}, 4),
    ("loha", {}, LOHA, 8),
    ("loha", {"use_tucker": True}, {**LOHA, "hada_t1": 1, "hada_t2": 1}, 6),
    ("loha", {"use_scalar": True, "dora_wd": True}, {**LOHA, "scalar": 4, "dora_scale": 4}, 8),
    ("lokr", {"factor": 4}, {**W1, **W2}, 4),
    ("lokr", {"factor": 4, "use_tucker": True}, {**W1, **W2, "lokr_t2": 1}, 3),
    ("lokr", {"factor": 8, "dim": 2, "decompose_both": True}, {"lokr_w1_a": 4, "lokr_w1_b": 4, **W2}, 8),
    ("lokr", {"factor": 8, "full_matrix": True}, {**W1, "lokr_w2": 4}, 0),
    ("lokr", {"factor": 4, "use_scalar": True, "dora_wd": True}, {**W1, **W2, "scalar": 4, "dora_scale": 4}, 4),
    ("lokr", {"factor": 8, "full_matrix": True, "use_scalar": True}, {**W1, "lokr_w2": 4, "scalar": 4}, 0),
    ("glora", {}, GLORA, 8),
    ("glora", {"use_scalar": True}, {**GLORA, "scalar": 4}, 8),
    ("dylora", {"block_size": 2}, {"dylora_up": 8, "dylora_down": 8}, 8),
    ("full", {}, {"full_weight": 4, "full_bias": 3}, 0),
    ("full", {"train_norm": True}, {"full_weight": 4, "full_bias": 3, **NORM}, 0),
    ("diag-oft", {"rescaled": True, "constraint": 1}, {"oft_blocks": 4, "rescale": 4}, 0),
    ("boft", {"rescaled": True}, {"boft_blocks": 4, "rescale": 4}, 0),
    ("ia3", {}, {"ia3": 4}, 0),
    ("tlora", {}, {"tlora_q": 4, "tlora_p": 4, "tlora_lambda": 4}, 0),
]


def case_id(value):
    return "+".join(value) or "plain" if isinstance(value, dict) else None


@pytest.mark.parametrize(("algo", "options", "roles", "pairs"), REAL, ids=case_id)
def test_real_network(preset, algo, options, roles, pairs):
    _, params, members = real(preset, algo, **options)
    found = Counter(m.role.name for m in members)
    assert found == {name: BLOCKS * n for name, n in roles.items()}
    assert {m.module for m in members if m.role.kind is not Kind.NORM} == {
        f"lora_unet_{i}_{layer}" for i in range(BLOCKS) for layer in ("to_q", "to_out", "proj", "conv")
    }
    starts_at_zero = {m.name: not p.any() for m, p in zip(members, params, strict=True)}
    assert {m.name: m.role.zero_init for m in members} == starts_at_zero

    for i, m in enumerate(members):
        if m.partner is not None:
            other = members[m.partner]
            assert (other.partner, other.module, other.role.name) == (i, m.module, m.role.partner)
            if m.role.side == "B":
                _ = params[i].flatten(1) @ params[m.partner].flatten(1)
    counts = summary(members)
    assert counts["regular"] == counts["unnamed"] == 0
    assert sum(of["pairs"] for of in counts["by_algo"].values()) == BLOCKS * pairs
    algos = {"locon": "lora", "diag-oft": "oft"}.get(algo, algo)
    assert set(counts["by_algo"]) == {algos} | ({"norm"} if options.get("train_norm") else set())
    assert counts["by_algo"][algos]["modules"] == MODULES


def rms(x):
    return float(x.detach().square().mean().sqrt())


@pytest.mark.parametrize("options", [case[1] for case in REAL if case[0] == "lokr" and "use_scalar" not in case[1]])
def test_cofactors_predict_the_size_of_a_lokr_step(preset, options):
    """RMS(dW) of a step in any factor is sqrt(cofactor_rank) RMS(step) prod RMS(cofactors); W comes from LyCORIS."""
    network, params, members = real(preset, "lokr", **options)
    for p in params:
        nn.init.normal_(p)
    for i, m in enumerate(members):
        module = getattr(network, m.module)
        module.scale = 1.0
        with torch.no_grad():
            keep, samples = params[i].clone(), []
            for _ in range(20):
                for j in (i, *m.cofactors):
                    nn.init.normal_(params[j])
                expected = math.sqrt(m.cofactor_rank) * math.prod(rms(params[j]) for j in (i, *m.cofactors))
                samples.append(rms(module.get_weight(module.shape)) / expected)
            params[i].copy_(keep)
        ratio = sum(samples) / len(samples)
        assert 0.8 < ratio < 1.2, (m.name, ratio)
        assert {members[j].module for j in m.cofactors} == {m.module}
        assert len(m.cofactors) + 1 == sum(other.module == m.module for other in members)


# --- names recorded from other versions and from sd-scripts (shapes shortened) -----------------------------------

# (ending, shape, role, algo, zero at the start, ending of the partner)
DOWN, UP = "lora_down.weight", "lora_up.weight"
GOLDEN = {
    "sd-scripts lora linear": [
        (DOWN, (4, 32), "lora_down", "lora", False, UP),
        (UP, (48, 4), "lora_up", "lora", True, DOWN),
    ],
    "sd-scripts lora conv3": [
        (DOWN, (4, 16, 3, 3), "lora_down", "lora", False, UP),
        (UP, (24, 4, 1, 1), "lora_up", "lora", True, DOWN),
    ],
    "sd-scripts lora_fa trains up only": [(UP, (48, 4), "lora_up", "lora", True, None)],
    "sd-scripts lora_flux split_dims": [
        ("lora_down.0.weight", (4, 32), "lora_down", "lora", False, "lora_up.0.weight"),
        ("lora_down.1.weight", (4, 32), "lora_down", "lora", False, "lora_up.1.weight"),
        ("lora_up.0.weight", (16, 4), "lora_up", "lora", True, "lora_down.0.weight"),
        ("lora_up.1.weight", (32, 4), "lora_up", "lora", True, "lora_down.1.weight"),
    ],
    "sd-scripts dylora linear": [
        ("lora_A.0", (1, 32), "dylora_down", "dylora", False, "lora_B.0"),
        ("lora_A.10", (1, 32), "dylora_down", "dylora", False, "lora_B.10"),
        ("lora_B.0", (48, 1), "dylora_up", "dylora", True, "lora_A.0"),
        ("lora_B.10", (48, 1), "dylora_up", "dylora", True, "lora_A.10"),
    ],
    "sd-scripts dylora conv3": [
        ("lora_A.0", (1, 16, 3, 3), "dylora_down", "dylora", False, "lora_B.0"),
        ("lora_B.0", (24, 1, 1, 1), "dylora_up", "dylora", True, "lora_A.0"),
    ],
    "sd-scripts oft": [("oft_blocks", (4, 12, 12), "oft_blocks", "oft", True, None)],
    "sd-scripts oft_flux": [
        ("oft_blocks.0", (4, 4, 4), "oft_blocks", "oft", True, None),
        ("oft_blocks.1", (4, 8, 8), "oft_blocks", "oft", True, None),
    ],
    "sd-scripts branch loha conv3": [
        ("hada_w1_a", (24, 4), "hada_w1_a", "loha", False, "hada_w1_b"),
        ("hada_w1_b", (4, 144), "hada_w1_b", "loha", False, "hada_w1_a"),
        ("hada_w2_a", (24, 4), "hada_w2_a", "loha", True, "hada_w2_b"),
        ("hada_w2_b", (4, 144), "hada_w2_b", "loha", False, "hada_w2_a"),
    ],
    "sd-scripts branch lokr tucker": [
        ("lokr_w1", (4, 4), "lokr_w1", "lokr", False, None),
        ("lokr_t2", (4, 4, 3, 3), "lokr_t2", "lokr", False, None),
        ("lokr_w2_a", (4, 16), "lokr_w2_a", "lokr", False, None),
        ("lokr_w2_b", (4, 16), "lokr_w2_b", "lokr", True, None),
    ],
    "sd-scripts branch lokr conv full": [
        ("lokr_w1", (8, 8), "lokr_w1", "lokr", False, None),
        ("lokr_w2", (8, 8, 3, 3), "lokr_w2", "lokr", True, None),
    ],
    "lycoris 3.0.0 lora dora": [
        ("dora_scale", (1, 32), "dora_scale", "lora", False, None),
        (DOWN, (4, 32), "lora_down", "lora", False, UP),
        (UP, (48, 4), "lora_up", "lora", True, DOWN),
    ],
    "lycoris 3.0.0 glora tucker": [
        ("a2.weight", (4, 32, 1, 1), "glora_a2", "glora", True, "a1.weight"),
        ("a1.weight", (32, 4, 1, 1), "glora_a1", "glora", False, "a2.weight"),
        ("b2.weight", (4, 32, 1, 1), "glora_b2", "glora", True, None),
        ("bm.weight", (4, 4, 3, 3), "glora_bm", "glora", False, None),
        ("b1.weight", (32, 4, 1, 1), "glora_b1", "glora", False, None),
    ],
    "lycoris 3.4.0 loha scalar dora": [
        ("hada_w1_a", (32, 4), "hada_w1_a", "loha", False, "hada_w1_b"),
        ("hada_w1_b", (4, 32), "hada_w1_b", "loha", False, "hada_w1_a"),
        ("hada_w2_a", (32, 4), "hada_w2_a", "loha", False, "hada_w2_b"),
        ("hada_w2_b", (4, 32), "hada_w2_b", "loha", False, "hada_w2_a"),
        ("scalar", (), "scalar", "loha", True, None),
        ("dora_scale", (1, 32), "dora_scale", "loha", False, None),
    ],
    "lycoris 3.4.0 dylora": [
        ("up_list.0", (32, 2), "dylora_up", "dylora", True, "down_list.0"),
        ("up_list.1", (32, 2), "dylora_up", "dylora", True, "down_list.1"),
        ("down_list.0", (2, 288), "dylora_down", "dylora", False, "up_list.0"),
        ("down_list.1", (2, 288), "dylora_down", "dylora", False, "up_list.1"),
    ],
    "lycoris 3.4.0 boft": [
        ("oft_blocks", (4, 8, 4, 4), "boft_blocks", "boft", True, None),
        ("rescale", (32, 1), "rescale", "boft", False, None),
    ],
    "lycoris 3.4.0 full": [
        ("weight", (32, 32, 3, 3), "full_weight", "full", False, None),
        ("bias", (32,), "full_bias", "full", False, None),
    ],
    "lycoris full, 1x1 convolution to one channel": [
        ("weight", (1, 32, 1, 1), "full_weight", "full", False, None),
        ("bias", (1,), "full_bias", "full", False, None),
    ],
    "lycoris full, 3x3 convolution to one channel": [("weight", (1, 32, 3, 3), "full_weight", "full", False, None)],
    "lycoris 3.4.0 norm": [
        ("w_norm", (32,), "norm_weight", "norm", True, None),
        ("b_norm", (32,), "norm_bias", "norm", True, None),
    ],
    "lycoris 4.1.3 ia3 linear": [("weight", (32,), "ia3", "ia3", True, None)],
    "lycoris 4.1.3 ia3 conv": [("weight", (1, 32, 1, 1), "ia3", "ia3", True, None)],
    "lycoris 4.1.3 tlora": [
        ("lambda_layer", (1, 4), "tlora_lambda", "tlora", False, None),
        ("q_layer.weight", (4, 32), "tlora_q", "tlora", False, None),
        ("p_layer.weight", (32, 4), "tlora_p", "tlora", False, None),
    ],
    "lycoris full in a file": [
        ("diff", (32, 32), "diff", "full", True, None),
        ("diff_b", (32,), "diff_b", "full", True, None),
    ],
}
MODULE = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def golden(case, module=MODULE):
    rows = GOLDEN[case]
    return [f"{module}.{row[0]}" for row in rows], [row[1] for row in rows]


@pytest.mark.parametrize("module", [MODULE, "lora_te_text_model_x", "lora_te2_text_model_x", "lycoris_proj"])
@pytest.mark.parametrize("case", GOLDEN)
def test_recorded_names(case, module):
    names, shapes = golden(case, module)
    members = resolve(names, shapes)
    partners = [None if m.partner is None else members[m.partner].name for m in members]
    seen = [
        (m.name, m.shape, m.role.name, m.role.algo, m.role.zero_init, partner)
        for m, partner in zip(members, partners, strict=True)
    ]
    wanted = [(f"{module}.{row[0]}", *row[1:5], row[5] and f"{module}.{row[5]}") for row in GOLDEN[case]]
    assert seen == wanted
    assert {m.module for m in members} == {module}


DECAYS = {
    "lora_down": True, "lora_up": True, "hada_t1": True, "lokr_w1": True, "lokr_w2": True, "glora_a2": True,
    "full_weight": True, "diff": True, "oft_blocks": True, "boft_blocks": True, "dora_scale": False, "scalar": False,
    "rescale": False, "norm_weight": False, "norm_bias": False, "full_bias": False, "diff_b": False, "ia3": False,
    "tlora_p": False, "tlora_q": False, "tlora_lambda": False, "lora_embedding_A": True, "lora_embedding_B": True,
    "vera_lambda_b": True, "vera_lambda_d": True, "lora_bias": False,
}  # fmt: skip


def all_roles():
    return {role.name: role for role in role_table.ROLES}


def test_decay_per_role():
    roles = all_roles()
    assert {name: roles[name].decays for name in DECAYS} == DECAYS
    assert REGULAR.decays
    still = [role for role in roles.values() if role.kind in (Kind.SCALE, Kind.NORM, Kind.BIAS) and role.algo != "vera"]
    assert not any(role.decays for role in still)


def test_partners_in_the_table_are_mutual_and_on_opposite_sides():
    roles = all_roles()
    paired = [role for role in roles.values() if role.partner]
    assert len(paired) == 20
    for role in paired:
        other = roles[role.partner or ""]
        assert other.partner == role.name
        assert {role.side, other.side} == {"A", "B"}
        assert (role.mid, role.algo, role.kronecker) == (other.mid, other.algo, other.kronecker)
        assert role.mid is None or roles[role.mid].algo == role.algo
    assert {role.name for role in roles.values() if role.side} == {role.name for role in paired}


# --- prefixes, strangers, halves, duplicates ---------------------------------------------------------------------


@pytest.mark.parametrize("case", ["sd-scripts lora linear", "lycoris 3.4.0 full", "lycoris 3.4.0 loha scalar dora"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.module."])
def test_wrappers_change_nothing(case, prefix):
    names, shapes = golden(case)
    plain, wrapped = resolve(names, shapes), resolve([prefix + name for name in names], shapes)
    assert [(m.module, m.role, m.partner) for m in wrapped] == [(m.module, m.role, m.partner) for m in plain]


def test_compiled_inside_and_container_prefixes():
    assert identify("lora_unet_x._orig_mod.lora_up.weight")[0] == "lora_unet_x"
    assert identify("lora_unet_x.lora_up._orig_mod.weight")[1].name == "lora_up"
    assert identify("lora_modules.lora_unet_x.scalar")[1].name == "scalar"


@pytest.mark.parametrize(
    "name",
    [
        "down_blocks.0.attn1.to_q.weight", "conv_in.bias", "model.scalar", "encoder.a1.weight", "module.weight",
        "weight", "lora_up.weight", "lora_A.weight", "lora_A.default.weight", "lora_unet_x.alpha", "", ".",
        "lora_unet_x.my_lora_up.weight", "lora_unet_x.lora_up.weight.extra", "lora_unet_x.lora_up.first.weight",
        "lora_unet_x.lokr_w3", "lora_unet_x.hada_w1_a2", "lora_unet_lora_up_weight", "vae.up_list.0",
        "lora_unet_x.inner.weight", "unet.up.weight", "x.my_lora_A.default.weight", "x.lora_A.default.other.weight",
        "x.lora_A.default", "x.lora_A.default.bias", "x.lora_flora.down.weight", "x.lora_E.default",
        "x.xlokr_w1.default", "x.lora_embedding_A.default.weight", "base_model.vera_A", "x.lora.down.bias",
        "x.token_adapter.trainable_tokens_delta.default", "x.modules_to_save.default.weight",
        "x.ln_tuning_layers.default.weight",
    ],
)  # fmt: skip
def test_strangers_are_regular(name):
    assert identify(name) == (name, REGULAR)
    (member,) = resolve([name], [(4, 4)])
    assert member.role is REGULAR
    assert summary([member])["regular"] == 1


def test_unnamed_are_counted_apart():
    members = resolve([None, "conv.weight", None], [(4, 4), (4,), ()])
    counts = summary(members)
    assert (counts["named"], counts["unnamed"], counts["regular"]) == (1, 2, 1)
    assert [m.role for m in members] == [REGULAR] * 3


def test_halves_and_misfits_are_not_paired():
    names = ["lora_unet_a.lora_up.weight", "lora_unet_b.lora_down.weight", *golden("sd-scripts lora linear")[0]]
    members = resolve(names, [(8, 4), (4, 8), (4, 32), (48, 5)])
    assert [m.partner for m in members] == [None] * 4
    assert summary(members)["lora_stats"] == {"lora_a_params": 2, "lora_b_params": 2, "lora_pairs": 0}


def test_lists_of_different_length_raise():
    with pytest.raises(ValueError, match="shorter"):
        resolve(["a"], [])


def test_a_role_that_is_there_twice_is_not_paired():
    names, shapes = golden("sd-scripts lora linear")
    members = resolve([*names, names[0]], [*shapes, shapes[0]])
    assert [m.partner for m in members] == [None] * 3
    names, shapes = golden("sd-scripts branch lokr conv full")
    members = resolve([*names, names[0]], [*shapes, shapes[0]])
    assert [m.cofactors for m in members] == [()] * 3


@pytest.mark.parametrize(
    ("present", "cofactors", "rank"),
    [
        ({"lokr_w1": (4, 4)}, {}, 1),
        ({"lokr_w1": (4, 4), "lokr_w2_a": (8, 2)}, {}, 1),
        ({"lokr_w1": (4, 4), "lokr_w2_a": (8, 2), "lokr_w2_b": (3, 8)}, {}, 1),
        ({"lokr_w1": (4, 4), "lokr_w2": (8, 8), "lokr_w2_a": (8, 2)}, {}, 1),
        ({"lokr_w1": (4, 4), "lokr_w2": (8, 8)}, {"lokr_w1": ["lokr_w2"], "lokr_w2": ["lokr_w1"]}, 1),
        (
            {"lokr_w2_b": (2, 8), "lokr_w1": (4, 4), "lokr_w2_a": (8, 2)},
            {"lokr_w1": ["lokr_w2_a", "lokr_w2_b"], "lokr_w2_a": ["lokr_w1", "lokr_w2_b"],
             "lokr_w2_b": ["lokr_w1", "lokr_w2_a"]},
            2,
        ),
        (
            {"lokr_w1": (4, 4), "lokr_w2_a": (2, 8), "lokr_w2_b": (2, 8), "lokr_t2": (2, 2, 3, 3)},
            {"lokr_w1": ["lokr_t2", "lokr_w2_a", "lokr_w2_b"], "lokr_t2": ["lokr_w1", "lokr_w2_a", "lokr_w2_b"],
             "lokr_w2_a": ["lokr_t2", "lokr_w1", "lokr_w2_b"], "lokr_w2_b": ["lokr_t2", "lokr_w1", "lokr_w2_a"]},
            4,
        ),
        (
            {"lokr_w1_a": (8, 3), "lokr_w1_b": (3, 8), "lokr_w2": (8, 8)},
            {"lokr_w1_a": ["lokr_w1_b", "lokr_w2"], "lokr_w1_b": ["lokr_w1_a", "lokr_w2"],
             "lokr_w2": ["lokr_w1_a", "lokr_w1_b"]},
            3,
        ),
    ],
)  # fmt: skip
def test_kronecker_sides_must_be_complete(present, cofactors, rank):
    members = resolve([f"lora_unet_x.{name}" for name in present], list(present.values()))
    found = {m.role.name: [members[j].role.name for j in m.cofactors] for m in members if m.cofactors}
    assert found == cofactors
    assert {m.cofactor_rank for m in members} == {rank}
    assert summary(members)["lokr_stats"]["lokr_pairs"] == int(bool(cofactors))


def test_tucker_core_of_one_half_leaves_the_other_half_paired():
    case = dict(zip(*golden("sd-scripts branch loha conv3"), strict=True))
    case[f"{MODULE}.hada_t2"] = (4, 4, 3, 3)
    members = resolve(list(case), list(case.values()))
    assert [m.partner for m in members] == [1, 0, None, None, None]


def test_summary_and_its_line():
    names, shapes = [], []
    for k, case in enumerate(["sd-scripts lora linear", "lycoris 3.4.0 norm", "sd-scripts branch lokr conv full"]):
        more_names, more_shapes = golden(case, f"lora_unet_{k}")
        names += more_names
        shapes += more_shapes
    names += ["lora_unet_9.lokr_w2_a", "lora_unet_9.lokr_w2_b", "lora_unet_8.w_norm", "conv.weight", None]
    members = resolve(names, [*shapes, (8, 2), (2, 8), (3,), (4, 4), (2,)])
    counts = summary(members)
    assert counts["lora_stats"] == {"lora_a_params": 1, "lora_b_params": 1, "lora_pairs": 1}
    assert counts["lokr_stats"] == {
        "lokr_w1_params": 1, "lokr_w2_params": 3, "lokr_pairs": 1, "lokr_groups": 2,
        "w_norm_params": 2, "b_norm_params": 1, "norm_pairs": 1,
    }  # fmt: skip
    assert counts["by_role"]["norm_weight"] == 2
    assert summary_line(members) == (
        "hina-kohya: 10 parameters named; lokr 2 modules, 1 Kronecker pairs, 1 pairs; lora 1 modules, 1 pairs; "
        "norm 2 modules; 1 regular, 1 unnamed"
    )
    assert summary([])["lora_stats"]["lora_pairs"] == 0


STRANGERS = [("conv.weight", (4, 4)), (None, (4,)), ("lora_unet_0.alpha", ()), ("lora_unet_0.lora_up.weight", (9, 4))]


@given(st.data())
def test_order_does_not_matter(data):
    """Param groups may come in any order (text encoders first, LoRA+ apart): the same pairs are found."""
    cases = data.draw(st.lists(st.sampled_from(sorted(GOLDEN)), max_size=4))
    named = [pair for k, case in enumerate(cases) for pair in zip(*golden(case, f"lora_unet_{k}"), strict=True)]
    named += data.draw(st.lists(st.sampled_from(STRANGERS), max_size=3))
    order = data.draw(st.permutations(range(len(named))))
    before = resolve([name for name, _ in named], [shape for _, shape in named])
    after = resolve([named[i][0] for i in order], [named[i][1] for i in order])
    for place, i in enumerate(order):
        old, new = before[i], after[place]
        assert (new.name, new.role, new.module, new.shape) == (old.name, old.role, old.module, old.shape)
        assert old.partner == (None if new.partner is None else order[new.partner])
        assert old.cofactors == tuple(order[j] for j in new.cofactors)
        assert old.cofactor_rank == new.cofactor_rank


def test_no_torch():
    code = "import sys, hina_kohya.parameters.roles; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
