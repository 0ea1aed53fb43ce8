"""The kinds of CHECK.md, each with its small inputs: what is said of them, and which line is printed."""

import subprocess
import sys

import pytest

from hina_kohya.check import printing, report
from hina_kohya.check.finding import Level
from hina_kohya.cli.check import main
from tests.support import places

BASE = {
    "pretrained_model_name_or_path": '"sd15.safetensors"', "train_data_dir": '"data"', "caption_extension": '".txt"',
    "output_dir": '"out"', "network_module": '"networks.lora"', "network_dim": "8", "learning_rate": "1e-4",
    "max_train_steps": "1000",
}  # fmt: skip
LYCORIS = 'network_module = "lycoris.kohya"\n'
LOKR = LYCORIS + 'network_args = ["algo=lokr", "preset=attn-mlp"]'
XL = 'pretrained_model_name_or_path = "sdxl.safetensors"\n'
UNKNOWN = 'pretrained_model_name_or_path = "unknown.safetensors"\n'
# script -> a model that it loads, and its network
FLOW_MATCHING = {
    "flux_train_network.py": (
        'network_module = "networks.lora_flux"\npretrained_model_name_or_path = "flux.safetensors"\n'
        'ae = "sd15.safetensors"\nclip_l = "sd15.safetensors"\nt5xxl = "sd15.safetensors"\n'
    ),
    "sd3_train_network.py": (
        f'network_module = "networks.lora_sd3"\n{UNKNOWN}'
        'clip_l = "sd15.safetensors"\nclip_g = "sd15.safetensors"\nt5xxl = "sd15.safetensors"\n'
    ),
    "lumina_train_network.py": (
        f'network_module = "networks.lora_lumina"\n{UNKNOWN}ae = "sd15.safetensors"\ngemma2 = "sd15.safetensors"\n'
    ),
    "anima_train_network.py": (
        f'network_module = "networks.lora_anima"\n{UNKNOWN}vae = "sd15.safetensors"\nqwen3 = "sd15.safetensors"\n'
    ),
    "hunyuan_image_train_network.py": (
        f'network_module = "networks.lora_hunyuan_image"\n{UNKNOWN}vae = "sd15.safetensors"\n'
        'text_encoder = "sd15.safetensors"\nbyt5 = "sd15.safetensors"\n'
    ),
}
FLUX, SD3 = FLOW_MATCHING["flux_train_network.py"], FLOW_MATCHING["sd3_train_network.py"]
OF_LOKR = ('network_module = "lycoris.kohya"', 'network_args = ["algo=lokr", "preset=attn-mlp"]')

DATASET = (
    '[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = "data/2_toy thing"\ncaption_extension = ".txt"\n'
)
DATASETS = {
    "colors.toml": "color_aug = true", "crops.toml": "random_crop = true",
    "masks.toml": 'conditioning_data_dir = "data/2_toy thing"',
}  # fmt: skip
OF_DATASET = "-train_data_dir\n-caption_extension\n"


def lycoris(*words):
    return f"{LYCORIS}network_args = {[*words]}"


@pytest.fixture
def check(tmp_path, monkeypatch):
    monkeypatch.delenv("SD_SCRIPTS_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    places.make(tmp_path)
    places.model(tmp_path / "flux.safetensors", "FLUX")
    for name in ("unknown", "sd_xl_base_1.0"):
        (tmp_path / f"{name}.safetensors").touch()
    for name, line in DATASETS.items():
        (tmp_path / name).write_text(f"{DATASET}{line}\n")

    def checked(lines, **how):
        """`-key` takes one of the base out."""
        keys = {line.partition(" =")[0].removeprefix("-") for line in lines.splitlines()}
        lines = "\n".join(line for line in lines.splitlines() if not line.startswith("-"))
        kept = [f"{key} = {value}" for key, value in BASE.items() if key not in keys]
        (tmp_path / "c.toml").write_text("\n".join([*kept, lines, ""]), encoding="utf-8")
        return report.check("c.toml", **how)

    return checked


def grave(found):
    return [each for each in found.findings if each.level in (Level.ERROR, Level.MISSING, Level.WARNING)]


# 1: which trainer
@pytest.mark.parametrize(
    ("lines", "script", "certain"),
    [
        (UNKNOWN + "cache_text_encoder_outputs = false", "train_network.py", False),
        ("cache_text_encoder_outputs = false", "train_network.py", True),
        ('pretrained_model_name_or_path = "stabilityai/stable-diffusion-xl-base-1.0"', "sdxl_train_network.py", True),
        ('pretrained_model_name_or_path = "sd_xl_base_1.0.safetensors"', "sdxl_train_network.py", True),
        (UNKNOWN + 'resolution = "1024,1024"', "sdxl_train_network.py", False),
        (UNKNOWN + "no_half_vae = true", "sdxl_train_network.py", False),
        (UNKNOWN + "sdxl = true", "sdxl_train_network.py", True),
        (UNKNOWN + 'model_train_type = "sdxl-lora"', "sdxl_train_network.py", True),
        (XL, "sdxl_train_network.py", True),
        ('pretrained_model_name_or_path = "flux.safetensors"', "flux_train_network.py", True),
    ],
)  # fmt: skip
def test_which_trainer(check, lines, script, certain):
    found = check(lines)
    assert (found.run.trainer.script, found.run.trainer.certain) == (script, certain)
    unsure = [each for each in found.findings if each.rule == "trainer_unsure"]
    assert bool(unsure) is not certain
    assert ("accelerate launch" in printing.next_step(found, False)) is certain


# 2: files that GUIs write and that train, and 3: falsy values of options that are unset or falsy
@pytest.mark.parametrize(
    "lines",
    [
        'dynamo_backend = "no"', 'dynamo_backend = "inductor"', 'noise_offset_type = "Original"',
        'lr_scheduler = "cosine"\nlr_warmup_steps = 0.1',
        "network_args = []\noptimizer_args = []\nlr_scheduler_args = []\nbase_weights = []", "resume = false",
        "persistent_data_loader_workers = 0", "gradient_checkpointing = 1", "max_token_length = 75", "epoch = 1",
        "sdxl = false", "persistent_data_loader_workers = 0\nmax_data_loader_n_workers = 0", 'resume = ""',
        'noise_offset_type = "Multires"\nmultires_noise_discount = 0.3', 'network_module = "networks.lokr"',
        lycoris("algo=lokr", "preset=attn-mlp", "rank_dropout_scale=False"), "bucket_reso_steps = 32",
        'optimizer_type = "Adafactor"\noptimizer_args = ["relative_step=False", "warmup_init=True"]', "clip_skip = 1",
    ],
)  # fmt: skip
def test_what_trains_has_no_error_and_no_warning(check, lines):
    assert grave(check(lines)) == []
    assert check(lines).exit_code == 0


# 3: the line that is right
@pytest.mark.parametrize(
    ("lines", "steps"),
    [
        ("weight_decay = 0.1", ["optimizer_args = [\"weight_decay=0.1\"]", "weight_decay"]),
        ("batch_size = 4", ["train_batch_size = 4", "batch_size"]),
        ('betas = "(0.9, 0.99)"', ['optimizer_args = ["betas=(0.9, 0.99)"]', "betas"]),
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
            lycoris("algo=lokr", "preset=attn-mlp", "use_dora=True"),
            ['network_args = ["algo=lokr", "preset=attn-mlp", "dora_wd=True", "wd_on_output=false"]'],
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


# 3: no line where none is right: of an option that nothing here reads
@pytest.mark.parametrize("lines", ["use_alora = true", "use_dora = true", "factor = 8"])
def test_no_line_is_printed_where_none_is_right(check, lines):
    found = check(lines)
    assert [each.rule for each in grave(found)] == ["unknown_key"]
    assert found.remedies == ()


# 4: silence, and the trainer stops
@pytest.mark.parametrize(
    ("lines", "rule"),
    [
        ('lr_scheduler_type = "NoSuchLR"', "schedule_refuses"), ('lr_scheduler_type = "..."', "schedule_refuses"),
        ('lr_scheduler_type = "OneCycleLR"', "schedule_refuses"),
        ('lr_scheduler_type = "OneCycleLR"\nlr_scheduler_args = ["max_lr=1e-4"]', "schedule_refuses"),
        ('lr_scheduler_type = "CyclicLR"', "schedule_refuses"),
        (
            'lr_scheduler_type = "CyclicLR"\nlr_scheduler_args = ["base_lr=1e-5", "max_lr=1e-4"]\n'
            'optimizer_type = "Adafactor"\noptimizer_args = ["relative_step=False"]', "schedule_refuses",
        ),
        ("enable_bucket = true\nbucket_reso_steps = 32", "bucket_steps"),
        ("cache_latents = true\ncolor_aug = true", "augmented_latents"),
        (OF_DATASET + 'cache_latents = true\ndataset_config = "colors.toml"', "augmented_latents"),
        (OF_DATASET + 'cache_latents = true\ndataset_config = "crops.toml"', "augmented_latents"),
        (OF_DATASET + 'dataset_config = "masks.toml"', "conditioning_without_mask"),
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


def test_a_schedule_that_fits_is_silent(check):
    words = 'lr_scheduler_args = ["base_lr=1e-5", "max_lr=1e-4"]'
    assert grave(check(f'lr_scheduler_type = "CyclicLR"\n{words}')) == []
    words = 'lr_scheduler_args = ["max_lr=1e-4", "total_steps=1000"]'
    assert grave(check(f'lr_scheduler_type = "OneCycleLR"\n{words}')) == []


# 5: silence, and nothing is trained
@pytest.mark.parametrize(
    ("lines", "rule"),
    [
        ("max_train_epochs = 0", "too_low"), ('network_args = ["module_dropout=1.0"]', "everything_dropped"),
        (lycoris("algo=lokr", "preset=attn-mlp", "module_dropout=1.0"), "everything_dropped"),
        ("network_dim = 0", "too_low"), ('network_module = "networks.lora_sd3"', "network_of_another_model"),
    ],
)  # fmt: skip
def test_what_trains_nothing_is_found(check, lines, rule):
    found = check(lines, script="train_network.py")
    assert [each.rule for each in grave(found)] == [rule]
    assert found.exit_code == 1


@pytest.mark.parametrize(
    ("script", "lines", "rule"),
    [
        ("sd3_train_network.py", SD3.replace("lora_sd3", "lora"), "error network_of_another_model"),
        (
            "sdxl_train_network.py", XL + 'network_train_unet_only = true\nnetwork_module = "networks.lora_flux"',
            "error network_of_another_model",
        ),
        ("sdxl_train_network.py", XL + 'network_module = "networks.lora_flux"', "warning network_of_another_model"),
        ("train_network.py", "-caption_extension", "warning captions_not_found"),
        ("train_network.py", "-learning_rate", "warning lr_left_out"),
        (
            "train_network.py", lycoris("algo=locon", "preset=attn-mlp", "dora_wd=True", "bypass_mode=True"),
            "warning dora_bypassed",
        ),
    ],
)  # fmt: skip
def test_what_trains_less_than_meant_is_found(check, script, lines, rule):
    """The text encoders of SDXL are trained by lora_flux all the same, so that is no error."""
    assert [f"{each.level.value} {each.rule}" for each in grave(check(lines, script=script))] == [rule]


@pytest.mark.slow
@pytest.mark.usefixtures("forked_python")
def test_an_optimizer_that_moves_nothing(check, tmp_path, monkeypatch):
    """As ProdigyPlusScheduleFree with fused_back_pass, which steps inside the backward pass only."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "fusedopt.py").write_text(
        "import torch\nclass Fused(torch.optim.SGD):\n"
        "    def __init__(self, params, lr=1.0, fused_back_pass=False):\n"
        "        super().__init__(params, lr)\n        self.fused = fused_back_pass\n"
        "    def step(self, closure=None):\n        return None if self.fused else super().step(closure)\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    from hina_kohya.check.process import SHARED

    SHARED.close()
    found = check('optimizer_type = "fusedopt.Fused"\noptimizer_args = ["fused_back_pass=True"]')
    assert [each.rule for each in grave(found)] == ["optimizer_stands_still"]
    assert grave(check('optimizer_type = "fusedopt.Fused"')) == []
    SHARED.close()


# 6: silence, and an option is never read
OF_NOISE = (
    "noise_offset = 0.05", "multires_noise_iterations = 6", "min_snr_gamma = 5", "debiased_estimation_loss = true",
    "v_pred_like_loss = 0.1", "zero_terminal_snr = true", "clip_skip = 2",
)  # fmt: skip


@pytest.mark.parametrize("line", OF_NOISE)
@pytest.mark.parametrize("script", FLOW_MATCHING)
def test_flow_matching_trainers_read_no_option_of_noise(check, script, line):
    found = check(FLOW_MATCHING[script] + line, script=script)
    key = line.partition(" =")[0]
    assert [(each.rule, each.key) for each in grave(found)] == [("option_never_read", key)]
    assert [line for remedy in found.remedies for _, line in remedy.steps] == [key]


@pytest.mark.parametrize("script", FLOW_MATCHING)
def test_what_flow_matching_trainers_read_is_silent(check, script):
    assert grave(check(FLOW_MATCHING[script] + "seed = 1\nclip_skip = 1", script=script)) == []
    gamma = grave(check(FLOW_MATCHING[script] + "ip_noise_gamma = 0.1", script=script))
    assert [each.rule for each in gamma] == ["option_never_read"] * (script == "sd3_train_network.py")


@pytest.mark.parametrize(
    ("lines", "rule"),
    [
        (XL + "clip_skip = 2", "option_never_read"), ("clip_skip = 2", ""),
        ("multires_noise_discount = 0.2", "read_with_another_only"), ("multires_noise_discount = 0.3", ""),
        ("multires_noise_iterations = 6\nmultires_noise_discount = 0.2", ""),
        ("noise_offset_random_strength = true", "read_with_another_only"),
        ("ip_noise_gamma_random_strength = true", "read_with_another_only"),
        ("ip_noise_gamma = 0.1\nip_noise_gamma_random_strength = true", ""),
        ("zero_terminal_snr = true", "snr_without_v_prediction"),
        ("zero_terminal_snr = true\nv2 = true\nv_parameterization = true", ""),
        *(
            (f'lr_scheduler = "{name}"\nlr_decay_steps = 100', "schedule_option_unread")
            for name in ("constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "constant_with_warmup")
        ),
        ('lr_scheduler = "warmup_stable_decay"\nlr_decay_steps = 100', ""),
        *(
            (lycoris(f"algo={name}", "preset=attn-mlp", *words) + more, "" if words else "dropout_without_effect")
            for name in ("lokr", "loha", "locon", "lora")
            for words, more in (((), "\nnetwork_dropout = 0.1"), (("bypass_mode=True",), "\nnetwork_dropout = 0.1"))
        ),
        (lycoris("algo=lokr", "preset=attn-mlp", "dropout=0.1"), "dropout_without_effect"),
        (lycoris("algo=lokr", "preset=attn-mlp", "dropout=0"), ""),
        ("network_dropout = 0.1", ""),
        *(
            (lycoris(f"algo={name}", "preset=attn-mlp") + "\nscale_weight_norms = 1.0", "norms_not_scaled")
            for name in ("full", "ia3", "glora", "dylora", "tlora")
        ),
        (
            'network_module = "hina_kohya.adlrns"\nnetwork_args = ["preset=attn-mlp"]\nscale_weight_norms = 1.0',
            "norms_not_scaled",
        ),
        *(
            (lycoris(f"algo={name}", "preset=attn-mlp") + "\nscale_weight_norms = 1.0", "")
            for name in ("lora", "locon", "lokr", "loha")
        ),
    ],
)  # fmt: skip
def test_an_option_that_is_never_read_is_found(check, lines, rule):
    found = check(lines)
    assert [f"{each.level.value} {each.rule}" for each in grave(found)] == [f"warning {rule}"] * bool(rule)
    assert len(found.remedies) == bool(rule)


@pytest.mark.parametrize("name", ["lora", "lokr", "loha"])
def test_lycoris_drops_outputs_only_where_they_are_added(name):
    """What dropout_without_effect says, of LyCORIS itself."""
    import torch
    from lycoris.wrapper import network_module_dict

    for bypassed in (None, True):
        layer = torch.nn.Linear(16, 16)
        adapter = network_module_dict[name]("lora_unet_a", layer, 1.0, 4, 4, dropout=0.5, bypass_mode=bypassed)
        adapter.apply_to()
        for param in adapter.train().parameters():
            torch.nn.init.ones_(param)
        given = torch.rand(64, 16)
        assert torch.equal(layer(given), layer(given)) is not bypassed


# 7: known-broken combinations
@pytest.mark.parametrize(
    ("lines", "rule"),
    [
        (lycoris("algo=lokr", "preset=attn-mlp", "rank_dropout=0.1"), "warning rank_dropout_on_cuda"),
        (lycoris("algo=loha", "preset=attn-mlp", "rank_dropout=0.1"), "warning rank_dropout_on_cuda"),
        (lycoris("algo=locon", "preset=attn-mlp", "rank_dropout=0.1"), ""),
        (FLUX + 'network_args = ["split_qkv=True"]', "error flux_layers_split"),
        (FLUX + 'network_args = ["rank_dropout=0.1"]', ""),
        (SD3 + 'network_args = ["split_qkv=True", "rank_dropout=0.1"]', "error rank_dropout_of_split_layers"),
        (SD3 + 'network_args = ["split_qkv=True"]', ""),
    ],
)  # fmt: skip
def test_known_broken_combinations(check, lines, rule):
    found = check(lines)
    assert [f"{each.level.value} {each.rule}" for each in grave(found)] == [rule] * bool(rule)
    assert len(found.remedies) == bool(rule)


def test_two_broken_things_of_one_list_have_one_line(check):
    found = check(FLUX + 'network_args = ["split_qkv=True", "rank_dropout=0.1"]')
    assert [each.rule for each in grave(found)] == ["flux_layers_split", "rank_dropout_of_split_layers"]
    assert len([line for remedy in found.remedies for _, line in remedy.steps]) == 1


# 8: resume. The state that such a run writes, of rank 1
RESUMED = lycoris("algo=lora", "preset=attn-mlp").replace("'", '"') + '\nresume = "state"\nmax_train_steps = 1000\n'
WRITTEN = """
import json, sys
import torch
from safetensors.torch import save_file
from hina_kohya.check.forecast.network import Request, make
given = dict(architecture="sd15", network_module="lycoris.kohya", network_dim=1, network_alpha=1.0,
             network_args={"algo": "lora", "preset": "attn-mlp"}, learning_rate=1e-4, unet_lr=None,
             text_encoder_lr=None, train_unet=True, train_text_encoder=True, optimizer_type="AdamW",
             optimizer_args=[], sd_scripts=None, hooked=False, dtype="float32", resume=None)
made = make(Request(**given), lambda **said: None)
tensors = made.network.state_dict()
save_file({name: torch.zeros(tensor.shape) for name, tensor in tensors.items()}, "state/model.safetensors")
torch.save(torch.optim.AdamW(made.groups, 1e-4).state_dict(), "state/optimizer.bin")
torch.save({"base_lrs": [group["lr"] for group in made.groups], "last_epoch": 500}, "state/scheduler.bin")
json.dump({"current_epoch": 1, "current_step": 500}, open("state/train_state.json", "w"))
"""


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """Written in a process of its own, since LyCORIS keeps presets in classes."""
    folder = tmp_path_factory.mktemp("written")
    (folder / "state").mkdir()
    subprocess.run([sys.executable, "-c", WRITTEN], cwd=folder, check=True, capture_output=True)
    return folder / "state"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lines", "said", "code"),
    [
        ("network_dim = 1", "", 0),
        ("network_dim = 2", "error: resume: the state has other shapes", 1),
        (
            'network_dim = 1\nnetwork_args = ["algo=lokr", "preset=attn-mlp"]',
            "error: resume: the state is of another network", 1,
        ),
        ('network_dim = 1\noptimizer_type = "SGDNesterov"', "error: resume: the state is another optimizer's", 1),
        ("network_dim = 1\nlearning_rate = 5e-4", "warning: resume: the state's learning rates count", 0),
        ("network_dim = 1\nnetwork_train_unet_only = true", "error: resume: the state has param groups", 1),
        ("network_dim = 1\nmax_train_steps = 500", "500 steps are asked for, and the state of state is at 500", 1),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("forked_python")
def test_the_state_that_a_run_resumes_from_is_compared(check, state, tmp_path, capsys, lines, said, code):
    (tmp_path / "state").symlink_to(state, target_is_directory=True)
    keys = {line.partition(" =")[0] for line in lines.splitlines()}
    check("\n".join([*(line for line in RESUMED.splitlines() if line.partition(" =")[0] not in keys), lines]))
    assert main(["c.toml"]) == code
    printed = capsys.readouterr().out
    assert said in printed
    assert ("resume: " in printed) is said.startswith(("error: resume", "warning: resume"))


# 10: what sd-scripts does with an optimizer's name
def test_nesterov_is_the_trainers_own(check):
    found = check('optimizer_type = "SGDNesterov"\noptimizer_args = ["nesterov=False"]')
    assert [each.rule for each in grave(found)] == ["optimizer_refuses"]


@pytest.mark.parametrize(
    "words",
    ['"relative_step=False", "warmup_init=True"', '"relative_step=True"', '"relative_step=True", "warmup_init=True"'],
)
def test_adafactor_is_corrected_by_the_trainer(check, words):
    assert grave(check(f'optimizer_type = "Adafactor"\noptimizer_args = [{words}]')) == []


# 11: only classes of optimizers and of schedules are made
@pytest.mark.parametrize("path", ["os.system", "builtins.print", "pathlib.Path.cwd", "."])
def test_nothing_else_is_called(check, path):
    (finding,) = grave(check(f'optimizer_type = "{path}"'))
    assert finding.rule == "optimizer_unknown"
    assert "stops" not in finding.what


@pytest.mark.parametrize("path", ["os.system", "subprocess.run", "torch.optim.AdamW", "random.seed"])
def test_no_function_is_called_for_a_schedule(check, path):
    found = check(f'lr_scheduler_type = "{path}"')
    assert grave(found) == []
    (finding,) = [each for each in found.findings if each.rule == "schedule_refuses"]
    assert finding.level is Level.NOT_LOOKED_AT
    assert "it was not called" in finding.what


@pytest.mark.parametrize(
    ("lines", "rule"),
    [
        ("max_train_steps = inf", "wrong_type"), ("max_train_epochs = inf", "wrong_type"),
        ("save_every_n_steps = inf", "wrong_type"), ('lr_scheduler = "cosine"\nlr_warmup_steps = inf', "not_finite"),
        ('lr_scheduler = "cosine"\nlr_warmup_steps = nan', "not_finite"), ("learning_rate = nan", "not_finite"),
        ('output_dir = "C:\\new\\train"', "control_characters"),
    ],
)  # fmt: skip
def test_numbers_that_are_none_and_paths_that_are_none(check, lines, rule):
    assert [each.rule for each in grave(check(lines))] == [rule]


@pytest.mark.slow
@pytest.mark.usefixtures("forked_python")
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


# 12: time
@pytest.mark.slow
@pytest.mark.parametrize("config", ["network_dim = 0", "seed = 1", LOKR])
def test_without_a_rehearsal_torch_is_not_imported_and_little_time_passes(check, config):
    """CPU seconds of the whole command, Python's own start among them."""
    check(config)  # writes the file
    code = (
        "import resource, sys, time\nfrom hina_kohya.cli.check import main\nmain(['c.toml', '--no-forecast'])\n"
        "assert time.process_time() < 3, time.process_time()\nassert 'torch' not in sys.modules\n"
        "assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime < 0.5\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "c.toml for train_network.py" in done.stdout
