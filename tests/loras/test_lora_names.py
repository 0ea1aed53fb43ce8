"""Names of every model that the trainers train, from each style to the others and back."""

import itertools

import pytest

from hina_kohya.loras import names, unet_names, words
from hina_kohya.loras.errors import AdapterError
from hina_kohya.loras.parts import split
from hina_kohya.trainers.facts.architectures import ARCHITECTURES
from tests.support.kohya_names import kohya, paths


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_dot_is_found_again(name):
    architecture = ARCHITECTURES[name]
    trees = [architecture.unet(), *architecture.text_encoders()]
    everything = [path for tree in trees for path in paths(tree)]
    hunyuan = words.is_hunyuan([path.replace(".", "_") for path in everything])
    assert hunyuan == (name == "hunyuan-image")
    for path in everything:
        assert words.dotted(path.replace(".", "_"), hunyuan) == path


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("style", ["comfy", "peft", "diffusers"])
def test_names_lead_there_and_back(name, style):
    ours = kohya(ARCHITECTURES[name])
    model = names.model_of(ours, {})
    if style == "diffusers" and not model.unet:
        with pytest.raises(AdapterError, match="no map of names leads there"):
            names.named(names.place_of(ours[0], model), style, model)
        return
    if style == "peft":  # of one model
        ours = [each for each in ours if each.startswith("lora_unet_")]
        model = names.model_of(ours, {})
    there = [names.named(names.place_of(each, model), style, model) for each in ours]
    assert len(set(there)) == len(ours)
    assert {names.style_of(each) for each in there} == {style}
    away = names.model_of(there, {})
    assert [names.named(names.place_of(each, away), "kohya", away) for each in there] == ours


def test_sdxl_in_the_words_of_each_program():
    ours = "lora_unet_output_blocks_3_1_transformer_blocks_1_attn1_to_out_0"
    model = names.model_of([ours], {})
    place = names.place_of(ours, model)
    assert [names.named(place, style, model) for style in names.STYLES] == [
        ours,
        "base_model.model.up_blocks.1.attentions.0.transformer_blocks.1.attn1.to_out.0",
        "unet.up_blocks.1.attentions.0.transformer_blocks.1.attn1.to_out.0",
        "diffusion_model.output_blocks.3.1.transformer_blocks.1.attn1.to_out.0",
    ]


def test_the_u_net_s_two_sets_of_names_are_diffusers_own():
    """diffusers' converter of single-file models knows which module is which."""
    convert = pytest.importorskip("diffusers.loaders.single_file_utils").convert_ldm_unet_checkpoint
    import torch

    architecture = ARCHITECTURES["sdxl"]
    keys = [f"{path}.weight" for path in paths(architecture.unet())]
    marked = {f"model.diffusion_model.{key}": torch.tensor([float(number)]) for number, key in enumerate(keys)}
    config = {"layers_per_block": 2, "addition_embed_type": "text_time", "class_embed_type": None}
    rest = [f"{key.removesuffix('.weight')}.bias" for key in keys] + ["out.0.weight", "out.0.bias"]
    marked |= {f"model.diffusion_model.{key}": torch.tensor([-1.0]) for key in rest}
    converted = convert(marked, config)
    theirs = {int(value): key.removesuffix(".weight") for key, value in converted.items()
              if key.endswith(".weight") and float(value) >= 0}  # fmt: skip
    checked = 0
    for number, key in enumerate(keys):
        if number in theirs:
            path = key.removesuffix(".weight")
            assert unet_names.to_diffusers(path) == theirs[number]
            assert unet_names.to_original(theirs[number], sdxl=True) == path
            checked += 1
    assert checked > 700


def test_unknown_words_are_an_error_and_not_a_guess():
    with pytest.raises(AdapterError, match="where the dots are in foo_bar_0 cannot be told"):
        words.dotted("foo_bar_0")


def test_flux_and_hunyuan_are_told_apart():
    flat = "double_blocks_0_img_attn_qkv"
    assert words.dotted(flat, hunyuan=False) == "double_blocks.0.img_attn.qkv"
    assert words.dotted(flat, hunyuan=True) == "double_blocks.0.img_attn_qkv"


@pytest.mark.parametrize(
    ("key", "module", "part"),
    [
        ("lora_unet_x_to_q.lora_down.weight", "lora_unet_x_to_q", "down"),
        ("unet.x.attn1.processor.to_q_lora.up.weight", "unet.x.attn1.processor.to_q", "up"),
        ("text_encoder.x.q_proj.lora_linear_layer.down.weight", "text_encoder.x.q_proj", "down"),
        ("base_model.model.x.lora_B.weight", "base_model.model.x", "up"),
        ("base_model.model.x.lora_magnitude_vector", "base_model.model.x", "magnitude"),
        ("diffusion_model.blocks.0.self_attn.q.alpha", "diffusion_model.blocks.0.self_attn.q", "alpha"),
        ("lora_unet_x.hada_w1_a", "lora_unet_x", "hada_w1_a"),
    ],
)
def test_keys_of_every_writer(key, module, part):
    assert split(key) == (module, part)


def test_musubi_s_and_comfy_s_names_of_wan_are_one():
    musubi = [f"lora_unet_blocks_0_{a}_attn_{b}" for a, b in itertools.product(("self", "cross"), "qkvo")]
    musubi += ["lora_unet_blocks_0_ffn_0", "lora_unet_blocks_0_cross_attn_k_img", "lora_unet_time_projection_1"]
    model = names.model_of(musubi, {})
    assert [names.named(names.place_of(each, model), "comfy", model) for each in musubi][-3:] == [
        "diffusion_model.blocks.0.ffn.0",
        "diffusion_model.blocks.0.cross_attn.k_img",
        "diffusion_model.time_projection.1",
    ]
