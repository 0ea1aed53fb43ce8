"""configs/training: read as the trainers read them and accepted by what they configure.

That each of them trains is seen in tests/trainers.
"""

import ast
import json
import os
import subprocess

import pytest
import toml
import torch
from torch import nn

from hina_kohya.trainers import optimizer_args
from hina_kohya.trainers.network_args import take
from tests.support import runs
from tests.support.training_configs import (
    FOLDER,
    LAYERS,
    adapted,
    descent,
    lycoris,
    model_of,
    network_arguments,
    optimizer_of,
    read,
)

__all__ = ["lycoris"]  # a fixture
SCRIPTS = {
    "sd15": "train_network", "sdxl": "sdxl_train_network", "sd35": "sd3_train_network",
    "flux1": "flux_train_network", "lumina2": "lumina_train_network", "anima": "anima_train_network",
}  # fmt: skip
MUSUBI = {"wan22": "wan_train_network", "qwenimage": "qwen_image_train_network", "zimage": "zimage_train_network"}
ALGORITHMS = ("lora", "lokr", "loha", "dora")
SD_CONFIGS = [*(f"{model}_{algorithm}" for model in SCRIPTS for algorithm in ALGORITHMS), "sd15_adlrns"]
CONFIGS = [*SD_CONFIGS, "wan22_lora", "qwenimage_lokr", "zimage_dora"]
PATHS = {
    "pretrained_model_name_or_path", "dataset_config", "clip_l", "clip_g", "t5xxl", "ae", "gemma2", "qwen3", "vae",
    "dit",
}  # fmt: skip


def is_placeholder(value):
    return isinstance(value, str) and value.startswith("<") and value.endswith(">")


def test_every_model_has_every_algorithm():
    found = {path.stem for path in FOLDER.glob("*.toml")} - {"dataset", "musubi_dataset", "digits_lokr"}
    assert found == set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_starts_with_the_command_that_runs_it(name):
    line = (FOLDER / f"{name}.toml").read_text(encoding="utf-8").splitlines()[0]
    if script := SCRIPTS.get(model_of(name)):
        assert line == f"# accelerate launch --num_cpu_threads_per_process 1 {script}.py --config_file {name}.toml"
        return
    before = "# accelerate launch --num_cpu_threads_per_process 1 --mixed_precision bf16 src/musubi_tuner/"
    assert line == f"{before}{MUSUBI[model_of(name)]}.py --config_file {name}.toml"


@pytest.mark.parametrize("name", CONFIGS)
def test_only_paths_are_left_to_fill_in(name):
    config = read(name)
    assert {key for key, value in config.items() if is_placeholder(value)} == PATHS & set(config)
    filled = {key: value for key, value in config.items() if key not in PATHS}
    assert "<" not in json.dumps(filled)
    assert config["output_dir"] == f"output/{name}"
    assert config["output_name"] == name


@pytest.mark.parametrize("name", CONFIGS)
def test_optimizer_accepts_its_arguments(name):
    optimizer = optimizer_of(read(name), [nn.Parameter(torch.zeros(2, 2))], 1.0)
    assert not optimizer.conflicts


@pytest.mark.parametrize("name", CONFIGS)
def test_without_hooks_the_arguments_read_the_same(name):
    words = read(name).get("optimizer_args", [])
    theirs = {key: ast.literal_eval(value) for key, value in (word.split("=") for word in words)}
    assert theirs == optimizer_args.parse(words)


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_is_decided_twice(name):
    config = read(name)
    network = network_arguments(config)
    options, _ = take(network)
    settings = optimizer_of(config, [nn.Parameter(torch.zeros(2, 2))], 1.0).settings
    assert not (options.splits_lr and settings.use_alora)  # LoRA+ is the network's or the optimizer's
    assert not (options.splits_decay and settings.use_spd)  # which displaces weight decay
    assert not (config.get("fp8_base") and "dora_wd" in network)
    if "bypass_mode" in network and network["algo"] == "lokr":
        assert config["network_alpha"] == config["network_dim"]  # LyCORIS < 4.0 forgets alpha / dim there


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_first_step_is_of_a_usual_size(name, lycoris):
    """The measure behind the learning rates: that of LoRA of rank 16, alpha 16, at 2e-4 with the same optimizer."""
    descents = []
    config = read(name)
    usual = {**config, "network_dim": 16, "network_alpha": 16.0, "network_args": []}
    for each, rate in ((usual, 2e-4), (config, config["learning_rate"])):
        unet, network = adapted(lycoris, name, each)
        assert len(network.unet_loras) == 1
        groups, _ = network.prepare_optimizer_params(None, None, rate)
        descents.append(descent(unet, optimizer_of(config, groups, rate)))
    assert 0.9 < descents[1] / descents[0] < 1.1


@pytest.mark.parametrize(
    "name", [name for name in SD_CONFIGS if not name.endswith("_lora") and read(name).get("fp8_base")]
)
def test_fp8_weights_can_be_adapted(name, lycoris):
    unet, network = adapted(lycoris, name, read(name), torch.float8_e4m3fn)
    with torch.autocast("cpu", torch.bfloat16):
        unet(torch.randn(2, LAYERS[model_of(name)][-1])).sum().backward()
    assert any(param.grad is not None and param.grad.any() for param in network.parameters())


needs_sd_scripts = pytest.mark.skipif(runs.real_checkout() is None, reason="needs SD_SCRIPTS_HOME and the harness")

# Within sd-scripts: its parsers, its configuration file reader, its data sets and its own checks.
READER = """
import importlib, json, sys
script, dataset, *paths = sys.argv[1:]
module = importlib.import_module(script)
from library import config_util, strategy_base, train_util
kinds = (thing for name, thing in vars(module).items() if name.endswith("NetworkTrainer"))
kind = next(thing for thing in kinds if thing.__module__ == script)
trainer, parser = kind(), module.setup_parser()
options = {action.dest: action for action in parser._actions}
for path in paths:
    sys.argv[1:] = ["--config_file", path]
    args = parser.parse_args()
    train_util.verify_command_line_training_args(args)
    args = train_util.read_config_from_file(args, parser)
    given = {key: value for key, value in vars(args).items() if value != parser.get_default(key)}
    del given["config_file"]
    unknown = sorted(set(given) - set(options))
    words = []
    for key, value in given.items():
        value = [] if value is True else value if isinstance(value, list) else [value]
        words += ["--" + key, *map(str, value)]
    typed = {} if unknown else vars(parser.parse_args(words))
    differing = {key: [repr(value), repr(typed[key])] for key, value in given.items() if not unknown
                 and (typed[key], type(typed[key])) != (value, type(value)) and key != "dataset_config"}
    train_util.verify_training_args(args)
    train_util.prepare_dataset_args(args, True)
    strategy_base.LatentsCachingStrategy._strategy = None
    strategy_base.LatentsCachingStrategy.set_strategy(trainer.get_latents_caching_strategy(args))
    generator = config_util.BlueprintGenerator(config_util.ConfigSanitizer(True, True, args.masked_loss, True))
    blueprint = generator.generate(config_util.load_user_config(dataset), args)
    data, _ = config_util.generate_dataset_group_by_blueprint(blueprint.dataset_group)
    trainer.assert_extra_args(args, data, None)
    first = data.datasets[0]
    print("READ", json.dumps({"unknown": unknown, "differing": differing, "batch": first.batch_size,
        "size": [first.width, first.height], "largest": first.max_bucket_reso, "images": first.num_train_images}))
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """configs/training/dataset.toml, filled in."""
    images = next(path for path in (runs.VENV.parent / "assets" / "data").iterdir() if path.is_dir())
    content = toml.load(FOLDER / "dataset.toml")
    assert is_placeholder(content["datasets"][0]["subsets"][0]["image_dir"])
    content["datasets"][0]["subsets"][0]["image_dir"] = str(images)
    path = tmp_path_factory.mktemp("dataset") / "dataset.toml"
    path.write_text(toml.dumps(content), encoding="utf-8")
    return path


@needs_sd_scripts
@pytest.mark.parametrize("model", SCRIPTS)
def test_sd_scripts_reads_them(model, dataset):
    chosen = [name for name in SD_CONFIGS if model_of(name) == model]
    files = [FOLDER / f"{name}.toml" for name in chosen]
    paths = os.pathsep.join(map(str, (runs.real_checkout(), runs.HARNESS / "stubs")))
    run = subprocess.run(
        [runs.VENV / "bin" / "python", "-c", READER, SCRIPTS[model], dataset, *files],
        capture_output=True, text=True, check=False, env={**os.environ, **runs.HARMLESS, "PYTHONPATH": paths},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    lines = [json.loads(line.removeprefix("READ ")) for line in run.stdout.splitlines() if line.startswith("READ ")]
    for name, found in zip(chosen, lines, strict=True):
        config = read(name)
        assert (found["unknown"], found["differing"]) == ([], {})
        assert found["size"] == [int(each) for each in config["resolution"].split(",")]
        assert (found["batch"], found["largest"]) == (config["train_batch_size"], config.get("max_bucket_reso", 1024))
        assert found["images"] == 80  # 8, 10 times
