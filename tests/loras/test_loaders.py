"""Other programs' files go in, and they load the result again: peft, diffusers, DoRA in LyCORIS and peft."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hina_kohya.cli import main
from hina_kohya.loras.errors import AdapterError
from hina_kohya.loras.resizing import Request, resize
from hina_kohya.loras.summing import Source
from tests.support import lora_files as files
from tests.support.dense import dense, truncated


def run(source, out, **how):
    sources = source if isinstance(source, tuple) else (Source(source),)
    return resize(Request(sources, out, **how))


class Text(torch.nn.Module):
    """A model for peft: its layers call each other."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.first, self.second = torch.nn.Linear(8, 12), torch.nn.Linear(12, 6)
        self.inner = torch.nn.Module()
        self.inner.second = torch.nn.Linear(6, 9)
        self.conv = torch.nn.Conv2d(2, 5, 3, padding=1)

    def forward(self, x):
        y = self.inner.second(self.second(self.first(x)))
        return self.conv(y[:, :8].reshape(-1, 2, 2, 2)).flatten(1)


PEFT = {
    "lora": ("LoraConfig", {"r": 4, "lora_alpha": 6}),
    "rslora": ("LoraConfig", {"r": 4, "lora_alpha": 6, "use_rslora": True}),
    "patterns": ("LoraConfig", {"r": 4, "rank_pattern": {"first": 2}, "alpha_pattern": {"inner.second": 3}}),
    "dora": ("LoraConfig", {"r": 4, "lora_alpha": 6, "use_dora": True}),
    "loha": ("LoHaConfig", {"r": 3, "alpha": 5}),
    "loha_tucker": ("LoHaConfig", {"r": 3, "alpha": 5, "use_effective_conv2d": True}),
    "lokr": ("LoKrConfig", {"r": 2, "alpha": 5}),
    "lokr_both": ("LoKrConfig", {"r": 1, "alpha": 5, "decompose_both": True, "use_effective_conv2d": True}),
    "lokr_whole": ("LoKrConfig", {"r": 64, "alpha": 5}),
}  # fmt: skip


@pytest.mark.parametrize("kind", PEFT)
def test_peft_computes_the_same_outputs_from_the_result(tmp_path, kind):
    peft = pytest.importorskip("peft")
    cls, arguments = PEFT[kind]
    # peft's LoHa and LoKr have a convolution's factors as matrices, and this model's names do not tell what is one.
    targets = ["first", "second", "inner.second", *(["conv"] if kind not in ("loha", "lokr") else [])]
    model = peft.get_peft_model(Text(), getattr(peft, cls)(target_modules=targets, **arguments))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if param.requires_grad:
                noise = torch.randn(param.shape, generator=generator) * 0.4
                param.copy_(param * (1 + 0.1 * noise) if "magnitude" in name else noise)
    model.eval()
    model.save_pretrained(tmp_path / "before")
    result = run(tmp_path / "before/adapter_model.safetensors", tmp_path / "after/adapter_model.safetensors", keep=1.0)
    assert not any("no alpha" in note for note in result.notes)
    again = peft.PeftModel.from_pretrained(Text(), tmp_path / "after").eval()
    x = torch.randn(7, 8, generator=generator)
    with torch.no_grad():
        expected, found, base = model(x), again(x), Text()(x)
    assert (expected - base).abs().max() > 0.01
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_peft_s_configuration_is_never_another_adapter_s(tmp_path):
    pytest.importorskip("peft")
    files.plain(tmp_path / "a.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(AdapterError, match="give -o another folder"):
        run(tmp_path / "a.safetensors", tmp_path / "b.safetensors", keep=1.0, names="peft")
    assert (tmp_path / "adapter_config.json").read_text() == "{}"


def test_peft_without_its_configuration_says_what_the_scale_is(tmp_path):
    tensors = {
        "base_model.model.x.lora_A.weight": torch.randn(2, 5),
        "base_model.model.x.lora_B.weight": torch.randn(6, 2),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    result = run(tmp_path / "a.safetensors", tmp_path / "out/a.safetensors", keep=1.0)
    assert any("no adapter_config.json beside it: its scale is 1" in note for note in result.notes)


def test_diffusers_names_have_one_rank_for_all(tmp_path):
    """diffusers gives every module the alpha of one: see `get_peft_kwargs`, called here."""
    kwargs = pytest.importorskip("diffusers.utils.peft_utils").get_peft_kwargs
    tensors = files.plain(tmp_path / "a.safetensors", rank=4)
    name = next(key for key in tensors if "proj_in" in key and "up.weight" in key)
    tensors[name] *= 100
    save_file(tensors, tmp_path / "a.safetensors")
    for how in ({"rank": 2}, {"keep": 0.9}, {"size": 12_000}, {"keep": 1.0}):
        run(tmp_path / "a.safetensors", tmp_path / "b.safetensors", names="diffusers", **how)
        written = load_file(tmp_path / "b.safetensors")
        ranks = {key: tensor.shape[1] for key, tensor in written.items() if "lora_B" in key}
        config = kwargs(ranks, None, written)
        assert len(ranks) == 5
        assert set(ranks.values()) == {config["r"]} == {config["lora_alpha"]}
        assert "size" not in how or (tmp_path / "b.safetensors").stat().st_size <= how["size"]
    whole, result = dense(tmp_path / "a.safetensors"), dense(tmp_path / "b.safetensors")
    for name, matrix in whole.items():
        key = f"unet.{name.removeprefix('lora_unet_')}".replace("_blocks_", "_blocks.")
        close = min((found - matrix).norm() if found.shape == matrix.shape else torch.inf for found in result.values())
        assert close <= 1e-5 * matrix.norm(), key


@pytest.mark.parametrize("style", ["kohya", "peft", "diffusers", "comfy"])
def test_the_weights_stay_the_same_under_every_name(tmp_path, style):
    files.lycoris(tmp_path / "a.safetensors", "loha")
    run(tmp_path / "a.safetensors", tmp_path / "x/b.safetensors", keep=1.0, names=style)
    run(tmp_path / "x/b.safetensors", tmp_path / "y/c.safetensors", keep=1.0, names="kohya")
    before, after = dense(tmp_path / "a.safetensors"), dense(tmp_path / "y/c.safetensors")
    assert set(before) == set(after)
    for name, matrix in before.items():
        assert (after[name] - matrix).norm() <= 1e-5 * matrix.norm()
    assert {key: tensor.dim() for key, tensor in load_file(tmp_path / "y/c.safetensors").items() if "conv1" in key} == {
        "lora_unet_down_blocks_0_resnets_0_conv1.alpha": 0,
        "lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight": 4,
        "lora_unet_down_blocks_0_resnets_0_conv1.lora_up.weight": 4,
    }


def test_files_of_different_writers_are_added_module_by_module(tmp_path):
    files.plain(tmp_path / "a.safetensors", seed=1)
    files.plain(tmp_path / "b.safetensors", seed=2)
    run(tmp_path / "b.safetensors", tmp_path / "c.safetensors", keep=1.0, names="comfy")
    both = (Source(tmp_path / "a.safetensors", 0.5), Source(tmp_path / "c.safetensors", 2.0))
    run(both, tmp_path / "sum.safetensors", keep=1.0)
    a, b, result = (dense(tmp_path / f"{each}.safetensors") for each in ("a", "b", "sum"))
    assert set(result) == set(a)
    for name, matrix in result.items():
        assert (matrix - 0.5 * a[name] - 2 * b[name]).norm() <= 1e-5 * matrix.norm()


# DoRA


def dora(path, kind="lora", **more):
    """A DoRA file of LyCORIS, and the merged weight of each layer."""
    return files.lycoris(path, kind, weight_decompose=True, **more)


@pytest.mark.parametrize("kind", ["lora", "locon_tucker", "loha", "lokr"])
@pytest.mark.parametrize("wd_on_out", [True, False])
def test_a_dora_that_keeps_everything_is_the_same_dora(tmp_path, kind, wd_on_out):
    before = dora(tmp_path / "a.safetensors", kind, wd_on_out=wd_on_out)
    result = run(tmp_path / "a.safetensors", tmp_path / "b.safetensors", keep=1.0)
    assert any("magnitudes stay as trained" in note for note in result.notes)
    after = files.loaded_by_lycoris(tmp_path / "b.safetensors", wd_on_out=wd_on_out)
    for name, output in before.items():
        assert (after[name] - output).abs().max() <= 1e-5 * output.abs().max(), name
    assert safe_open(tmp_path / "b.safetensors", "pt").metadata()["ss_network_module"] == "lycoris.kohya"


def test_a_smaller_dora_keeps_its_magnitudes_and_its_direction_is_truncated(tmp_path):
    dora(tmp_path / "a.safetensors")
    run(tmp_path / "a.safetensors", tmp_path / "b.safetensors", rank=1)
    before, after = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    scales = [key for key in before if key.endswith("dora_scale")]
    assert scales
    for key in scales:
        assert torch.equal(before[key], after[key])  # also where the direction is as good as gone
        name = key.removesuffix(".dora_scale")
        rank = after[f"{name}.lora_down.weight"].shape[0]
        direction = {part: tensor for part, tensor in before.items() if part.startswith(name) and part != key}
        save_file(direction, tmp_path / "direction.safetensors")
        up, down = (
            after[f"{name}.lora_up.weight"].double().flatten(1),
            after[f"{name}.lora_down.weight"].double().flatten(1),
        )
        expected = truncated(dense(tmp_path / "direction.safetensors")[name], rank)
        assert (up @ down - expected).norm() <= 1e-5 * expected.norm()


def test_a_dora_that_learnt_nothing_but_magnitudes_keeps_them(tmp_path):
    tensors = files.plain(tmp_path / "a.safetensors", {"lora_unet_x": (6, 5)})
    tensors["lora_unet_x.lora_up.weight"].zero_()
    save_file(tensors | {"lora_unet_x.dora_scale": torch.rand(6, 1)}, tmp_path / "a.safetensors")
    for how in ({"keep": 1.0}, {"rank": 2}, {"size": 5000}):
        run(tmp_path / "a.safetensors", tmp_path / "b.safetensors", **how)
        written = load_file(tmp_path / "b.safetensors")
        assert written["lora_unet_x.lora_up.weight"].shape == (6, 1)
        assert "lora_unet_x.dora_scale" in written


@pytest.mark.parametrize("word", [":0.5", " other"])
def test_a_dora_is_no_part_of_a_sum(tmp_path, word, capsys):
    dora(tmp_path / "a.safetensors")
    files.plain(tmp_path / "b.safetensors")
    first = str(tmp_path / "a.safetensors") + (word if word.startswith(":") else "")
    rest = [str(tmp_path / "b.safetensors")] if word == " other" else []
    assert main(["merge", first, *rest, "-o", str(tmp_path / "out.safetensors")]) == 2
    said = capsys.readouterr().err
    assert "which no sum can hold without the base model" in said
    assert said.count("\n") == 1


@pytest.mark.slow
def test_diffusers_loads_kohya_s_names_at_full_strength_whatever_the_ranks(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(16, 32), layers_per_block=2, sample_size=8, norm_num_groups=4, cross_attention_dim=24,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=4,
    )  # fmt: skip
    wanted = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out")
    shapes = {
        files.kohya(name): tuple(layer.weight.shape) for name, layer in unet.named_modules() if name.endswith(wanted)
    }
    tensors = files.plain(tmp_path / "a.safetensors", shapes, rank=6, decay=0.7)
    for number, name in enumerate(shapes):
        tensors[f"{name}.lora_up.weight"] *= 1.3 ** (number % 9)
    save_file(tensors, tmp_path / "a.safetensors")
    result = run(tmp_path / "a.safetensors", tmp_path / "b.safetensors", rank=3)
    assert len(set(result.ranks)) > 2
    loader = diffusers.loaders.StableDiffusionLoraLoaderMixin
    state, alphas = loader.lora_state_dict(load_file(tmp_path / "b.safetensors"), unet_config=unet.config)
    loader.load_lora_into_unet(state, alphas, unet)
    expected = dense(tmp_path / "b.safetensors")
    loaded = {files.kohya(name): layer for name, layer in unet.named_modules() if hasattr(layer, "lora_A")}
    assert set(loaded) == set(expected)
    for name, layer in loaded.items():
        delta = layer.get_delta_weight(next(iter(layer.lora_A))).double().flatten(1)
        assert (delta - expected[name]).norm() <= 1e-5 * expected[name].norm(), name


def test_diffusers_loads_a_text_encoder_at_full_strength_where_ranks_are_one(tmp_path):
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
    pytest.importorskip("peft")
    config = transformers.CLIPTextConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    encoder = transformers.CLIPTextModel(config)
    wanted = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    shapes = {f"lora_te_{name.replace('.', '_')}": tuple(layer.weight.shape)
              for name, layer in encoder.named_modules() if name.endswith(wanted)}  # fmt: skip
    tensors = files.plain(tmp_path / "a.safetensors", shapes, rank=6, decay=0.7)
    for number, name in enumerate(shapes):
        tensors[f"{name}.lora_up.weight"] *= 1.3 ** (number % 9)
    save_file(tensors, tmp_path / "a.safetensors")
    loader = diffusers.loaders.StableDiffusionLoraLoaderMixin
    for uniform in (False, True):
        result = run(tmp_path / "a.safetensors", tmp_path / "b.safetensors", rank=3, uniform=uniform)
        assert (len(set(result.ranks)) == 1) == uniform
        assert any("make it with --uniform" in note for note in result.notes) != uniform
        if not uniform:
            continue
        state, alphas = loader.lora_state_dict(load_file(tmp_path / "b.safetensors"))
        loader.load_lora_into_text_encoder(state, alphas, encoder, prefix="text_encoder")
        expected = dense(tmp_path / "b.safetensors")
        loaded = {f"lora_te_{name.replace('.', '_')}": layer
                  for name, layer in encoder.named_modules() if hasattr(layer, "lora_A")}  # fmt: skip
        assert set(loaded) == set(expected)
        for name, layer in loaded.items():
            delta = layer.get_delta_weight(next(iter(layer.lora_A))).double().flatten(1)
            assert (delta - expected[name]).norm() <= 1e-5 * expected[name].norm(), name
