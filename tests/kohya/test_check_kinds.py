"""The kinds of CHECK.md, each with its small inputs: what is said of them, and which line is printed."""

import pytest

from hina_kohya.check import report
from hina_kohya.check.finding import Level
from tests.kohya import places

BASE = {
    "pretrained_model_name_or_path": '"sd15.safetensors"', "train_data_dir": '"data"', "caption_extension": '".txt"',
    "output_dir": '"out"', "network_module": '"networks.lora"', "network_dim": "8", "learning_rate": "1e-4",
    "max_train_steps": "1000",
}  # fmt: skip
LYCORIS = 'network_module = "lycoris.kohya"\n'
LOKR = LYCORIS + 'network_args = ["algo=lokr", "preset=attn-mlp"]'
OF_LOKR = ('network_module = "lycoris.kohya"', 'network_args = ["algo=lokr", "preset=attn-mlp"]')


@pytest.fixture
def check(tmp_path, monkeypatch):
    monkeypatch.delenv("SD_SCRIPTS_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    places.make(tmp_path)

    def checked(lines, **how):
        keys = {line.partition(" =")[0] for line in lines.splitlines()}
        kept = [f"{key} = {value}" for key, value in BASE.items() if key not in keys]
        (tmp_path / "c.toml").write_text("\n".join([*kept, lines, ""]), encoding="utf-8")
        return report.check("c.toml", **how)

    return checked


def grave(found):
    return [each for each in found.findings if each.level in (Level.ERROR, Level.MISSING, Level.WARNING)]


# 2: files that GUIs write and that train, and 3: falsy values of options that are unset or falsy
@pytest.mark.parametrize(
    "lines",
    [
        'dynamo_backend = "no"', 'noise_offset_type = "Original"', 'lr_scheduler = "cosine"\nlr_warmup_steps = 0.1',
        "network_args = []\noptimizer_args = []\nlr_scheduler_args = []\nbase_weights = []", "resume = false",
        "persistent_data_loader_workers = 0", "gradient_checkpointing = 1", "max_token_length = 75", "epoch = 1",
        "sdxl = false",
        'optimizer_type = "Adafactor"\noptimizer_args = ["relative_step=False", "warmup_init=True"]', "clip_skip = 1",
    ],
)  # fmt: skip
def test_what_trains_has_no_error_and_no_warning(check, lines):
    assert grave(check(lines)) == []


# 3: the line that is right
@pytest.mark.parametrize(
    ("lines", "steps"),
    [
        ("weight_decay = 0.1", ["optimizer_args = [\"weight_decay=0.1\"]", "weight_decay"]),
        ("batch_size = 4", ["train_batch_size = 4", "batch_size"]),
        ("betas = [0.9, 0.99]", ['optimizer_args = ["betas=[0.9, 0.99]"]', "betas"]),
        ("conv_dim = 8", ['network_args = ["conv_dim=8"]', "conv_dim"]),
        (f"{LOKR}\nfactor = 8", ['network_args = ["algo=lokr", "preset=attn-mlp", "factor=8"]', "factor"]),
        ('lora_type = "lokr"', [*OF_LOKR, "lora_type"]),
        ('algo = "lokr"', [*OF_LOKR, "algo"]),
        (
            LYCORIS + 'network_args = ["algo=locon", "preset=attn-mlp", "use_dora=True"]',
            ['network_args = ["algo=locon", "preset=attn-mlp", "dora_wd=True"]'],
        ),
        (
            LYCORIS + 'network_args = ["algo=locon", "preset=attn-mlp", "rank_dropout_scale=True"]',
            ['network_args = ["algo=locon", "preset=attn-mlp"]'],
        ),
        ('max_timestep = ""', ["max_timestep"]),
        (
            "text_encoder_lr1 = 1e-5\ntext_encoder_lr2 = 2e-5",
            ["text_encoder_lr = [1e-05, 2e-05]", "text_encoder_lr1", "text_encoder_lr2"],
        ),
        (
            'network_module = "hina_kohya.lycoris"\nnetwork_args = ["algo=lokr", "preset=attn-mlp"]\n'
            'optimizer_type = "HinaAdamW"\nuse_alora = true',
            ['optimizer_args = ["use_alora=True"]', "use_alora"],
        ),
        (
            'optimizer_args = ["weight_decay=0.1,", "amsgrad=true"]',
            ['optimizer_args = ["weight_decay=0.1", "amsgrad=True"]'],
        ),
    ],
)  # fmt: skip
def test_the_line_is_the_one_that_is_right(check, lines, steps):
    found = check(lines)
    assert [line for remedy in found.remedies for _, line in remedy.steps] == steps


# 4: silence, and the trainer stops
@pytest.mark.parametrize(
    ("lines", "rule"),
    [
        ('lr_scheduler_type = "NoSuchLR"', "schedule_refuses"), ('lr_scheduler_type = "OneCycleLR"',
         "schedule_refuses"),
        ('lr_scheduler = "cosine"\nlr_scheduler_args = ["min_lr=1e-6"]', "schedule_refuses"),
        ('log_tracker_config = "gone.toml"', "path_missing"), ("xformers = true", "option_needs_package"),
        ('log_with = "wandb"', "option_needs_package"), ('network_weights = ""', "empty_text"),
        ('network_module = "network.lora"', "network_missing"),
    ],
)  # fmt: skip
def test_what_stops_is_found(check, lines, rule):
    found = check(lines)
    assert [each.rule for each in grave(found)] == [rule]
    assert found.exit_code in (1, 3)


# 5: silence, and nothing is trained
@pytest.mark.parametrize(
    ("lines", "rule"),
    [
        ("max_train_epochs = 0", "too_low"), ('network_args = ["module_dropout=1.0"]', "everything_dropped"),
        ("network_dim = 0", "too_low"), ('network_module = "networks.lora_sd3"', "network_of_another_model"),
    ],
)  # fmt: skip
def test_what_trains_nothing_is_found(check, lines, rule):
    found = check(lines, script="train_network.py")
    assert [each.rule for each in grave(found)] == [rule]
    assert found.exit_code == 1


# 10: what sd-scripts does with an optimizer's name
def test_nesterov_is_the_trainers_own(check):
    found = check('optimizer_type = "SGDNesterov"\noptimizer_args = ["nesterov=False"]')
    assert [each.rule for each in grave(found)] == ["optimizer_refuses"]


# 11: only classes of optimizers are made
@pytest.mark.parametrize("path", ["os.system", "builtins.print", "pathlib.Path.cwd", "."])
def test_nothing_else_is_called(check, path):
    (finding,) = grave(check(f'optimizer_type = "{path}"'))
    assert finding.rule == "optimizer_unknown"
    assert "stops" not in finding.what


def test_an_optimizer_that_ends_its_process_was_not_looked_at(check, tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "endingopt.py").write_text(
        "import os, torch\nclass Ending(torch.optim.SGD):\n    def step(self, closure=None):\n        os._exit(3)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    from hina_kohya.check.process import SHARED

    SHARED.close()
    found = check('optimizer_type = "endingopt.Ending"')
    assert [each.what for each in found.findings if each.rule == "optimizer_refuses"] == [
        "endingopt.Ending ended the process in which it was tried (exit code 3)"
    ]
    assert grave(check('optimizer_type = "torch.optim.RMSprop"')) == []  # it was started again
    SHARED.close()
