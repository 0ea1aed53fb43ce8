"""The facts behind the check: what is shipped against a checkout, against argparse itself, and against LyCORIS."""

import ast
import dataclasses as dc
import inspect
import json
import os
import subprocess
import textwrap
from pathlib import Path

import pytest

from hina_kohya.check import schema, sizes, source_options, source_reads
from hina_kohya.check.reading.arguments import parse
from hina_kohya.check.rules.lycoris import PRESETS, READERS
from hina_kohya.check.schema import Schema
from hina_kohya.trainers.checkouts import TRAINERS, Checkout
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.musubi import MUSUBI
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS

HOME = os.environ.get("SD_SCRIPTS_HOME", "")
HARNESS = Path(os.environ.get("HINA_HARNESS", Path(__file__).parents[3] / "shared" / "harness"))
PYTHON = Path(os.environ.get("HARNESS_DIR", Path.home() / ".cache/hina-harness")) / "venv/bin/python"
ACTIONS = """
import sys, json, importlib, argparse
sys.path.insert(0, sys.argv[1])
found = {}
for script in sys.argv[2:]:
    actions = importlib.import_module(script[:-3]).setup_parser()._actions
    found[script] = {
        each.dest: [each.option_strings, getattr(each.type, "__name__", None), each.nargs, each.choices, each.default,
                    type(each).__name__]
        for each in actions if not isinstance(each, argparse._HelpAction)
    }
print(json.dumps(found))
"""
CHECKOUT = {
    "train_network.py": """
from library import train_util
from library.more import add_more_arguments
def setup_parser():
    parser = argparse.ArgumentParser()
    train_util.add_arguments(parser, True)
    add_more_arguments(parser)
    parser.add_argument("--rank", type=int, default=0, choices=[0, 1])
    return parser
""",
    "sdxl_train_network.py": """
import train_network
def setup_parser():
    parser = train_network.setup_parser()
    parser.add_argument("--only-xl", action="store_true", help="told " + "twice")
    return parser
""",
    "library/train_util.py": """
def add_arguments(parser: argparse.ArgumentParser, wanted: bool, unwanted: bool = False):
    def convert(value):
        return value
    parser.add_argument("--words", "-w", type=str, default=None, nargs="*")
    parser.add_argument("--off", action="store_false")
    parser.add_argument("--computed", default=compute())
    if wanted:
        parser.add_argument("--wanted", type=float, default=1e-4)
    for name in ("--first", "--second"):
        parser.add_argument(name, type=int)
    if unwanted:
        parser.add_argument("--unwanted", type=float)
""",
    "library/more.py": """
from . import train_util
def add_more_arguments(parser):
    parser.add_argument("--lr_warmup_steps", type=int_or_float, default=0)
""",
    "library/config_util.py": """
class ConfigSanitizer:
    ONE_SCHEMA = {"flip": bool, "rate": Any(float, int), Required("image_dir"): str}
""",
    "networks/mine.py": """
def create_network(multiplier, network_dim, **kwargs):
    parse(kwargs)
    return kwargs.get("conv_dim", None) or kwargs["unit"]
def parse(words):
    return words.get("ratio")
""",
}


@pytest.fixture
def checkout(tmp_path):
    for name, text in CHECKOUT.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return Checkout(SD_SCRIPTS, tmp_path)


def test_options_are_read_off_the_source_of_the_parser(checkout):
    common = source_options.options_of(checkout, "train_network.py")
    assert common == {
        "words": {"type": "str", "list": True, "flags": ["--words", "-w"]},
        "off": {"type": "flag", "default": True},
        "computed": {"type": "str"},
        "wanted": {"type": "float", "default": 1e-4},
        "first": {"type": "int"},
        "second": {"type": "int"},
        "lr_warmup_steps": {"type": "steps", "default": 0},
        "rank": {"type": "int", "choices": [0, 1], "default": 0},
    }
    assert source_options.options_of_trainers(checkout)["sdxl_train_network.py"] == {
        "only_xl": {"type": "flag", "flags": ["--only-xl"]}
    }


def test_an_option_that_only_running_would_tell_is_refused(checkout):
    text = CHECKOUT["sdxl_train_network.py"].replace('"--only-xl"', "name()")
    (checkout.root / "sdxl_train_network.py").write_text(text)
    with pytest.raises(UserError, match=r"cannot be read: parser.add_argument\(name\(\)"):
        source_options.options_of(checkout, "sdxl_train_network.py")


def test_a_checkout_counts_instead_of_what_is_shipped(checkout):
    told = Schema(SD_SCRIPTS, checkout)
    assert told.scripts == ["sdxl_train_network.py", "train_network.py"]
    assert set(told.options("sdxl_train_network.py")) == {
        *source_options.options_of(checkout, "train_network.py"),
        "only_xl",
    }
    network = told.network("networks.mine")
    assert network is not None
    assert (network.reads, network.taken) == (("conv_dim", "ratio", "unit"), ("multiplier", "network_dim"))
    assert told.network("networks.lora") is None
    assert told.datasets == {"one_schema": {"flip": "bool", "rate": "float|int", "image_dir": "str!"}}
    with pytest.raises(UserError, match="there is no trainer flux_train_network.py; known: sdxl"):
        told.options("flux_train_network.py")


def test_the_command_line_is_parsed_as_by_argparse(checkout):
    options = Schema(SD_SCRIPTS, checkout).options("sdxl_train_network.py")
    words = ["--words", "a", "b", "--wanted", "3", "--lr_warmup_steps", "10%", "--off", "--only-xl"]
    assert parse(words, options).values == {
        "words": ["a", "b"], "wanted": 3.0, "lr_warmup_steps": 0.1, "off": False, "only_xl": True,
    }  # fmt: skip
    assert parse(["--rank", "1"], options).values == {"rank": 1}
    read = parse(["--rank", "2", "--wanted", "x", "--nothing", "1", "--off=1", "--words", "a"], options)
    assert {key: why.partition(":")[0] for key, why in read.refused.items()} == {
        "rank": "invalid choice", "wanted": "invalid float value", "nothing": "there is no option --nothing",
        "off": "ignored explicit argument '1'",
    }  # fmt: skip
    assert read.values["words"] == ["a"]  # one refused word does not hide the rest


def test_what_is_shipped_is_whole():
    shipped = Schema()
    assert len(shipped.scripts) == 7
    assert all(len(shipped.options(script)) > 190 for script in shipped.scripts)
    assert {"networks.lora", "networks.lora_flux", "networks.lokr", "networks.loha"} <= set(shipped.networks)
    assert shipped.origin.startswith("sd-scripts 0.10.1 and 0.11.1")
    assert shipped.options("train_network.py")["train_inpainting"].releases == ("0.11.1",)
    assert shipped.options("train_network.py")["seed"].releases == ()
    musubi = Schema(MUSUBI)
    assert len(musubi.scripts) == 13
    assert all(len(musubi.options(script)) > 115 for script in musubi.scripts)
    assert musubi.options("wan_train_network.py")["task"].default == "t2v-14B"
    assert {"networks.lora_wan", "networks.lora_qwen_image", "networks.lokr"} <= set(musubi.networks)
    network = musubi.network("networks.lora_wan")
    assert network is not None
    assert {"loraplus_lr_ratio", "exclude_patterns", "rank_dropout"} <= set(network.reads)


@pytest.mark.skipif(not (HOME and PYTHON.exists()), reason="needs sd-scripts and the harness")
def test_the_source_says_what_the_real_parser_says():
    told = Schema(SD_SCRIPTS, Checkout(SD_SCRIPTS, Path(HOME)))
    run = subprocess.run(
        [PYTHON, "-c", ACTIONS, HOME, *told.scripts],
        env={**os.environ, "PYTHONPATH": str(HARNESS / "stubs")},
        capture_output=True,
        text=True,
        check=True,
    )
    types = {"int_or_float": "steps", "Path": "str", None: "str"}
    for script, actions in json.loads(run.stdout.splitlines()[-1]).items():
        options = told.options(script)
        assert set(options) == set(actions)
        for name, (flags, kind, nargs, choices, default, action) in actions.items():
            option = options[name]
            assert option.type == ("flag" if "Store" in action and action != "_StoreAction" else types.get(kind, kind))
            assert (option.list, list(option.choices), option.unset) == (nargs == "*", choices or [], default)
            assert list(option.flags or [f"--{name}"]) == flags


@pytest.mark.parametrize("family", TRAINERS, ids=lambda family: family.name)
def test_what_is_shipped_is_what_its_commit_says(family):
    home = os.environ.get(family.home)
    if not home:
        pytest.skip(f"needs {family.home}")
    checkout, releases = Checkout(family, Path(home)), schema.shipped(family)["releases"]
    release = next((name for name, commit in releases.items() if commit == checkout.commit), None)
    if release is None:
        pytest.skip("another commit")
    told, shipped = Schema(family, checkout), Schema(family)
    for script in told.scripts:
        known = {name: dc.replace(option, releases=()) for name, option in shipped.options(script).items()
                 if release in (option.releases or (release,))}  # fmt: skip
        assert told.options(script) == known
    if release == list(releases)[-1]:
        assert told.datasets == shipped.datasets
        assert all(told.network(name) == shipped.network(name) for name in shipped.networks)


READS = {
    "train_network.py": """
from library import train_util
class NetworkTrainer:
    def train(self, args):
        metadata = {"ss_clip_skip": args.clip_skip, "ss_seed": args.seed}
        self.loss(args)
        train_util.noise(args)
        return getattr(args, "late", None)
    def loss(self, args):
        return args.min_snr_gamma
    def sample_images(self, args):
        return args.preview
""",
    "flux_train_network.py": """
import train_network
class FluxNetworkTrainer(train_network.NetworkTrainer):
    def loss(self, args):
        return super().other(args) or args.guidance_scale
""",
    "library/train_util.py": """
def noise(args):
    return args.noise_offset
""",
}


def test_options_that_a_script_never_reads_are_followed_from_train(tmp_path):
    for name, text in READS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    checkout = Checkout(SD_SCRIPTS, tmp_path)
    own = source_reads.reads(checkout, checkout.root / "train_network.py")
    assert own == {"min_snr_gamma", "noise_offset", "late"}  # neither metadata nor previews
    assert source_reads.never_read(checkout) == {
        "flux_train_network.py": ["min_snr_gamma"], "train_network.py": ["guidance_scale"],
    }  # fmt: skip


@pytest.mark.parametrize("family", TRAINERS, ids=lambda family: family.name)
def test_what_is_shipped_as_never_read_is_so_in_a_checkout(family):
    home = os.environ.get(family.home)
    if not home:
        pytest.skip(f"needs {family.home}")
    of_checkout = source_reads.never_read(Checkout(family, Path(home)))
    for script, names in of_checkout.items():
        assert {*Schema(family).unread(script)} <= {*names}, script
    if family is SD_SCRIPTS:
        assert {"noise_offset", "clip_skip", "min_snr_gamma"} <= {*Schema(family).unread("flux_train_network.py")}


def test_lycoris_has_the_algorithms_and_presets_that_the_rules_name():
    from lycoris.config import PRESET

    facts = Schema().network("lycoris.kohya")
    assert facts is not None
    assert facts.algorithms == tuple(_algorithms())
    assert {name: bool(preset.get("enable_conv")) for name, preset in PRESET.items()} == PRESETS
    assert set(READERS) <= set(facts.reads)


def test_lycoris_reads_arguments_for_the_algorithms_that_the_table_names():
    """An algorithm whose module does not even look at an argument in its constructor cannot act on it."""
    inner = {"dora_wd": "weight_decompose", "wd_on_output": "wd_on_out"}
    for argument, readers in READERS.items():
        for algorithm, module in _algorithms().items():
            name = inner.get(argument, argument)
            constructor = inspect.unwrap(module.__init__)
            looks = name in inspect.signature(constructor).parameters and _uses(constructor, name)
            assert looks == (algorithm in readers), (argument, algorithm)


def _algorithms():
    """LyCORIS's own: another test may have registered ours."""
    from lycoris.wrapper import network_module_dict

    return {name: module for name, module in network_module_dict.items() if module.__module__.startswith("lycoris.")}


def _uses(function, name):
    body = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0].body
    return any(isinstance(node, ast.Name) and node.id == name for each in body for node in ast.walk(each))


@pytest.mark.parametrize("factor", [-1, 2, 4, 8, 16, 32])
def test_lokr_splits_as_lycoris_does(factor):
    from lycoris.functional import factorization

    for width in (320, 640, 768, 1280, 1536, 2048, 2304, 3072, 3584, 127, 250):
        assert sizes.split(width, factor) == factorization(width, factor)
