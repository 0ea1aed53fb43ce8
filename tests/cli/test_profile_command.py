"""`hina-kohya profile`: a run or shapes in, tables or JSON out, and one line for what is wrong."""

import json

import pytest

from hina_kohya.check.forecast import forecast
from hina_kohya.cli import main
from hina_kohya.profile import profiling

pytestmark = pytest.mark.usefixtures("forked_python")

SHORT = ["--steps", "2", "--warmup", "1"]
LIST = ["--shapes", "lora4:24x40*3,5", *SHORT]
RUN = """
pretrained_model_name_or_path = "sd15.safetensors"
network_module = "hina_kohya.lycoris"
network_dim = 1
network_args = ["algo=lokr", "preset=attn-only", "factor=8", "weight_decay=0.02"]
optimizer_type = "HinaAdamW"
optimizer_args = ["state=bf16", "use_kronecker_rms=True"]
learning_rate = 2e-4
full_bf16 = true
"""


def run(words, capsys):
    code = main(["profile", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_tables(capsys):
    code, text, _ = run(LIST, capsys)
    assert code == 0
    lines = text.splitlines()
    assert lines[0] == "lora4:24x40*3,5: 773 parameters in 7 tensors of 3 shapes, float32"
    assert "2 steps" in lines[1]
    table = {line.split("  ")[0]: line for line in lines[3:]}
    assert list(table)[:5] == ["optimizer", "HinaAdamW", "torch AdamW", "bitsandbytes AdamW8bit", ""]
    assert " 1.00" in table["torch AdamW"]
    assert {"lora_muon", "adam", "cautious", "weight_decay", "gather, scatter", "rest of the step"} <= set(table)


def test_json(capsys):
    code, text, _ = run([*LIST, "--format", "json", "--alone", "--optimizer", "HinaAdamW state=fp32"], capsys)
    content = json.loads(text)
    assert code == 0
    assert (content["parameters"], content["tensors"], content["shapes"], content["steps"]) == (773, 7, 3, 2)
    (row,) = content["rows"]
    assert (row["name"], row["path"]) == ("HinaAdamW state=fp32", "hina_kohya.optim.hina_adamw.HinaAdamW")
    assert sum(part["state_bytes"] for part in row["parts"]) == row["state_bytes"]
    assert {"operations", "launches", "moved"} == set(row["parts"][0]["counts"])


def test_a_trace_is_announced(capsys, tmp_path):
    file = tmp_path / "t.json"
    code, text, _ = run([*LIST, "--alone", "--trace", str(file)], capsys)
    assert code == 0
    assert text.endswith(f"written to {file}\n")
    assert json.loads(file.read_text())["traceEvents"]


@pytest.mark.slow
def test_a_run_is_stepped_as_the_trainer_would_have_it(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("SD_SCRIPTS_HOME", raising=False)
    file = tmp_path / "run.toml"
    file.write_text(RUN, encoding="utf-8")
    words = [str(file), "--arch", "sd15", "--alone", *SHORT, "--format", "json", "--optimizer", "COptim8bit"]
    code, text, error = run(words, capsys)
    assert (code, error) == (0, "")
    content = json.loads(text)
    arguments = {"algo": "lokr", "preset": "attn-only", "factor": "8", "weight_decay": "0.02"}
    expected = forecast(
        "sd15", "hina_kohya.lycoris", network_dim=1, network_args=arguments, learning_rate=2e-4, dtype="bfloat16",
        optimizer_type="HinaAdamW", optimizer_args=["state=bf16", "use_kronecker_rms=True"],
    )  # fmt: skip
    assert content["about"] == "run.toml, hina_kohya.lycoris on sd15"
    assert content["dtype"] == "bfloat16"
    assert (content["tensors"], content["parameters"]) == (expected.tensors, expected.parameters)
    own, other = content["rows"]
    assert own["name"] == "HinaAdamW state=bf16 use_kronecker_rms=True"
    assert own["state_bytes"] == expected.state_bytes
    acting = {part["name"]: part["tensors"] for part in own["parts"] if part["tensors"]}
    assert {f"{name} on {count:,}" for name, count in acting.items()} == {*expected.techniques}
    assert other["name"] == "COptim8bit"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give either the file of a run or --shapes, such as --shapes sdxl-lora-r8"),
        (["run.toml", *LIST], "give either the file of a run or --shapes"),
        (["no_such.toml"], "there is no file no_such.toml; give the file of a run, or --shapes"),
        ([*LIST, "--optimizer", "HinaAdmW"], "there is no optimizer 'HinaAdmW'; did you mean HinaAdamW"),
        ([*LIST, "--optimizer", ""], "there is no name"),
        ([*LIST, "--optimizer", "HinaAdamW use_tamm=True"], "unknown argument 'use_tamm'; did you mean use_tam"),
        ([*LIST, "--optimizer", "HinaAdamW tam_beta=2"], "tam_beta = 2 is outside [0, 1); the default is 0.9"),
        ([*LIST, "--optimizer", "HinaAdamW use_tam"], "'use_tam' is not name=value; write use_tam=True"),
        ([*LIST, "--optimizer", "AdamW beta=1"], "optimizer_type AdamW refused beta=1"),
        ([*LIST, "--optimizer", "LBFGS"], "LBFGS cannot step here: TypeError"),
        (["--shapes", "640y8"], "'640y8' is neither a set nor a shape; write 640x8*200"),
        ([*LIST, "--trace", "steps.txt"], "--trace steps.txt must end with .json or .json.gz"),
        ([*LIST, "--device", "gpu"], "device 'gpu' is none; write cpu, cuda or cuda:1"),
        ([*LIST, "--device", "cuda:63"], "device 'cuda:63' is not there"),
        ([*LIST, "--device", "meta"], "device 'meta' cannot be measured here"),
        ([*LIST[:2], "--steps", "0"], "steps = 0 and warmup = 3 must be at least 1"),
        ([*LIST, "--threads", "0"], "--threads 0 must be at least 1"),
    ],
)
def test_what_is_wrong_is_one_line(words, message, capsys):
    code, text, error = run(words, capsys)
    assert (code, text) == (2, "")
    assert error.startswith("hina-kohya profile: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_files_that_are_no_run(capsys, tmp_path):
    datasets = tmp_path / "datasets.toml"
    datasets.write_text('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "x"\n', encoding="utf-8")
    assert "is a file of datasets; give the file of a run" in run([str(datasets)], capsys)[2]
    nothing = tmp_path / "nothing.toml"
    nothing.write_text("learning_rate = 1e-4\n", encoding="utf-8")
    assert "network_module is missing; name it, or give --shapes" in run([str(nothing)], capsys)[2]
    broken = tmp_path / "broken.toml"
    broken.write_text("learning_rate = \n", encoding="utf-8")
    code, _, error = run([str(broken)], capsys)
    assert code == 2
    assert error.count("\n") == 1


def test_the_trace_never_takes_the_place_of_the_run(capsys, tmp_path):
    file = tmp_path / "run.json"
    file.write_text("{}", encoding="utf-8")
    assert "is a folder or the file that is read" in run([str(file), "--trace", str(file)], capsys)[2]
    assert file.read_text() == "{}"


def test_errors_for_programs(capsys):
    code, text, _ = run(["--shapes", "640y8", "--format", "json"], capsys)
    assert (code, json.loads(text)["exit_code"]) == (2, 2)


def test_help_imports_no_torch_and_the_defaults_are_those_of_the_function(capsys, monkeypatch):
    with pytest.raises(SystemExit) as left:
        main(["profile", "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert f"(default {profiling.STEPS})" in text
    assert f"(default {profiling.WARMUP})" in text
    assert "sdxl-lokr-f8-full" in text
