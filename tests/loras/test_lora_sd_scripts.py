"""sd-scripts' own code on our files: its `networks.lora` loads them, its `networks/resize_lora.py` agrees with them.

Runs where SD_SCRIPTS_HOME names a checkout and the harness of the project's developers is installed, in its
environment; this file is also the program that runs there.
"""

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

ROOT = Path(__file__).parents[2]
HARNESS = Path(os.environ.get("HINA_HARNESS", ROOT.parent / "shared" / "harness"))
PYTHON = Path(os.environ.get("HARNESS_DIR", Path.home() / ".cache" / "hina-harness")) / "venv" / "bin" / "python"
RANK = 3


class ResnetBlock2D(nn.Module):
    """Networks choose modules by these classes' names."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv_shortcut = nn.Conv2d(12, 24, 3, padding=1, bias=False), nn.Conv2d(12, 24, 1, bias=False)


class Transformer2DModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj_in, block = nn.Linear(24, 36, bias=False), nn.Module()
        self.transformer_blocks, block.attn1 = nn.ModuleList([block]), nn.Module()
        block.attn1.to_q = nn.Linear(36, 24, bias=False)
        block.attn1.to_out = nn.ModuleList([nn.Linear(24, 36, bias=False)])


class Unet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down_blocks, self.up_blocks = nn.ModuleList([nn.Module()]), nn.ModuleList([nn.Module()])
        self.down_blocks[0].resnets = nn.ModuleList([ResnetBlock2D()])
        self.up_blocks[0].attentions = nn.ModuleList([Transformer2DModel()])


def loaded(path):
    """module -> what a file adds to the outputs of its layer, through `networks.lora`."""
    from networks.lora import create_network_from_weights

    torch.manual_seed(0)
    unet = Unet()
    layers = {f"lora_unet_{name.replace('.', '_')}": layer
              for name, layer in unet.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}  # fmt: skip
    xs = {name: torch.randn(4, 12, 5, 5) if isinstance(layer, nn.Conv2d) else torch.randn(4, layer.in_features)
          for name, layer in layers.items()}  # fmt: skip
    with torch.no_grad():
        before = {name: layer(xs[name]) for name, layer in layers.items()}
        network, tensors = create_network_from_weights(1.0, str(path), None, nn.Module(), unet)
        network.apply_to(nn.Module(), unet, apply_text_encoder=False)
        result = network.load_state_dict(tensors, strict=True)
        assert not result.missing_keys
        after = {name: layer(xs[name]) for name, layer in layers.items()}
    return {f"{name}.{what}": tensor.contiguous() for name in layers
            for what, tensor in (("x", xs[name]), ("added", after[name] - before[name]))}  # fmt: skip


def resized(path):
    from networks.resize_lora import resize_lora_model

    tensors = resize_lora_model(load_file(path), RANK, RANK, torch.float32, "cpu", None, None, False, 0)[0]
    return {key: tensor.contiguous() for key, tensor in tensors.items()}


if __name__ == "__main__":
    save_file({"loaded": loaded, "resized": resized}[sys.argv[1]](Path(sys.argv[2])), sys.argv[3])
else:
    import pytest

    from hina_kohya.loras.resizing import Request, resize
    from hina_kohya.loras.summing import Source
    from tests.support import lora_files as files
    from tests.support.dense import dense, truncated

    pytestmark = pytest.mark.skipif(
        not (os.environ.get("SD_SCRIPTS_HOME") and PYTHON.exists()), reason="needs SD_SCRIPTS_HOME and the harness"
    )

    def in_sd_scripts(what, path):
        out = path.with_name(f"{path.stem}.{what}.safetensors")
        places = os.pathsep.join([os.environ["SD_SCRIPTS_HOME"], str(HARNESS / "stubs")])
        command = [str(PYTHON), __file__, what, str(path), str(out)]
        subprocess.run(command, env={**os.environ, "PYTHONPATH": places}, check=True)
        return load_file(out)

    @pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
    @pytest.mark.parametrize("how", [{"keep": 1.0}, {"rank": 2}], ids=str)
    @pytest.mark.slow
    def test_networks_lora_loads_the_result(tmp_path, kind, how):
        files.lycoris(tmp_path / "in.safetensors", kind)
        out = tmp_path / "out.safetensors"
        resize(Request((Source(tmp_path / "in.safetensors"),), out, **how))
        outputs, changes = in_sd_scripts("loaded", out), dense(out)
        assert changes
        for name, delta in changes.items():
            x, added = outputs[f"{name}.x"].double(), outputs[f"{name}.added"].double()
            if x.dim() == 4:
                side = 3 if delta.shape[1] > 12 else 1
                expected = nn.functional.conv2d(x, delta.reshape(len(delta), 12, side, side), padding=side // 2)
            else:
                expected = x @ delta.T
            assert (added - expected).abs().max() <= 1e-5 * expected.abs().max(), name
        left_out = {key.rpartition(".")[0] for key in outputs} - set(changes)
        assert not any(outputs[f"{name}.added"].any() for name in left_out)

    @pytest.mark.slow
    def test_its_resizer_agrees_at_one_rank_and_loses_more_at_equal_bytes(tmp_path):
        shapes = {"lora_unet_x": (40, 30), "lora_unet_y": (80, 20), "lora_unet_c": (20, 10, 3, 3)}
        tensors = files.plain(tmp_path / "a.safetensors", shapes, rank=8, alpha=8.0)
        tensors["lora_unet_y.lora_up.weight"] *= 3
        save_file(tensors, tmp_path / "a.safetensors")
        whole = dense(tmp_path / "a.safetensors")
        save_file(in_sd_scripts("resized", tmp_path / "a.safetensors"), tmp_path / "theirs.safetensors")
        theirs = dense(tmp_path / "theirs.safetensors")
        for uniform in (True, False):
            request = Request(
                (Source(tmp_path / "a.safetensors"),), tmp_path / "b.safetensors", rank=RANK, uniform=uniform
            )
            resize(request)
            ours = dense(tmp_path / "b.safetensors")
            if uniform:
                for name, matrix in whole.items():
                    assert (theirs[name] - truncated(matrix, RANK)).norm() <= 1e-4 * matrix.norm()
                    assert (ours[name] - theirs[name]).norm() <= 1e-4 * matrix.norm()
        lost = [sum((whole[name] - each.get(name, 0)).square().sum() for name in whole) for each in (ours, theirs)]
        assert lost[0] < lost[1]
