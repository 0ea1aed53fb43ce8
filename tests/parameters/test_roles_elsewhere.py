"""Names of PEFT (made here, read while they train), of diffusers old and new, and of musubi's split layers -> roles."""

import math
import string
import warnings
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hina_kohya.parameters import role_table
from hina_kohya.parameters.roles import REGULAR, Kind, identify, resolve, summary

peft = pytest.importorskip("peft")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(11, 32)
        self.q = nn.Linear(32, 48)
        self.out = nn.Linear(48, 32, bias=False)
        self.conv = nn.Conv2d(32, 24, 3)
        self.point = nn.Conv2d(24, 16, 1)
        self.conv1d = nn.Conv1d(32, 24, 3)


LINEAR, ALL = ["q", "out"], ["q", "out", "conv", "point", "conv1d"]
LORA = {"lora_down": 1, "lora_up": 1}
EMBEDDING = {"lora_embedding_A": 1, "lora_embedding_B": 1}
LOHA = dict.fromkeys(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), 1)
LOKR = dict.fromkeys(("lokr_w1", "lokr_w2_a", "lokr_w2_b"), 1)
BOTH = dict.fromkeys(("lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"), 1)


def five(roles, **more):
    """`roles` in each of the five layers, and what only some of them have."""
    return {**{name: 5 * count for name, count in roles.items()}, **more}


# config, its options, roles of the whole network, pairs
REAL = {
    "lora": ("LoraConfig", {"r": 4, "target_modules": ["emb", *ALL]}, {**five(LORA), **EMBEDDING}, 6),
    "dora": (
        "LoraConfig",
        {"r": 4, "target_modules": ["emb", *ALL], "use_dora": True},
        {**five(LORA, dora_scale=6), **EMBEDDING},
        6,
    ),
    "bias": (
        "LoraConfig",
        {"r": 4, "target_modules": ["q"], "lora_bias": True},
        {**LORA, "lora_bias": 1},
        1,
    ),
    "loha": ("LoHaConfig", {"r": 4, "target_modules": ALL}, five(LOHA), 10),
    "loha tucker": (
        "LoHaConfig",
        {"r": 4, "target_modules": ALL, "use_effective_conv2d": True},
        five(LOHA, hada_t1=2, hada_t2=2),
        6,
    ),
    "lokr": ("LoKrConfig", {"r": 2, "target_modules": ALL}, five(LOKR), 5),
    "lokr tucker": (
        "LoKrConfig",
        {"r": 2, "target_modules": ALL, "use_effective_conv2d": True, "decompose_factor": 4},
        five(LOKR, lokr_t2=2),
        3,
    ),
    "lokr both": (
        "LoKrConfig",
        {"r": 1, "target_modules": ALL, "decompose_both": True, "decompose_factor": 8},
        five(BOTH),
        10,
    ),
    "lokr full": ("LoKrConfig", {"r": 200, "target_modules": ALL}, five({"lokr_w1": 1, "lokr_w2": 1}), 0),
    "vera": ("VeraConfig", {"r": 4, "target_modules": LINEAR}, {"vera_lambda_b": 2, "vera_lambda_d": 2}, 0),
    "ia3": ("IA3Config", {"target_modules": LINEAR, "feedforward_modules": ["out"]}, {"ia3": 2}, 0),
    "oft": ("OFTConfig", {"oft_block_size": 4, "target_modules": LINEAR}, {"oft_blocks": 2}, 0),
    "boft": ("BOFTConfig", {"boft_block_size": 4, "target_modules": LINEAR}, {"boft_blocks": 2, "rescale": 2}, 0),
}
ADAPTERS = ["default", "my-style_2", "0", "lora_A", "weight", "module"]


def network(case, adapter="default"):
    config, options, _, _ = REAL[case]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # BOFT says that it has no CUDA kernel
        return peft.get_peft_model(Net(), getattr(peft, config)(**options), adapter_name=adapter)


def trained(model):
    return {name: param for name, param in model.named_parameters() if param.requires_grad}


def members_of(params):
    return resolve(list(params), [param.shape for param in params.values()])


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("case", REAL)
def test_peft_while_it_trains(case, adapter):
    _, _, roles, pairs = REAL[case]
    params = trained(network(case, adapter))
    members = members_of(params)
    assert Counter(member.role.name for member in members) == roles
    assert {member.adapter for member in members} == {adapter}
    layers = {member.module.removeprefix("base_model.model.") for member in members}
    assert layers <= {"emb", *ALL}
    counts = summary(members)
    assert (counts["regular"], counts["unnamed"]) == (0, 0)
    (algo,) = counts["by_algo"].values()
    assert (algo["modules"], algo["pairs"]) == (len(layers), pairs)
    assert {m.name: m.role.zero_init for m in members} == {name: not p.any() for name, p in params.items()}
    for i, member in enumerate(members):
        if member.partner is not None:
            other = members[member.partner]
            assert (other.partner, other.module, other.role.name) == (i, member.module, member.role.partner)


@pytest.mark.parametrize("case", REAL)
def test_peft_in_a_file_says_the_same(case):
    """Saved names have no adapter; PEFT's prefix tells its LoKr and LoHa from those of LyCORIS."""
    model = network(case)
    by_role = {(m.module, m.role.name): m for m in members_of(trained(model))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a bias is taken for a shard of a matrix
        saved = peft.get_peft_model_state_dict(model)
    saved = {name: tensor for name, tensor in saved.items() if not name.startswith("base_model.vera_")}
    members = members_of(saved)
    assert {(m.module, m.role.name): m.role for m in members} == {key: m.role for key, m in by_role.items()}
    assert [m.partner is None for m in members] == [by_role[m.module, m.role.name].partner is None for m in members]
    assert {m.cofactor_rank for m in members} == {m.cofactor_rank for m in by_role.values()}
    assert {m.adapter for m in members} == {""}


@pytest.mark.parametrize("case", ["lora", "dora"])
def test_the_product_of_a_peft_pair_is_its_update(case):
    """B A in the matrix view is what PEFT adds to the weight; an embedding's is transposed."""
    model = network(case)
    params = trained(model)
    for param in params.values():
        nn.init.normal_(param)
    members, values = members_of(params), list(params.values())
    for i, member in enumerate(members):
        if member.role.side == "B":
            layer = model.get_submodule(member.module)
            delta = layer.get_delta_weight("default") / layer.scaling["default"]
            delta = delta.mT if member.role.name == "lora_embedding_B" else delta.flatten(1)
            torch.testing.assert_close(values[i].flatten(1) @ values[member.partner].flatten(1), delta)


def rms(x):
    return float(x.detach().square().mean().sqrt())


@pytest.mark.parametrize("case", [case for case in REAL if case.startswith("lokr")])
def test_cofactors_predict_the_size_of_a_step_in_pefts_lokr(case):
    """As with LyCORIS: RMS(dW) is sqrt(cofactor_rank) RMS(step) prod RMS(cofactors)."""
    model = network(case)
    params = trained(model)
    members, values = members_of(params), list(params.values())
    for i, member in enumerate(members):
        layer, samples = model.get_submodule(member.module), []
        for _ in range(40):
            for j in (i, *member.cofactors):
                nn.init.normal_(values[j])
            expected = math.sqrt(member.cofactor_rank) * math.prod(rms(values[j]) for j in (i, *member.cofactors))
            samples.append(rms(layer.get_delta_weight("default")) / layer.scaling["default"] / expected)
        ratio = sum(samples) / len(samples)
        assert 0.8 < ratio < 1.2, (member.name, ratio)
        assert len(member.cofactors) + 1 == sum(other.module == member.module for other in members)


@pytest.mark.parametrize("case", ["lora", "loha", "lokr", "dora"])
def test_two_adapters_of_one_module_share_nothing(case):
    model = network(case)
    one = members_of(trained(model))
    model.add_adapter("second", model.peft_config["default"])
    model.base_model.set_adapter(["default", "second"])
    params = trained(model)
    assert len(params) == 2 * len(one)
    members = members_of(params)
    for member in members:
        tied = {*member.cofactors, *(() if member.partner is None else (member.partner,))}
        assert {members[i].adapter for i in tied} <= {member.adapter}
    counts = summary(members)
    for algo, before in summary(one)["by_algo"].items():
        assert counts["by_algo"][algo] == {key: 2 * value for key, value in before.items()}
    assert counts["lokr_stats"]["lokr_pairs"] == 2 * summary(one)["lokr_stats"]["lokr_pairs"]


@pytest.mark.parametrize("init", ["pissa", "olora", "orthogonal", False])
def test_other_starts_keep_sides_and_pairs(init):
    """No name says that B does not start at zero there; LoRA+ goes by B all the same, as PEFT's own does."""
    config = peft.LoraConfig(r=4, target_modules=["q"], init_lora_weights=init)
    params = trained(peft.get_peft_model(Net(), config))
    assert [(m.role.name, m.partner) for m in members_of(params)] == [("lora_down", 1), ("lora_up", 0)]
    assert all(p.any() for p in params.values())


# --- diffusers ---------------------------------------------------------------------------------------------------

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
CLIP = "text_model.encoder.layers.0"
# read off diffusers 0.20.2 (unet.named_parameters, AttnProcsLayers, LoraLoaderMixin) and x-flux: what stands before
# `down.weight` and `up.weight`, and the module that it belongs to
OLD = {
    f"{BLOCK}.attn1.processor.to_q_lora": f"{BLOCK}.attn1.processor.to_q_lora",
    f"unet.{BLOCK}.attn1.processor.to_out_lora": f"unet.{BLOCK}.attn1.processor.to_out_lora",
    f"{BLOCK}.attn2.processor.add_k_proj_lora": f"{BLOCK}.attn2.processor.add_k_proj_lora",
    "layers.0.to_v_lora": "layers.0.to_v_lora",
    f"{BLOCK}.ff.net.0.proj.lora_layer": f"{BLOCK}.ff.net.0.proj",
    f"{BLOCK}.attn1.to_q.lora": f"{BLOCK}.attn1.to_q",
    f"text_encoder.{CLIP}.self_attn.q_proj.lora_linear_layer": f"text_encoder.{CLIP}.self_attn.q_proj",
    f"text_encoder.{CLIP}.self_attn.to_q_lora": f"text_encoder.{CLIP}.self_attn.to_q_lora",
    "double_blocks.0.processor.qkv_lora1": "double_blocks.0.processor.qkv_lora1",
    "single_blocks.0.processor.proj_lora": "single_blocks.0.processor.proj_lora",
}


@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize("shapes", [((4, 32), (48, 4)), ((4, 32, 3, 3), (48, 4, 1, 1))], ids=["linear", "conv"])
@pytest.mark.parametrize("before", OLD)
def test_old_diffusers(before, shapes, wrapper):
    names = [f"{wrapper}{before}.down.weight", f"{wrapper}{before}.up.weight"]
    down, up = resolve(names, shapes)
    assert (down.role.name, down.role.algo, down.role.side, down.partner) == ("lora_down", "lora", "A", 1)
    assert (up.role.name, up.role.algo, up.role.side, up.partner) == ("lora_up", "lora", "B", 0)
    assert (down.role.zero_init, up.role.zero_init) == (False, True)
    assert (down.module, up.module) == (OLD[before], OLD[before])


def test_a_layer_of_diffusers_own_starts_as_recorded():
    lora = pytest.importorskip("diffusers.models.lora")
    if not hasattr(lora, "LoRALinearLayer"):
        pytest.skip("this diffusers has no LoRA layers of its own any more")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        processor = nn.ModuleDict({"to_q_lora": lora.LoRALinearLayer(32, 48, 4)})
        linear = nn.ModuleDict({"proj": nn.ModuleDict({"lora_layer": lora.LoRAConv2dLayer(32, 48, 4, (3, 3))})})
    for model in (nn.ModuleDict({"processor": processor}), linear):
        params = trained(model)
        members = members_of(params)
        assert [(m.role.name, m.partner) for m in members] == [("lora_down", 1), ("lora_up", 0)]
        assert [m.role.zero_init for m in members] == [not p.any() for p in params.values()]


@pytest.fixture(scope="module")
def unet():
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8, cross_attention_dim=24,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    model.requires_grad_(False)
    model.add_adapter(peft.LoraConfig(r=4, target_modules=["to_q", "to_out.0", "conv1"], use_dora=True))
    return model


def test_diffusers_add_adapter_and_its_two_kinds_of_files(unet):
    """`add_adapter` while training, PEFT's names in a file, and the older names that `save_lora_weights` writes."""
    utils = pytest.importorskip("diffusers.utils")
    params = trained(unet)
    members = members_of(params)
    layers = len({m.module for m in members})
    expected = {"lora_down": layers, "lora_up": layers, "dora_scale": layers}
    assert {m.name: m.role.zero_init for m in members} == {name: not p.any() for name, p in params.items()}
    saved = peft.get_peft_model_state_dict(unet)
    for named in (params, saved, utils.convert_state_dict_to_diffusers(dict(saved))):
        members = members_of(named)
        assert Counter(m.role.name for m in members) == expected
        assert {m.role.algo for m in members} == {"lora"}
        assert len({m.module for m in members}) == layers
        assert all((m.partner is None) == (m.role.kind is Kind.SCALE) for m in members)


# --- musubi-tuner ------------------------------------------------------------------------------------------------


def test_musubis_split_layers():
    """`LoRAModule(split_dims=...)` at 30c658c: a pair for each of q, k and v."""
    names = [f"lora_unet_blocks_0_attn_qkv.lora_{side}.{i}.weight" for side in ("down", "up") for i in range(3)]
    members = resolve(names, [(4, 32)] * 3 + [(32, 4), (16, 4), (16, 4)])
    assert [m.partner for m in members] == [3, 4, 5, 0, 1, 2]
    assert {m.module for m in members} == {"lora_unet_blocks_0_attn_qkv"}
    assert [m.role.zero_init for m in members] == [False] * 3 + [True] * 3


# --- nothing of before changed -----------------------------------------------------------------------------------

# The whole table as it was before PEFT's names came in: role, algorithm, zero at the start, decays, partner.
KOHYA = {
    "lora_down.weight": ("lora_down", "lora", False, True, "lora_up"),
    "lora_up.weight": ("lora_up", "lora", True, True, "lora_down"),
    "lora_mid.weight": ("lora_mid", "lora", False, True, None),
    "lora_down.#.weight": ("lora_down", "lora", False, True, "lora_up"),
    "lora_up.#.weight": ("lora_up", "lora", True, True, "lora_down"),
    "lora_A.#": ("dylora_down", "dylora", False, True, "dylora_up"),
    "lora_B.#": ("dylora_up", "dylora", True, True, "dylora_down"),
    "hada_w1_a": ("hada_w1_a", "loha", False, True, "hada_w1_b"),
    "hada_w1_b": ("hada_w1_b", "loha", False, True, "hada_w1_a"),
    "hada_w2_a": ("hada_w2_a", "loha", True, True, "hada_w2_b"),
    "hada_w2_b": ("hada_w2_b", "loha", False, True, "hada_w2_a"),
    "hada_t1": ("hada_t1", "loha", False, True, None),
    "hada_t2": ("hada_t2", "loha", False, True, None),
    "lokr_w1": ("lokr_w1", "lokr", False, True, None),
    "lokr_w1_a": ("lokr_w1_a", "lokr", False, True, "lokr_w1_b"),
    "lokr_w1_b": ("lokr_w1_b", "lokr", False, True, "lokr_w1_a"),
    "lokr_w2": ("lokr_w2", "lokr", True, True, None),
    "lokr_w2_a": ("lokr_w2_a", "lokr", False, True, "lokr_w2_b"),
    "lokr_w2_b": ("lokr_w2_b", "lokr", True, True, "lokr_w2_a"),
    "lokr_t2": ("lokr_t2", "lokr", False, True, None),
    "oft_blocks": ("oft_blocks", "oft", True, True, None),
    "oft_blocks.#": ("oft_blocks", "oft", True, True, None),
    "dora_scale": ("dora_scale", "", False, False, None),
    "w_norm": ("norm_weight", "norm", True, False, None),
    "b_norm": ("norm_bias", "norm", True, False, None),
    "up_list.#": ("dylora_up", "dylora", True, True, "dylora_down"),
    "down_list.#": ("dylora_down", "dylora", False, True, "dylora_up"),
    "a1.weight": ("glora_a1", "glora", False, True, "glora_a2"),
    "a2.weight": ("glora_a2", "glora", True, True, "glora_a1"),
    "b1.weight": ("glora_b1", "glora", False, True, "glora_b2"),
    "b2.weight": ("glora_b2", "glora", True, True, "glora_b1"),
    "bm.weight": ("glora_bm", "glora", False, True, None),
    "p_layer.weight": ("tlora_p", "tlora", False, False, "tlora_q"),
    "q_layer.weight": ("tlora_q", "tlora", False, False, "tlora_p"),
    "lambda_layer": ("tlora_lambda", "tlora", False, False, None),
    "weight": ("full_weight", "full", False, True, None),
    "bias": ("full_bias", "full", False, False, None),
    "diff": ("diff", "full", True, True, None),
    "diff_b": ("diff_b", "full", True, False, None),
    "rescale": ("rescale", "", False, False, None),
    "scalar": ("scalar", "", True, False, None),
}
# words that occur in names of any of these kinds, so that a chance meeting of two kinds is tried
WORDS = [
    "lora", "lora_A", "lora_B", "lora_up", "lora_down", "default", "weight", "bias", "to_q_lora", "processor",
    "base_model", "model", "lokr_w1", "hada_w1_a", "up", "down", "0", "12", "lora_layer", "module", "unet", "attn1",
]  # fmt: skip
identifiers = st.one_of(st.sampled_from(WORDS), st.text(string.ascii_letters + string.digits + "_-", min_size=1))
containers = st.lists(identifiers.filter(lambda part: part not in ("base_model", "module")), max_size=3)


@given(
    st.sampled_from(sorted(KOHYA)),
    st.sampled_from(["lora_unet", "lora_te", "lora_te1", "lora_te2", "lycoris"]),
    st.text(string.ascii_lowercase + string.digits + "_", min_size=1),
    containers,
    st.integers(0, 99),
)
def test_every_kohya_name_keeps_its_role(ending, prefix, rest, above, index):
    module = ".".join([*above, f"{prefix}_{rest}"])
    place, role = identify(f"{module}.{ending.replace('#', str(index))}", (4, 4))
    assert (role.name, role.algo, role.zero_init, role.decays, role.partner) == KOHYA[ending]
    assert place == module


KNOWN = {
    *role_table.DISTINCT,
    *role_table.GENERIC,
    *role_table.PEFT,
    *(f"{first}.default{dot}{rest}" for first, dot, rest in (ending.partition(".") for ending in role_table.PEFT)),
} - {"lora_magnitude_vector.weight"}  # where another word would be an adapter of PEFT up to 0.11


@pytest.mark.parametrize("ending", sorted(KNOWN))
def test_one_letter_more_makes_a_stranger(ending):
    """At either end of any part but the adapter's name."""
    ending = ending.replace("#", "3")
    parts = ending.split(".")
    assert identify(f"lora_unet_x.{ending}")[1] is not REGULAR
    for i, part in enumerate(parts):
        for changed in (f"x{part}", f"{part}x"):
            name = ".".join(["lora_unet_x", *parts[:i], changed, *parts[i + 1 :]])
            assert (identify(name) == (name, REGULAR)) == (part != "default"), name


@given(identifiers, st.lists(identifiers, min_size=1, max_size=4))
def test_any_adapter_name_is_told_from_a_module(adapter, above):
    above = [part for part in above if part != "module"] or ["q"]
    module = ".".join(above)
    for ending, role in (
        ("lora_A.{}.weight", "lora_down"), ("lora_B.{}.weight", "lora_up"), ("lora_B.{}.bias", "lora_bias"),
        ("lora_magnitude_vector.{}.weight", "dora_scale"), ("lora_embedding_A.{}", "lora_embedding_A"),
        ("lokr_w2_b.{}", "lokr_w2_b"), ("hada_w2_b.{}", "hada_w2_b"), ("vera_lambda_d.{}", "vera_lambda_d"),
    ):  # fmt: skip
        (member,) = resolve([f"{module}.{ending.format(adapter)}"], [(4, 4)])
        assert (member.module, member.adapter, member.role.name) == (module, adapter, role)
