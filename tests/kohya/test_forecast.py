"""What a training will be made of: against networks and optimizers that are really made."""

import dataclasses as dc
import gc
import json
import logging
import os
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves

from hina_kohya.check.forecast import Forecast, Group, forecast, table
from hina_kohya.check.forecast.network import Request, _groups, make
from hina_kohya.check.forecast.optimizer import choose, measured
from hina_kohya.check.forecast.weightless import Weightless
from hina_kohya.check.forecast.worker import run
from hina_kohya.trainers import hooks
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.facts import architectures
from hina_kohya.trainers.facts.architectures.node import block, conv2d, group_norm, layer_norm, linear, repeated

ROOT = Path(__file__).parents[2]
HARNESS = Path(os.environ.get("HINA_HARNESS", ROOT.parent / "shared" / "harness"))
VENV = Path(os.environ.get("HARNESS_DIR", Path.home() / ".cache" / "hina-harness")) / "venv"
SD_SCRIPTS = os.environ.get("SD_SCRIPTS_HOME")
LYCORIS = tuple(map(int, version("lycoris_lora").split(".")[:2]))
pytestmark = pytest.mark.usefixtures("forked_python")
counts_are_of_lycoris_4 = pytest.mark.skipif(LYCORIS < (4, 0), reason="earlier releases have other presets")


@pytest.fixture(autouse=True)
def _as_found():
    """LyCORIS keeps presets in class attributes; networks may install hooks and freeze the heap."""
    from lycoris.kohya import LycorisNetworkKohya

    level = logging.getLogger("LyCORIS").level
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    kept = {name: value for name, value in vars(LycorisNetworkKohya).items() if name.isupper()}
    yield
    for name, value in kept.items():
        setattr(LycorisNetworkKohya, name, value)
    logging.getLogger("LyCORIS").setLevel(level)
    hooks.uninstall()
    sys.modules.pop("hina_kohya.lycoris", None)  # its functions are unhooked now
    gc.unfreeze()


def request(network="lycoris.kohya", architecture="sd15", optimizer="AdamW", words=(), **changes):
    arguments = changes.pop("network_args", {})
    if network.endswith(("lycoris", "adlrns")) or network.startswith("lycoris"):
        arguments = {"preset": "attn-mlp", **arguments}
    settings = {"learning_rate": 1e-4, "unet_lr": None, "text_encoder_lr": None, "network_dim": 4, "network_alpha": 1.0}
    switches = {"train_unet": True, "train_text_encoder": True, "sd_scripts": None, "dtype": "float32"}
    hooked = network.startswith("hina_kohya.")
    rest = {**settings, **switches, "hooked": hooked, **changes}
    return Request(
        architecture, network, network_args=arguments, optimizer_type=optimizer, optimizer_args=[*words], **rest
    )


def said(*args, **kwargs):
    """Everything that the worker says, without its process."""
    found = {"warnings": []}

    def tell(**message):
        found["warnings"] += message.pop("warnings", [])
        found.update(json.loads(json.dumps(message)))

    run(request(*args, **kwargs), tell)
    return found


# The process


@pytest.mark.slow
@pytest.mark.own_python
def test_a_lokr_on_sdxl_from_end_to_end():
    found = forecast(
        "sdxl",
        "hina_kohya.lycoris",
        network_dim=4,
        network_args={"algo": "lokr", "preset": "attn-mlp", "factor": "8", "weight_decay": "0.02"},
        learning_rate=1e-4,
        unet_lr=2e-4,
        optimizer_type="hina_kohya.HinaAdamW",
    )
    encoder, unet = found.groups
    assert (encoder.description, unet.description) == ("textencoder", "unet")
    assert (encoder.lr, unet.lr, encoder.weight_decay) == (1e-4, 2e-4, 0.02)
    assert encoder.roles == dict.fromkeys(("lokr_w1", "lokr_w2_a", "lokr_w2_b"), 264)  # 12 and 32 CLIP layers of 6
    assert unet.roles == dict.fromkeys(
        ("lokr_w1", "lokr_w2_a", "lokr_w2_b"), 722
    )  # 70 blocks of 10, 11 of 2 projections
    assert found.parameters == encoder.parameters + unet.parameters
    assert found.file_bytes == 2 * (found.parameters + 264 + 722)  # one alpha a module
    assert 2 < found.state_bytes / found.parameters < 2.4  # two 8-bit slots
    assert any(each.startswith("cautious on ") for each in found.techniques)
    assert found.warnings == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network_args": {"preset": "no_such_preset"}}, r"lycoris.kohya refuses these arguments: AssertionError"),
        (
            {"network_args": {"preset": "attn-mlp"}, "optimizer_type": "Adamw9"},
            r"no optimizer 'Adamw9'; did you mean AdamW",
        ),
    ],
)
def test_what_would_be_refused_is_refused_here(arguments, message):
    with pytest.raises(UserError, match=message):
        forecast("sd15", "lycoris.kohya", **arguments)


@pytest.mark.slow
def test_a_network_that_is_not_there():
    with pytest.raises(UserError, match=r"no\.such\.network cannot be imported: ModuleNotFoundError"):
        forecast("sd15", "no.such.network")


@pytest.mark.slow
@counts_are_of_lycoris_4
def test_the_full_preset_of_lycoris_4_fails_on_sd15():
    with pytest.raises(AssertionError, match="duplicated lora name: lora_unet_time_embedding_linear_1"):
        said(network_args={"preset": "full"})
    assert len(said(architecture="sdxl", network_args={"preset": "full"})["groups"]) == 2


# The network

TINY = architectures.Architecture(
    "tiny",
    "a model with one of each",
    lambda: block(
        "UNet2DConditionModel",
        blocks=repeated(
            2, block("Transformer2DModel", norm=group_norm(64), proj=conv2d(128, 64, 1), to_q=linear(64, 128))
        ),
        resnet=block("ResnetBlock2D", norm1=group_norm(64), conv=conv2d(64, 128, 3)),
    ),
    lambda: (block("CLIPTextModel", mlp=block("CLIPMLP", fc1=linear(128, 64, bias=False), norm=layer_norm(128))),),
    lone_text_encoder=True,
)
ALGORITHMS = [
    *(
        {"algo": name}
        for name in ("lora", "loha", "lokr", "glora", "full", "diag-oft", "boft", "ia3", "dylora", "tlora")
    ),
    *({"algo": name, "dora_wd": "True"} for name in ("lora", "loha", "lokr")),
    {"algo": "lora", "dora_wd": "True", "wd_on_output": "False", "rs_lora": "True"},
    {"algo": "lora", "train_norm": "True", "preset": "full-lin"},
    {"algo": "locon", "use_tucker": "True", "conv_dim": "2"},
    {"algo": "loha", "use_tucker": "True"},
    {"algo": "lokr", "use_tucker": "True", "use_scalar": "True", "decompose_both": "True", "factor": "4"},
    {"algo": "lokr", "full_matrix": "True", "unbalanced_factorization": "True"},
    {"algo": "diag-oft", "rescaled": "True", "constraint": "1e-3"},
    {"algo": "boft", "rescaled": "True"},
]


@pytest.mark.parametrize("arguments", ALGORITHMS, ids=lambda each: " ".join(map("=".join, each.items())))
def test_every_algorithm_without_weights_has_the_shapes_that_it_has_with_them(arguments, monkeypatch):
    from lycoris.kohya import create_network
    from lycoris.wrapper import network_module_dict

    if arguments["algo"] not in network_module_dict:
        pytest.skip("this release of LyCORIS does not have it")
    monkeypatch.setitem(architectures.ARCHITECTURES, "tiny", TINY)
    arguments = {"preset": "unet-only", **arguments}
    made = make(request(architecture="tiny", network_args=arguments), lambda **_: None)

    unet, encoder = architectures.build(TINY.unet()), architectures.build(TINY.text_encoders()[0])
    real = create_network(1.0, 4, 1.0, None, encoder, unet, neuron_dropout=None, dropout=None, **arguments)
    real.apply_to(encoder, unet, True, True)
    assert shapes(made.network.named_parameters()) == shapes(real.named_parameters()) != []
    assert made.saved == sum(tensor.numel() for tensor in real.state_dict().values())
    assert all(param.is_meta or param.ndim == 0 for param in made.network.parameters())


def shapes(named):
    return [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in named]


def test_nothing_of_a_large_model_is_allocated():
    with Weightless():
        layer = torch.nn.Linear(10**6, 10**6)
        copy = layer.weight.data.cpu().clone().float()
        size = torch.tensor((3, 3)).prod().item()
    assert layer.weight.is_meta
    assert copy.is_meta
    assert size == 9


@pytest.mark.slow
@counts_are_of_lycoris_4
@pytest.mark.parametrize("preset", ["attn-mlp", "attn-only", "unet-transformer-only", "unet-convblock-only"])
def test_presets(preset):
    found = said(network_args={"preset": preset})
    modules = {group["description"]: group["tensors"] // 2 for group in found["groups"]}
    assert (
        modules
        == {
            "attn-mlp": {"textencoder": 72, "unet": 194},  # 192, and TimestepEmbedding
            "attn-only": {"textencoder": 48, "unet": 128},
            "unet-transformer-only": {"unet": 194},
            "unet-convblock-only": {"unet": 88},
        }[preset]
    )


def test_a_preset_that_matches_nothing():
    with pytest.raises(UserError, match="finds nothing to train in sd15"):
        said(network_args={"algo": "ia3", "preset": "ia3"})


@pytest.mark.slow
@pytest.mark.parametrize(("network", "algo"), [("hina_kohya.adlrns", {}), ("hina_kohya.lycoris", {"algo": "adlrns"})])
@pytest.mark.parametrize("warmup", ["50", "0"])
def test_adlrns_has_the_tensors_of_a_lora_and_two_small_ones_a_module(network, algo, warmup, monkeypatch):
    monkeypatch.setitem(architectures.ARCHITECTURES, "tiny", TINY)
    lora = said(architecture="tiny", network_args={"algo": "lora"})
    found = said(network, "tiny", network_args={**algo, "bins": "3", "warmup": warmup})
    shown = ("description", "tensors", "parameters", "roles")
    assert [[each[key] for key in shown] for each in found["groups"]] == [
        [each[key] for key in shown] for each in lora["groups"]
    ]
    tables = {"textencoder": 1, "unet": 3}
    assert (found["file_bytes"] - lora["file_bytes"]) / 2 == sum(
        each["tensors"] / 2 * tables[each["description"]] * 4 * 3 for each in found["groups"]
    )
    with pytest.raises(ValueError, match="budget = 5 is outside"):
        said(network, "tiny", network_args={**algo, "budget": "5"})


def test_adlrns_of_one_bin_trains_all_directions_and_its_file_is_the_budget(monkeypatch):
    monkeypatch.setitem(architectures.ARCHITECTURES, "tiny", TINY)
    lora = said(architecture="tiny", network_args={"algo": "lora"})
    found = said("hina_kohya.adlrns", "tiny", network_args={"budget": "2"})
    shown = ("description", "tensors", "parameters", "roles")
    assert [[each[key] for key in shown] for each in found["groups"]] == [
        [each[key] for key in shown] for each in lora["groups"]
    ]
    tensors = sum(each["tensors"] for each in lora["groups"])
    assert found["file_bytes"] == pytest.approx((lora["file_bytes"] - tensors) / 2 + tensors, abs=2 * tensors)
    assert said("hina_kohya.adlrns", "tiny", network_args={"budget": "1MB"})["file_bytes"] == pytest.approx(
        lora["file_bytes"], abs=2 * tensors
    )


# Groups


@pytest.mark.slow
@counts_are_of_lycoris_4
def test_the_hooks_split_what_the_network_itself_does_not():
    options = {"algo": "lokr", "loraplus_lr_ratio": "8", "weight_decay": "0.1", "use_scalar": "True"}
    hooked = said("hina_kohya.lycoris", network_args=options, text_encoder_lr=0)
    assert [(each["description"], each["lr"], each["weight_decay"]) for each in hooked["groups"]] == [
        ("unet", 1e-4, 0.1),
        ("unet no decay", 1e-4, 0.0),
        ("unet plus", 8e-4, 0.1),
    ]
    assert hooked["groups"][1]["roles"] == {"scalar": 194}
    assert hooked["warnings"] == [
        "288 tensors of the text encoder are in no group (learning rate 0 or none, or frozen)"
    ]

    hooks.uninstall()
    alone = said(network_args=options)
    assert [each["description"] for each in alone["groups"]] == ["textencoder", "unet"]
    assert alone["warnings"] == [
        "network_args weight_decay do nothing here: hina_kohya's hooks are not active",
        "the LoRA+ ratio does nothing here; hina_kohya.lycoris follows it",
    ]


@pytest.mark.slow
def test_our_optimizer_says_which_roles_do_not_decay():
    found = said("hina_kohya.lycoris", optimizer="hina_kohya.HinaAdamW", network_args={"dora_wd": "True"})
    assert [each["still_roles"] for each in found["groups"]] == [["dora_scale"], ["dora_scale"]]
    assert [each["weight_decay"] for each in found["groups"]] == [0.01, 0.01]


@pytest.mark.slow
def test_spd_takes_the_place_of_weight_decay():
    found = said("hina_kohya.lycoris", optimizer="hina_kohya.HinaAdamW", words=["use_spd=True"])
    assert [each["weight_decay"] for each in found["groups"]] == [0.0, 0.0]
    assert "spd on 532" in found["techniques"]


@pytest.mark.slow
def test_a_part_that_is_not_trained():
    found = said(train_text_encoder=False)
    assert [each["description"] for each in found["groups"]] == ["unet"]
    assert found["warnings"] == []
    with pytest.raises(UserError, match="every learning rate is 0 or missing"):
        said(learning_rate=0.0)
    assert said(network_args={"preset": "unet-transformer-only"})["warnings"] == [
        "nothing is trained in the text encoder: this network has no targets there"
    ]


@pytest.mark.slow
def test_adafactor_sets_the_learning_rate_itself():
    assert [each["lr"] for each in said(optimizer="Adafactor")["groups"]] == [None, None]
    fixed = said(optimizer="adafactor", words=["relative_step=False", "scale_parameter=False"])
    assert [each["lr"] for each in fixed["groups"]] == [1e-4, 1e-4]


@pytest.mark.slow
def test_an_optimizer_that_is_not_installed_leaves_its_state_unknown():
    found = said(optimizer="no_such_package.Optimizer")
    assert "state_bytes" not in found
    assert [each["weight_decay"] for each in found["groups"]] == [None, None]
    assert "No module named 'no_such_package'" in found["warnings"][0]


def test_a_short_name_needs_the_hooks():
    assert choose("HinaAdamW", [], 1e-4, hooked=True).ours
    with pytest.raises(
        UserError, match=r"without hina_kohya's hooks sd-scripts does not know HinaAdamW; write hina_koh"
    ):
        choose("HinaAdamW", [], 1e-4, hooked=False)
    with pytest.raises(UserError, match=r"no optimizer 'torch.optim.AdamX'; did you mean Adam"):
        choose("torch.optim.AdamX", [], 1e-4, hooked=False)


# State: forecast on weightless parameters, and counted after real steps on all of them


def parameters():
    generator = torch.Generator().manual_seed(0)
    sizes = {"lora_down": (16, 320), "lora_up": (640, 16)}
    found = {}
    for module in ("a", "b"):
        for role, shape in sizes.items():
            zero = role == "lora_up"
            values = torch.zeros(shape) if zero else torch.randn(shape, generator=generator)
            found[f"lora_unet_{module}.{role}.weight"] = torch.nn.Parameter(values)
    found["lora_unet_a.dora_scale"] = torch.nn.Parameter(torch.randn(640, 1, generator=generator))
    return found


def bytes_after_steps(chosen):
    params = parameters()
    optimizer = chosen.build([{"params": [*params.items()], "lr": 1e-3}])
    for _ in range(3):
        for param in params.values():
            param.grad = torch.full_like(param, 1e-3)
        optimizer.step()
    leaves = tree_leaves(list(map(dict, optimizer.state.values())))  # some keep tensors in lists
    tensors = {leaf.data_ptr(): leaf for leaf in leaves if isinstance(leaf, torch.Tensor)}
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        ("AdamW", ()),
        ("AdamW", ("amsgrad=True",)),
        ("SGDNesterov", ()),
        ("RMSprop", ("centered=True",)),
        ("Adafactor", ()),
        ("Adafactor", ("beta1=0.9",)),
        ("AdamW8bit", ()),
        ("PagedAdamW8bit", ()),
        ("Lion8bit", ()),
        ("PagedAdamW32bit", ()),
        ("bitsandbytes.optim.AdEMAMix8bit", ()),
        ("came_pytorch.CAME", ()),
        ("pytorch_optimizer.Lion", ()),
        ("pytorch_optimizer.Prodigy", ()),
        ("adv_optm.AdamW_adv", ()),
        ("Prodigy", ()),
        ("Prodigy", ("slice_p=11",)),
        ("Lion", ()),
        ("AdamWScheduleFree", ()),
        ("prodigyplus.ProdigyPlusScheduleFree", ()),
    ],
)
def test_state_bytes_are_those_of_real_steps(optimizer, words):
    chosen = choose(optimizer, words, 1e-3, hooked=False)
    if chosen.missing:
        pytest.skip(chosen.missing)
    params = parameters()
    weightless = [[(name, torch.nn.Parameter(param.detach().to("meta"))) for name, param in params.items()]]
    found, warnings = measured(chosen, [{"lr": 1e-3}], weightless)
    assert found == bytes_after_steps(chosen) > 0
    small = optimizer.endswith("8bit")
    assert warnings == [f"{chosen.name} keeps 1 of 5 tensors in 32 bits: they have fewer than 4096 elements"] * small


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("state='fp32'", "use_tam=True"),
        ("state='bf16'", "use_lora_rite=True"),
        ("use_auto_lr=True",),
        ("use_auto_lr=True", "state='fp32'"),
    ],
)
def test_state_bytes_of_ours_are_those_of_real_steps(words):
    chosen = choose("hina_kohya.HinaAdamW", words, 1e-3, hooked=True)
    with Weightless():
        weightless = [(name, torch.nn.Parameter(torch.empty(param.shape))) for name, param in parameters().items()]
    forecast_of = chosen.build([{"params": weightless}]).get_memory_efficiency_report()["state_bytes"]
    params = parameters()
    optimizer = chosen.build([{"params": [*params.items()]}])
    for param in params.values():
        param.grad = torch.full_like(param, 1e-3)
    optimizer.step()
    assert forecast_of == optimizer.get_memory_efficiency_report()["state_bytes"]


@pytest.mark.slow
def test_half_precision_halves_what_follows_the_parameter():
    whole, half = (said(dtype=dtype)["state_bytes"] for dtype in ("float32", "bfloat16"))
    steps = 4 * 532  # AdamW counts each parameter's steps in fp32
    assert whole - steps == 2 * (half - steps)


# networks.* without a checkout


def test_an_estimate_says_so():
    found = said("networks.lora", network_args={"block_dims": "4," * 24 + "4", "rank_dropout": "0.1"})
    assert {each["description"]: each["tensors"] for each in found["groups"]} == {"textencoder": 144, "unet": 384}
    assert found["estimated"]
    assert found["warnings"] == [
        "an estimate of networks.lora, since no checkout of sd-scripts is known; give --sd-scripts PATH; "
        "it does not follow block_dims"
    ]


def test_an_estimate_follows_our_options():
    options = {"inner": "networks.lora", "loraplus_unet_lr_ratio": "4", "wd_exclude": "lora_te*"}
    found = said("hina_kohya.network", network_args=options)
    assert [(each["description"], each["lr"]) for each in found["groups"]] == [
        ("textencoder no decay", 1e-4),
        ("unet", 1e-4),
        ("unet plus", 4e-4),
    ]


def test_what_cannot_be_estimated_is_refused():
    with pytest.raises(UserError, match=r"networks.oft cannot be forecast, since no checkout"):
        said("networks.oft")


def test_the_network_for_another_model_is_found_out():
    with pytest.raises(UserError, match=r"networks.lora_flux finds nothing to train in sd15"):
        said("networks.lora_flux", train_text_encoder=False)


@pytest.mark.skipif(not (SD_SCRIPTS and VENV.exists()), reason="needs SD_SCRIPTS_HOME and the harness")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "network", "arguments"),
    [
        ("sd15", "networks.lora", {"conv_dim": "4"}),
        ("sdxl", "networks.lora", {"loraplus_lr_ratio": "8"}),
        ("flux1", "networks.lora_flux", {"train_t5xxl": "True"}),
        ("sd3.5-medium", "networks.lora_sd3", {}),
        ("sd3.5-large", "networks.lora_sd3", {"train_t5xxl": "True", "loraplus_unet_lr_ratio": "4"}),
        ("lumina2", "networks.lora_lumina", {}),
        ("hunyuan-image", "networks.lora_hunyuan_image", {}),
        ("anima", "networks.lora_anima", {"train_llm_adapter": "True"}),
    ],
)
def test_estimates_are_what_sd_scripts_makes(architecture, network, arguments, monkeypatch):
    rates = {"learning_rate": 1e-4, "unet_lr": 2e-4}
    rates["text_encoder_lr"] = 1e-5 if network == "networks.lora" else [1e-5, 2e-5]
    estimate = forecast(architecture, network, network_dim=8, network_args=arguments, **rates)
    monkeypatch.setattr(sys, "executable", str(VENV / "bin" / "python"))
    monkeypatch.setenv("PYTHONPATH", str(HARNESS / "stubs"))
    real = forecast(
        architecture, network, network_dim=8, network_args=arguments, sd_scripts=Path(str(SD_SCRIPTS)), **rates
    )
    assert estimate.estimated
    assert not real.estimated
    assert dc.replace(real, warnings=(), estimated=True) == dc.replace(estimate, warnings=())


@pytest.mark.slow
def test_a_package_that_sd_scripts_needs_and_we_do_not_have(tmp_path):
    (tmp_path / "networks").mkdir()
    (tmp_path / "networks" / "lora.py").write_text("import no_such_package")
    found = forecast("sd15", "networks.lora", network_dim=4, sd_scripts=tmp_path)
    assert found.estimated
    assert (
        "since no_such_package is not installed here; use the environment that sd-scripts runs in" in found.warnings[0]
    )


def test_a_typeerror_in_the_network_gets_the_second_try_of_train_network(monkeypatch):
    class Old(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lora_unet_x = torch.nn.Linear(2, 2)

        def apply_to(self, *_):
            pass

        def prepare_optimizer_params(self, text_encoder_lr, unet_lr):
            return [{"params": list(self.parameters()), "lr": unet_lr}]

    groups, descriptions = _groups(Old(), request(unet_lr=3e-4, text_encoder_lr=[1e-5]))
    assert groups[0]["lr"] == 3e-4
    assert descriptions == ["group0"]


def test_the_table():
    groups = (
        Group("textencoder", 5e-5, 0.0, 144, 2_654_208, {"lora_down": 72, "lora_up": 72}),
        Group("unet", 1e-4, 0.01, 390, 6_782_976, {"dora_scale": 6, "lora_up": 384}, ("dora_scale",)),
    )
    made = Forecast("sd15", "lycoris.kohya", "HinaAdamW", groups, 18_874_368, 19_000_000, ("adam on 534",), ("beware",))
    assert table(made).splitlines() == [
        "lycoris.kohya on SD 1.x, HinaAdamW",
        "group            lr  decay  tensors  parameters  roles",
        "textencoder   5e-05      0      144   2,654,208  lora_down 72, lora_up 72",
        "unet         0.0001   0.01      390   6,782,976  dora_scale 6, lora_up 384 (no decay: dora_scale)",
        "total                           534   9,437,184",
        "optimizer state 18.1 MiB (2.01 bytes a parameter); adapter file 18.0 MiB in fp16",
        "techniques: adam on 534",
        "note: beware",
    ]
