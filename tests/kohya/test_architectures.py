"""Skeletons against the models they stand for: transformers' always, sd-scripts' where there is a checkout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.facts.architectures import ARCHITECTURES, build, get
from hina_kohya.trainers.facts.architectures.text_encoders import clip, gemma2_2b, qwen3_06b, t5_xxl

ROOT = Path(__file__).parents[2]
HARNESS = Path(os.environ.get("HINA_HARNESS", ROOT.parent / "shared" / "harness"))
VENV = Path(os.environ.get("HARNESS_DIR", Path.home() / ".cache" / "hina-harness")) / "venv"


def rows(model):
    """Path, class and weights of every module that a network may look at, in order; of norms, what LyCORIS asks."""
    found = []
    for path, module in model.named_modules():
        if not any(map(counts, module.modules())):
            continue
        name = type(module).__name__
        shapes = {name: list(param.shape) for name, param in module.named_parameters(recurse=False)}
        kernel = list(module.kernel_size) if isinstance(module, nn.Conv2d) else None
        asked = [hasattr(module, "_norm"), hasattr(module, "bias"), isinstance(module, (nn.LayerNorm, nn.GroupNorm))]
        found.append([path, name, shapes, kernel, asked if "Norm" in name else None])
    return found


def counts(module):
    weights = any(True for _ in module.parameters(recurse=False)) and not isinstance(module, nn.Embedding)
    return weights or "Norm" in type(module).__name__


def skeleton(node):
    with torch.device("meta"):
        return build(node)


def clip_config(width, layers):
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        projection_dim=width,
    )


def real_text_encoder(name):
    import transformers as t

    gemma = {"head_dim": 256, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26}
    qwen = {"head_dim": 128, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28}
    return {
        "clip_l": lambda: t.CLIPTextModel(clip_config(768, 12)),
        "clip_l_projection": lambda: t.CLIPTextModelWithProjection(clip_config(768, 12)),
        "clip_g": lambda: t.CLIPTextModelWithProjection(clip_config(1280, 32)),
        "clip_h": lambda: t.CLIPTextModel(clip_config(1024, 23)),
        "t5_xxl": lambda: t.T5EncoderModel(
            t.T5Config(d_ff=10240, d_model=4096, num_heads=64, num_layers=24, feed_forward_proj="gated-gelu")
        ),
        "gemma2": lambda: t.Gemma2Model(t.Gemma2Config(num_attention_heads=8, num_key_value_heads=4, **gemma)),
        "qwen3": lambda: t.Qwen3Model(t.Qwen3Config(num_attention_heads=16, num_key_value_heads=8, **qwen)),
    }[name]()


TEXT_ENCODERS = {
    "clip_l": lambda: clip(768, 12),
    "clip_l_projection": lambda: clip(768, 12, projection=True),
    "clip_g": lambda: clip(1280, 32, projection=True),
    "clip_h": lambda: clip(1024, 23),
    "t5_xxl": t5_xxl,
    "gemma2": gemma2_2b,
    "qwen3": qwen3_06b,
}


@pytest.mark.parametrize("name", TEXT_ENCODERS)
def test_text_encoders_are_those_of_transformers(name):
    pytest.importorskip("transformers")
    with torch.device("meta"):
        real = real_text_encoder(name)
    assert rows(skeleton(TEXT_ENCODERS[name]())) == rows(real)


# Parameters of the models of sd-scripts 48d368fa, counted there; Anima's embedding of the text (32128 x 1024) left out.
PARAMETERS = {
    "sd15": 859_520_964,
    "sd2": 865_910_724,
    "sdxl": 2_567_463_684,
    "sd3.5-medium": 2_243_171_520,
    "sd3.5-large": 8_056_627_520,
    "flux1": 11_901_408_320,
    "lumina2": 2_609_771_456,
    "hunyuan-image": 17_425_795_520,
    "anima": 2_091_068_928 - 32128 * 1024,
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_size_of_the_model_is_right(name):
    model = skeleton(ARCHITECTURES[name].unet())
    assert sum(param.numel() for param in model.parameters()) == PARAMETERS[name]
    assert all(param.is_meta for param in model.parameters())


def real_models():
    """Names and rows of sd-scripts' own models; runs in a process that has sd-scripts first on its path."""
    from library import anima_models, flux_models, hunyuan_image_models, lumina_models, model_util, sd3_models
    from library.original_unet import UNet2DConditionModel
    from library.sdxl_original_unet import SdxlUNet2DConditionModel

    def sd3(width, depth, dual):
        sizes = {"patch_size": 2, "num_patches": 192**2, "pos_embed_max_size": 192, "adm_in_channels": 2048}
        layers = {"depth": depth, "qk_norm": "rms", "x_block_self_attn_layers": list(range(dual))}
        context = {"context_embedder_in_features": 4096, "context_embedder_out_features": width}
        return sd3_models.create_sd3_mmdit(sd3_models.SD3Params(**sizes, **layers, **context, model_type="any"))

    def anima():
        sizes = {"max_img_h": 512, "max_img_w": 512, "max_frames": 128, "in_channels": 16, "out_channels": 16}
        patches = {"patch_spatial": 2, "patch_temporal": 1, "concat_padding_mask": True, "model_channels": 2048}
        blocks = {"num_blocks": 28, "num_heads": 16, "crossattn_emb_channels": 1024, "use_llm_adapter": True}
        ropes = {f"rope_{axis}_extrapolation_ratio": 1.0 for axis in "hwt"}
        position = {"pos_emb_cls": "rope3d", "rope_enable_fps_modulation": False, **ropes}
        return anima_models.Anima(**sizes, **patches, **blocks, **position, use_adaln_lora=True, adaln_lora_dim=256)

    makers = {
        "sd15": lambda: UNet2DConditionModel(**model_util.create_unet_diffusers_config(False)),
        "sd2": lambda: UNet2DConditionModel(**model_util.create_unet_diffusers_config(True)),
        "sdxl": SdxlUNet2DConditionModel,
        "sd3.5-medium": lambda: sd3(1536, 24, 13),
        "sd3.5-large": lambda: sd3(2432, 38, 0),
        "flux1": lambda: flux_models.Flux(flux_models.configs["dev"].params),
        "lumina2": lumina_models.NextDiT_2B_GQA_patch2_Adaln_Refiner,
        "hunyuan-image": lambda: hunyuan_image_models.create_model("torch", False, None),
        "anima": anima,
    }
    for name, make in makers.items():
        with torch.device("meta"):
            yield name, rows(make())


@pytest.mark.skipif(
    not (os.environ.get("SD_SCRIPTS_HOME") and VENV.exists()), reason="needs SD_SCRIPTS_HOME and the harness"
)
@pytest.mark.slow
def test_the_models_are_those_of_sd_scripts(tmp_path):
    out = tmp_path / "models.json"
    path = os.pathsep.join([os.environ["SD_SCRIPTS_HOME"], str(HARNESS / "stubs"), str(ROOT)])
    command = [VENV / "bin" / "python", __file__, out]
    subprocess.run([str(each) for each in command], env={**os.environ, "PYTHONPATH": path}, check=True)
    real = json.loads(out.read_text())
    assert set(real) == set(ARCHITECTURES)
    for name, expected in real.items():
        assert rows(skeleton(ARCHITECTURES[name].unet())) == expected, name


def test_an_unknown_architecture_names_its_neighbours():
    with pytest.raises(UserError, match=r"there is no architecture 'sdxxl'; did you mean sdxl"):
        get("sdxxl")


def test_listing_architectures_imports_no_torch():
    code = "import sys, hina_kohya.check.forecast; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(dict(real_models())))
