"""`algo=adlrns` in LyCORIS: registered once, other algorithms' files left alone, ours still a LoRA without us."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lycoris import kohya, modules, wrapper
from safetensors.torch import load_file
from torch import nn

from hina_kohya.adlrns.adapter import registration
from hina_kohya.adlrns.adapter.module import AdlrnsModule
from hina_kohya.trainers import hooks
from tests.support.small_networks import FULL, UNet, batch, create, frozen, randomise


@pytest.fixture(autouse=True)
def unregistered():
    def remove():
        wrapper.network_module_dict.pop("adlrns", None)
        modules.MODULE_LIST[:] = [each for each in modules.MODULE_LIST if each is not AdlrnsModule]

    remove()
    yield
    remove()


def test_twice_is_once():
    before = list(modules.MODULE_LIST)
    registration.register()
    registration.register()
    assert [AdlrnsModule, *before] == modules.MODULE_LIST
    assert wrapper.network_module_dict["adlrns"] is kohya.network_module_dict["adlrns"] is registration.make
    sdk = importlib.import_module("lycoris.config_sdk")
    assert "r_min" in sdk.ALGO_REGISTRY["adlrns"].notes
    base = importlib.import_module("lycoris.modules.base")
    assert "adlrns" in getattr(base, "_FP8_BYPASS_ALGOS", {"adlrns"})


@pytest.mark.parametrize("algo", sorted(wrapper.network_module_dict))
def test_files_of_other_algorithms_are_not_taken(algo):
    layer = nn.Linear(16, 16)
    cls = wrapper.network_module_dict[algo]
    tensors = {f"lora_unet_a.{key}": each for key, each in cls("lora_unet_a", layer, 1.0, 4, 4).state_dict().items()}
    before, _ = modules.get_module(tensors, "lora_unet_a")
    registration.register()
    assert modules.get_module(tensors, "lora_unet_a")[0] is before is not AdlrnsModule


def test_ours_is_taken_and_without_us_it_is_locon(tmp_path):
    unet = frozen(UNet())
    network = create(unet, bins=6)
    file = str(tmp_path / "lora.safetensors")
    network.save_weights(file, None, None)
    x, timesteps = batch()
    expected = unet(x, timesteps)  # all directions: no table was chosen yet
    weights = load_file(file)
    assert modules.get_module(weights, "lora_unet_block_conv")[0] is AdlrnsModule
    hooks.uninstall()
    modules.MODULE_LIST.remove(AdlrnsModule)
    other = frozen(UNet())
    plain, _ = kohya.create_network_from_weights(1.0, file, None, None, other)
    assert {type(lora).__name__ for lora in plain.unet_loras} == {"LoConModule"}
    plain.apply_to(None, other, False, True)
    plain.double()
    torch.testing.assert_close(other(x, timesteps), expected, rtol=1e-5, atol=1e-5)


def test_algo_of_lycoris_kohya_with_the_hooks():
    with pytest.raises(KeyError, match="adlrns"):
        create(frozen(UNet()), module="lycoris.kohya", algo="adlrns")
    hooks.install()
    network = create(frozen(UNet()), module="lycoris.kohya", algo="adlrns", bins=3, budget=2)
    assert type(network).__name__ == "AdlrnsNetwork"
    assert network.settings.bins == 3
    with pytest.raises(ValueError, match="unknown 'budgett'; did you mean budget"):
        create(frozen(UNet()), module="lycoris.kohya", algo="adlrns", budgett=2)


PRESET = """
[module_algo_map.Transformer2DModel]
algo = "adlrns"
dim = 8
alpha = 2
"""


def test_algo_of_a_preset(tmp_path):
    file = tmp_path / "preset.toml"
    file.write_text(Path(FULL).read_text() + PRESET)
    hooks.install()
    unet = frozen(UNet())
    network = create(unet, module="lycoris.kohya", algo="loha", preset=file, bins=4, dim=8)
    assert {type(lora).__name__ for lora in network.unet_loras} == {"AdlrnsModule"}
    assert {tuple(lora.adlrns_kept.shape) for lora in network.unet_loras} == {(4, 8)}
    randomise(network)
    x, timesteps = batch()
    assert unet(x, timesteps).isfinite().all()
    file.write_text(Path(FULL).read_text() + PRESET + "bins = 3\n")
    with pytest.raises(ValueError, match="bins is one for all modules; write it in network_args"):
        create(frozen(UNet()), module="lycoris.kohya", algo="lora", preset=file)


def test_other_algorithms_are_what_they_were_with_the_hooks():
    unhooked = create(frozen(UNet()), module="lycoris.kohya", algo="lokr", factor=2)
    hooks.install()
    hooked = create(frozen(UNet()), module="lycoris.kohya", algo="lokr", factor=2)
    assert type(hooked) is kohya.LycorisNetworkKohya
    assert hooked.state_dict().keys() == unhooked.state_dict().keys()
    with pytest.raises(ValueError, match="bins: no module became ADLRNS"):
        create(frozen(UNet()), module="lycoris.kohya", algo="lokr", bins=3)


def test_importing_the_package_imports_neither_torch_nor_lycoris():
    code = "import sys, hina_kohya.adlrns; sys.exit(bool({'torch', 'lycoris'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
