"""A TOML as sd-scripts reads it, the trainer it is for, and whether the hooks will be active."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import toml

from hina_kohya import patch
from hina_kohya.check import printing, report, values
from hina_kohya.check.edit import toml_value
from hina_kohya.check.finding import Level
from hina_kohya.check.reading import read
from hina_kohya.check.schema import Option, Schema
from hina_kohya.trainers.checkouts import Checkout
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS

MODEL = "pretrained_model_name_or_path"
HOME = os.environ.get("SD_SCRIPTS_HOME", "")
CONFIGS = Path(__file__).parents[2] / "configs" / "training"
SHIPPED = sorted(
    each for each in CONFIGS.glob("*.toml") if each.name not in ("digits_lokr.toml",)
)  # that is for our trainer


def read_one(path):
    return read([path])


def written(folder, text, name="config.toml"):
    (folder / name).write_bytes(text.encode())
    return str(folder / name)


def wrong(checked):
    """The findings without what cannot be looked at here."""
    return [each for each in checked.findings if each.level is not Level.NOT_LOOKED_AT]


@pytest.mark.parametrize("config", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_are_silent(config, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = report.check(str(config))
    assert wrong(found) == []
    assert found.run is None or found.run.trainer.certain
    assert found.run is None or "dataset_config" in found.to_fill_in


@pytest.mark.skipif(not HOME, reason="needs sd-scripts")
def test_shipped_configs_are_silent_by_a_checkout_too(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for config in SHIPPED:
        assert wrong(report.check(str(config), checkout=Checkout(SD_SCRIPTS, Path(HOME)))) == [], config


def test_there_are_shipped_configs_of_every_kind():
    assert {each.stem for each in SHIPPED} >= {
        f"{model}_{kind}"
        for model in ("sd15", "sdxl", "sd35", "flux1", "lumina2", "anima")
        for kind in ("lora", "lokr", "loha", "dora")
    }


def test_sections_are_flattened_one_level_and_nothing_is_converted(tmp_path):
    read = read_one(written(tmp_path, 'a = 1\n[one]\nb = "2"\n[two]\na = 3.0\n[two.three]\nc = 4\n'))
    assert read.values == {"a": 3.0, "b": "2", "three": {"c": 4}}
    assert read.sections == {"a": "two", "b": "one", "three": "two"}
    assert read.repeated == {"a": [1, 3.0]}


def test_the_ending_is_added_where_it_is_missing(tmp_path):
    written(tmp_path, "seed = 1")
    assert read_one(str(tmp_path / "config")).values == {"seed": 1}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('train_data_dir = "C:\\Users\\me"', "write paths in single quotes"),
        ("lrs = [1e-4, 0]", "write the numbers of a list alike"),
        ("seed = True", "write true and false in small letters"),
        ("lr = .5", "write 0.5 and not .5"),
        ("seed = 1\nseed = 2", "keep one of the two lines"),
        ("seed", "is not valid"),
        ("a = Yes", "words in quotes"),
        (".=1", "is not valid"),  # the reader ends in an IndexError
    ],
)
def test_what_cannot_be_read_says_how_to_write_it(tmp_path, text, says):
    with pytest.raises(UserError, match=says):
        read_one(written(tmp_path, text))


def test_files_that_are_not_there_or_not_utf8(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*gone\.toml.: No such file"):
        read_one(str(tmp_path / "gone"))
    (tmp_path / "latin.toml").write_bytes("name = 'caf\xe9'".encode("latin-1"))
    with pytest.raises(UserError, match="save it as UTF-8"):
        read_one(str(tmp_path / "latin.toml"))


def test_a_byte_order_mark_hides_the_first_key(tmp_path):
    found = report.check(written(tmp_path, "\ufeffseed = 1\n")).findings
    (finding,) = [each for each in found if each.rule == "unknown_key"]
    assert "byte-order mark" in finding.what


@pytest.mark.parametrize(
    ("text", "how", "script", "architecture", "certain"),
    [
        ("seed = 1", {}, "train_network.py", None, False),
        ("v2 = true", {"script": "C:\\sd\\train_network"}, "train_network.py", "sd2", True),
        ("seed = 1", {"script": "train_network.py"}, "train_network.py", "sd15", True),
        ("seed = 1", {"arch": "sd3.5-large"}, "sd3_train_network.py", "sd3.5-large", True),
        ("seed = 1", {"arch": "sdxl"}, "sdxl_train_network.py", "sdxl", True),
        ("seed = 1", {"arch": "sd15"}, "train_network.py", "sd15", True),
        ('network_module = "networks.lora_flux"', {}, "flux_train_network.py", "flux1", True),
        ('network_module = "networks.oft_flux"', {}, "flux_train_network.py", "flux1", True),
        (
            'network_module = "hina_kohya.network"\nnetwork_args = ["inner=networks.lora_anima"]',
            {}, "anima_train_network.py", "anima", True,
        ),
        ("seed = 1", {"words": ["--network_module", "networks.lora_sd3"]}, "sd3_train_network.py", None, True),
        ("cache_text_encoder_outputs = false", {}, "train_network.py", None, False),
        ("sdxl = true", {}, "sdxl_train_network.py", "sdxl", True),
        ('model_train_type = "sdxl-lora"', {}, "sdxl_train_network.py", "sdxl", True),
        ('model_train_type = "sd-lora"', {}, "train_network.py", "sd15", True),
        ('resolution = "1024,1024"', {}, "sdxl_train_network.py", None, False),
        ("no_half_vae = true", {}, "sdxl_train_network.py", None, False),
        (f"{MODEL} = 'stabilityai/stable-diffusion-xl-base-1.0'", {}, "sdxl_train_network.py", "sdxl", True),
        (f"{MODEL} = 'D:/sd/sd_xl_base_1.0.safetensors'", {}, "sdxl_train_network.py", "sdxl", True),
        (f"{MODEL} = 'runwayml/stable-diffusion-v1-5'", {}, "train_network.py", "sd15", True),
        (f"{MODEL} = 'my_model.safetensors'", {}, "train_network.py", None, False),
        ("v2 = true", {}, "train_network.py", "sd2", True),
        ("# sdxl_train_network.py --config_file x", {}, "sdxl_train_network.py", "sdxl", True),
        ("# sdxl_train_network.py or train_network.py", {}, "train_network.py", None, False),
        ("cache_text_encoder_outputs = true", {}, "sdxl_train_network.py", "sdxl", True),
        ('gemma2 = "x"', {}, "lumina_train_network.py", "lumina2", True),
        ('clip_l = "x"\nt5xxl = "x"\nae = "x"', {}, "flux_train_network.py", "flux1", True),
        ('clip_l = "x"\nt5xxl = "x"\nclip_g = "x"', {}, "sd3_train_network.py", None, True),
        ('qwen3 = "x"', {}, "anima_train_network.py", "anima", True),
        ("discrete_flow_shift = 3.1", {}, "flux_train_network.py", None, False),
    ],
)  # fmt: skip
def test_which_trainer_a_file_is_for(tmp_path, text, how, script, architecture, certain):
    found = report.check(written(tmp_path, text), **how)
    assert found.run is not None
    assert found.run.trainer.script == script
    assert (found.architecture, found.run.trainer.certain) == (architecture, certain)


def test_unknown_trainers_and_architectures_are_named(tmp_path):
    file = written(tmp_path, "seed = 1")
    with pytest.raises(UserError, match="there is no trainer train_db.py; known: anima_train_network.py"):
        report.check(file, script="train_db.py")
    with pytest.raises(UserError, match="did you mean sdxl"):
        report.check(file, arch="sdx")


@pytest.mark.slow
def test_a_preset_that_fails_on_sd1_is_only_a_doubt_where_the_trainer_is_assumed(tmp_path):
    file = written(tmp_path, 'network_module = "lycoris.kohya"\n')
    for script, level in ((None, ["warning"]), ("train_network", ["error"]), ("sdxl_train_network", [])):
        found = report.check(file, script=script).findings
        assert [each.level.value for each in found if each.rule == "preset_fails_on_sd1"] == level


@pytest.mark.slow
def test_the_hooks_are_active_through_our_module_a_patch_or_the_launcher(tmp_path, monkeypatch):
    def hooks(text, **how):
        run = report.check(written(tmp_path, text), **how).run
        assert run is not None
        return run.hooks

    short = 'optimizer_type = "HinaAdamW"\nnetwork_module = "lycoris.kohya"\n'
    assert not hooks(short).active
    assert hooks(short, launched=True).why == "started with hina-kohya launch"
    assert hooks('network_module = "hina_kohya.network"').active
    assert hooks(short, words=["--network_module", "hina_kohya.lycoris"]).active
    real = patch.inspect
    monkeypatch.setattr(patch, "inspect", lambda name, *rest: _patched(real(name, *rest), name))
    assert hooks(short).why == "LyCORIS is patched"
    assert not hooks('network_module = "networks.lora"').active


def _patched(status, name):
    import dataclasses as dc

    return dc.replace(status, patched=name == "lycoris")


@pytest.mark.parametrize(
    ("option", "given", "meant"),
    [
        (Option("x", "flag"), "False", False),
        (Option("x", "flag"), 1, True),
        (Option("x", "flag"), "maybe", None),
        (Option("x", "int"), "8", 8),
        (Option("x", "int"), 8.0, 8),
        (Option("x", "int"), 8.5, None),
        (Option("x", "float"), "1e-4", 1e-4),
        (Option("x", "str"), [512, 768], "512,768"),
        (Option("x", "str", list=True), "a=1 b=2", ["a=1", "b=2"]),
        (Option("optimizer_args", "str", list=True), {"mode": "fp32"}, ["mode='fp32'"]),
        (Option("network_args", "str", list=True), {"algo": "lokr"}, ["algo=lokr"]),
        (Option("x", "float", list=True), [1, "2"], [1, 2]),
    ],
)
def test_what_a_value_of_the_wrong_type_was_meant_to_be(option, given, meant):
    assert not values.fits(option, given)
    assert values.meant(option, given) == meant


def test_lines_to_type_are_toml():
    assert toml_value(["a=1", 'b="x"', "C:\\x", True, 1e-4]) == "[\"a=1\", 'b=\"x\"', 'C:\\x', true, 0.0001]"


@pytest.mark.slow
def test_a_check_without_an_optimizer_to_look_into_imports_no_torch(tmp_path):
    file = written(tmp_path, 'network_module = "lycoris.kohya"\nnetwork_args = ["algo=lokr"]\n')
    call = f"from hina_kohya.check.report import check; check({file!r})"
    code = f"import sys; {call}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_shipped_schema_knows_every_key_that_the_rules_ask_for():
    """A rule that asks for an option which a trainer lacks would stop there."""
    import ast

    from hina_kohya.check import rules

    common = Schema().options("train_network.py")
    for path in Path(rules.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Subscript)
                and ast.unparse(node.value).endswith(("args", "c.args"))
                and "arguments" not in ast.unparse(node)
            ):
                key = node.slice.value if isinstance(node.slice, ast.Constant) else None
                assert key is None or key in common, (path.name, key)


ODD = (True, -3, 8.0, "", "x", "1e-4", "<fill in>", "C:\\dir\\y", [], ["="], ["a=1", "a=x"], [1, 2], {"a": 1})
JUNK = (1, "x", [1], {"image_dir": "x"}, [{"subsets": 1}], [{"subsets": [1]}], [{"subsets": [{"image_dir": 1}]}])


NETWORKS = (
    {},
    {"network_module": "hina_kohya.lycoris"},
    {"network_module": "networks.lora"},
    {"network_module": "hina_kohya.lycoris", "optimizer_type": "HinaAdamW"},
)


@pytest.mark.slow
@pytest.mark.parametrize("script", Schema().scripts)
def test_no_value_of_any_key_stops_the_check(tmp_path, monkeypatch, script):
    """Every value with every script, and with every network in one script or another: all triples take minutes."""
    monkeypatch.chdir(tmp_path)
    turn = Schema().scripts.index(script)
    for number, value in enumerate(ODD):
        network = NETWORKS[(turn + number) % len(NETWORKS)]
        text = toml.dumps({"all": {**dict.fromkeys(Schema().options(script), value), **network}})
        found = report.check(written(tmp_path, text), script=script)
        lines = printing.text(found)
        assert re.search(r"\d+ error", lines[-1])
        assert len(lines) < 120


def test_every_odd_value_meets_every_network():
    assert len(Schema().scripts) >= len(NETWORKS)


@pytest.mark.parametrize("key", ["general", "datasets"])
def test_no_shape_of_a_dataset_file_stops_the_check(tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path, 'dataset_config = "dataset.json"')
    for value in JUNK:
        written(tmp_path, json.dumps({"datasets": [{"resolution": 512}], key: value}), "dataset.json")
        assert "dataset_unreadable" in {each.rule for each in report.check(file).findings}
