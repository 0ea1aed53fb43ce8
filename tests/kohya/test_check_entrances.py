"""What a user may have: command lines, scripts of three shells, files of a GUI and of other programs, odd encodings."""

import json

import pytest

from hina_kohya.check import printing, report
from hina_kohya.check.finding import Level
from hina_kohya.check.reading import read
from hina_kohya.check.reading.source import Form
from hina_kohya.trainers.errors import UserError
from tests.support import places

WORDS = [
    "--network_module",
    "networks.lora",
    "--network_dim",
    "8",
    "--learning_rate",
    "1e-4",
    "--max_train_steps",
    "100",
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv("SD_SCRIPTS_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    places.make(tmp_path)
    return tmp_path


def whole(*more, model="sd15.safetensors"):
    given = ["--pretrained_model_name_or_path", model, "--train_data_dir", "data", "--caption_extension", ".txt"]
    return [*given, "--output_dir", "out", *WORDS, *more]


def levels(found):
    return {f"{each.level.value} {each.rule}" for each in found.findings if each.level is not Level.NOT_LOOKED_AT}


@pytest.mark.parametrize(
    "start",
    [
        ["accelerate", "launch", "--num_cpu_threads_per_process", "8", "train_network.py"],
        ["python", "train_network.py"],
        ["./sd-scripts/train_network.py"], ["C:\\venv\\Scripts\\accelerate.exe", "launch", "D:\\sd\\train_network.py"],
        ["uv", "run", "accelerate", "launch", "train_network.py"],
        ["python3.10", "-m", "accelerate.commands.launch", "train_network.py"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_command_line_is_checked_however_it_starts(folder, start):
    found = report.check([*start, *whole()])
    assert levels(found) == set()
    assert found.run is not None
    assert found.run.trainer.script == "train_network.py"


def test_one_refused_word_does_not_hide_the_rest(folder):
    found = report.check(
        [
            "accelerate",
            "launch",
            "train_network.py",
            *whole("--learning_rte", "1", "--seed", "x", "--lr_warmup_steps", "5"),
        ]
    )
    assert levels(found) == {"error unknown_key", "error command_line", "error warmup_refused"}


def test_a_command_line_over_a_toml(folder):
    (folder / "base.toml").write_text('network_dim = "8"\nlearning_rate = 1e-4\n')
    found = report.check(["train_network.py", "--config_file", "base", *whole()])
    assert levels(found) == set()  # the words win
    assert report.check(["train_network.py", "--config_file=base.toml", *whole()[:6]]).exit_code == 1


def test_started_by_our_launcher(folder):
    for start in (["hina-kohya", "launch"], ["accelerate", "launch", "-m", "hina_kohya.launch"]):
        found = report.check([*start, "train_network.py", *whole("--optimizer_type", "HinaAdamW")])
        assert found.run is not None
        assert found.run.hooks.installed
        assert levels(found) == set()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "a.sh",
            "X=sd15.safetensors\naccelerate launch train_network.py \\\n"
            "  --pretrained_model_name_or_path=$X {words} # end\n",
        ),
        (
            "a.bat",
            "set X=sd15.safetensors\r\naccelerate launch train_network.py ^\r\n"
            " --pretrained_model_name_or_path=%X% {words}\r\npause",
        ),
        (
            "a.ps1",
            '$X = "sd15.safetensors"\naccelerate launch "train_network.py" `\n'
            " --pretrained_model_name_or_path=$X {words}\n",
        ),
    ],
)
def test_scripts_of_three_shells(folder, name, text):
    words = " ".join(whole()[2:])
    (folder / name).write_text(text.replace("{words}", words))
    found = report.check(name)
    assert found.source.form is Form.SCRIPT
    assert levels(found) == set()
    assert found.source.values["pretrained_model_name_or_path"] == "sd15.safetensors"
    (folder / name).write_text(text.replace("{words}", f"{words} --network_dim many"))
    assert levels(report.check(name)) >= {"error command_line"}


def test_a_variable_that_only_running_would_tell_was_not_looked_at(folder):
    (folder / "a.sh").write_text(
        f"accelerate launch train_network.py {' '.join(whole()[2:])} --pretrained_model_name_or_path=$MODEL\n"
    )
    found = report.check("a.sh")
    assert levels(found) == set()
    assert "no findings in what was looked at" in printing.text(found)[-1]
    assert any("$MODEL" in line for line in printing.text(found))


def test_a_line_that_ends_too_early(folder):
    (folder / "a.sh").write_text(f"accelerate launch train_network.py \\ \n {' '.join(whole())}\n")
    assert any("ends in \\ and a space" in line for line in printing.text(report.check("a.sh")))


OF_OTHER_PROGRAMS = {
    "LoRA_Easy_Training_Scripts": (
        "a.toml",
        "[[subsets]]\nimage_dir = 'x'\n[general_args.args]\nseed = 1\n[network_args.args]\nnetwork_dim = 8\n",
    ),
    "a run and its datasets in one file": (
        "a.toml",
        "[general]\nkeep_tokens = 1\n[[datasets]]\nresolution = 512\n[training_arguments]\nlearning_rate = 1e-4\n",
    ),
    "OneTrainer": ("a.json", json.dumps({"training_method": "LORA", "concepts": [], "batch_size": 1})),
    "ai-toolkit": ("a.yaml", "job: extension\nconfig:\n  name: x\n"),
    "diffusion-pipe": ("a.toml", "output_dir = 'x'\n[model]\ntype = 'flux'\n[adapter]\ntype = 'lora'\n"),
    "SimpleTuner": ("a.json", json.dumps({"--data_backend_config": "x", "--model_family": "flux"})),
    "accelerate's own": ("a.yaml", "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\n"),
    "PEFT": ("adapter_config.json", json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x"})),
    "another tab than LoRA": ("a.json", json.dumps({"max_resolution": "512,512", "lr_warmup": 10})),
}  # fmt: skip


@pytest.mark.parametrize("program", OF_OTHER_PROGRAMS)
def test_files_of_other_programs_are_named_in_one_line(folder, program):
    name, text = OF_OTHER_PROGRAMS[program]
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=program) as error:
        read([name])
    assert "\n" not in str(error.value)


def test_lora_scripts_and_musubi_are_read(folder):
    (folder / "a.toml").write_text('model_train_type = "sdxl-lora"\nenable_preview = false\n')
    found = report.check("a.toml")
    assert found.run is not None
    assert found.run.trainer.script == "sdxl_train_network.py"
    assert [each.what for each in found.findings if each.level is Level.NOTE] == [
        "keys that lora-scripts writes for itself, and no trainer reads: model_train_type, enable_preview"
    ]
    (folder / "b.toml").write_text('dit = "x.safetensors"\n')
    assert report.check("b.toml").run.schema.trainer.name == "musubi-tuner"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            'seed = 1\nname = "ä"\n'.encode("utf-16"),
            "UTF-16, as PowerShell's > and Windows' Notepad may write it; save it as UTF-8",
        ),
        ("output_name = “x”\n".encode(), "word processor's; write plain ones"),
        (b'output_dir = "C:\\Users\\me"\n', "write paths in single quotes"),
        (b"name = 'caf\xe9'\n", "not UTF-8 [(]line 1[)]"),
    ],
)
def test_encodings_quotes_and_paths_in_words(folder, content, says):
    (folder / "a.toml").write_bytes(content)
    with pytest.raises(UserError, match=says):
        read(["a.toml"])


def test_the_models_file_tells_the_trainer(folder):
    base = 'train_data_dir = "data"\ncaption_extension = ".txt"\noutput_dir = "out"\n'
    base += 'network_module = "networks.lora"\nlearning_rate = 1e-4\n'
    (folder / "a.toml").write_text(
        f'{base}pretrained_model_name_or_path = "sdxl.safetensors"\ncache_text_encoder_outputs = false\n'
    )
    run = report.check("a.toml").run
    assert run is not None
    assert (run.trainer.script, run.trainer.why) == ("sdxl_train_network.py", "as the model's file says")
    found = report.check("a.toml", script="train_network.py")
    assert "error model_of_another_trainer" in levels(found)
    (folder / "a.toml").write_text(f'{base}pretrained_model_name_or_path = "unknown.safetensors"\n')
    (folder / "unknown.safetensors").touch()
    found = report.check("a.toml")
    assert [each.rule for each in found.findings if each.level is Level.NOT_LOOKED_AT] == ["trainer_unsure"]
    assert "--script" in printing.next_step(found, False)


def test_what_is_missing_here_has_its_own_exit_code(folder):
    found = report.check(["train_network.py", *whole("--xformers")])
    assert levels(found) == {"missing here option_needs_package"}
    assert found.exit_code == 3
    assert report.check(["train_network.py", *whole("--xformers", "--seed", "x")]).exit_code == 1


def test_a_dataset_class_and_a_foreign_network_were_not_looked_at(folder):
    found = report.check(
        ["train_network.py", *whole("--dataset_class", "my.data.Set", "--network_module", "my.network")]
    )
    assert {each.rule for each in found.findings if each.level is Level.NOT_LOOKED_AT} >= {
        "data_not_looked_at",
        "network_missing",
    }


def test_the_gui_leaves_zeros_out(folder):
    gui = {"LoRA_type": "Standard", "max_resolution": "512,512", "learning_rate": 1e-4, "text_encoder_lr": 0,
           "unet_lr": 1e-4,
           "pretrained_model_name_or_path": "sd15.safetensors", "train_data_dir": "data", "caption_extension": ".txt",
           "output_dir": "out",
           "network_dim": 8, "network_alpha": 1, "optimizer": "AdamW", "lr_scheduler": "constant", "lr_warmup": 0,
           "max_train_steps": 100, "max_grad_norm": 0,
           "additional_parameters": "--noise_offset 0.05 --seeed 1"}  # fmt: skip
    (folder / "a.json").write_text(json.dumps(gui))
    found = report.check("a.json")
    assert found.source.form is Form.KOHYA_SS
    assert found.source.values["network_train_unet_only"] is True
    assert found.source.values["noise_offset"] == 0.05
    assert levels(found) == {"error unknown_key", "warning zero_left_out"}


def test_what_only_the_shell_knows_is_no_mistake(folder):
    """Neither an option whose variable is not known, nor one that a variable may hold."""
    words = " ".join(whole()[2:]).replace("--learning_rate 1e-4", "--learning_rate=$LR").replace("--network_dim 8", "")
    text = f'accelerate launch train_network.py --pretrained_model_name_or_path="${{MODEL:-}}" {words} $MORE\n'
    (folder / "a.sh").write_text(text)
    found = report.check("a.sh")
    assert levels(found) == set()
    unseen = {each.key for each in found.findings if each.rule == "unseen"}
    assert unseen == {"--learning_rate $LR", "--pretrained_model_name_or_path $MODEL", "$MORE"}


def test_keys_that_ask_for_nothing_are_one_note(folder):
    (folder / "a.toml").write_text('ema_enabled = false\nnew_thing = ""\ndora_wd = false\n')
    notes = [each.what for each in report.check("a.toml").findings if each.level is Level.NOTE]
    assert notes == ["keys that ask for nothing, and no trainer reads: ema_enabled, new_thing, dora_wd"]
