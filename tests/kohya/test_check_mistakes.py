"""Planted mistakes: each is found by its rule, and nothing else is."""

import re
from importlib.metadata import EntryPoint

import pytest

from hina_kohya.check import report
from hina_kohya.check.finding import Level
from hina_kohya.check.rules import combinations, optimizer_names, packages, rules
from hina_kohya.check.run import How
from hina_kohya.trainers import optimizer_names as registered_names
from tests.support.mending import assert_mends, typed

BASE = """
pretrained_model_name_or_path = "model.safetensors"
train_data_dir = "data"
resolution = "512,512"
output_dir = "output"
network_module = "networks.lora"
network_dim = 8
optimizer_type = "AdamW"
learning_rate = 1e-4
max_train_steps = 1000
mixed_precision = "bf16"
"""
LYCORIS = 'network_module = "lycoris.kohya"\n'
LOKR = LYCORIS + 'network_args = ["algo=lokr", "preset=attn-mlp"]\n'
DIM_FROM_WEIGHTS = "dim_from_weights = true\nnetwork_weights = 'model.safetensors'"
HINA = LOKR.replace("lycoris.kohya", "hina_kohya.lycoris") + 'optimizer_type = "HinaAdamW"\n'
ADLRNS = 'network_module = "hina_kohya.adlrns"\n'
KEEP_BEST = 'network_args = ["algo=lokr", "preset=attn-mlp", "keep_best=true"]\n'
UNET_ONLY = "network_train_unet_only = true\n"

# what is planted -> the rule that finds it, and the key that it names
MISTAKES = {
    # keys
    "learning_rte = 1e-4": "unknown_key learning_rte",
    "network-dim = 16": "unknown_key network-dim",
    "cache_text_encoder_outputs = true": "unknown_key cache_text_encoder_outputs",
    "[[datasets]]\nbatch_size = 2": "unknown_key datasets",
    "[optimizer_args]\nweight_decay = 0.1": "unknown_key weight_decay",
    "[one]\nseed = 1\n[two]\nseed = 2": "repeated_key seed",
    # types
    'learning_rate = "1e-4"': "wrong_type learning_rate",
    "network_dim = 8.0": "wrong_type network_dim",
    'gradient_checkpointing = "false"': "wrong_type gradient_checkpointing",
    "resolution = 512": "wrong_type resolution",
    'optimizer_args = "weight_decay=0.1"': "wrong_type optimizer_args",
    'network_args = "conv_dim=4"': "wrong_type network_args",
    'text_encoder_lr = ["1e-5"]': "wrong_type text_encoder_lr",
    "validation_split = 0": "strict_type validation_split",
    'mixed_precision = "bfloat16"': "outside_choices mixed_precision",
    'save_model_as = "safetensor"': "outside_choices save_model_as",
    'lr_scheduler = "cosine"\nlr_warmup_steps = 100.0': "steps_as_fraction lr_warmup_steps",
    # schedules
    'lr_scheduler = "cosin"': "scheduler_unknown lr_scheduler",
    'lr_scheduler = "reduce_lr_on_plateau"': "scheduler_unknown lr_scheduler",
    'lr_scheduler = "adafactor:1e-4"': "scheduler_unknown lr_scheduler",
    "lr_warmup_steps = 10": "warmup_refused lr_warmup_steps",
    'optimizer_type = "Adafactor"\nlr_scheduler = "cosine"\nlr_warmup_steps = 10': "warmup_refused lr_warmup_steps",
    'lr_scheduler = "cosine_with_min_lr"': "lowest_lr_missing lr_scheduler_min_lr_ratio",
    'lr_scheduler = "cosine"\nlr_warmup_steps = 1000': "warmup_longer_than_run lr_warmup_steps",
    'optimizer_type = "AdamWScheduleFree"\nlr_scheduler = "cosine"': "schedule_ignored lr_scheduler",
    'lr_scheduler = "cosine"\nlr_scheduler_args = ["mode=fast"]': "schedule_argument_refused lr_scheduler_args",
    # learning rates
    "learning_rate = 0.0": "nothing_is_trained learning_rate",
    "network_train_unet_only = true\nunet_lr = 0.0": "nothing_is_trained unet_lr",
    "network_train_unet_only = true\nnetwork_train_text_encoder_only = true": (
        "nothing_is_trained network_train_unet_only"
    ),
    "network_train_unet_only = true\ntext_encoder_lr = [1e-5]": "text_encoder_lr_ignored text_encoder_lr",
    "network_train_text_encoder_only = true\nunet_lr = 1e-5": "unet_lr_ignored unet_lr",
    LOKR + "text_encoder_lr = [1e-4, 1e-5]": "second_lr_ignored text_encoder_lr",
    'optimizer_type = "Prodigy"\nlearning_rate = 1.0\nnetwork_args = ["loraplus_lr_ratio=16"]': (
        "one_lr_only network_args"
    ),
    'optimizer_type = "DAdaptAdam"\nlearning_rate = 1.0\ntext_encoder_lr = 0.5': "one_lr_only text_encoder_lr",
    'optimizer_type = "Prodigy"': "lr_near_one learning_rate",
    'optimizer_type = "hina_kohya.HinaAdamW"\nnetwork_dim = 32': "alpha_far_below_rank network_alpha",
    'network_module = "hina_kohya.lycoris"\nnetwork_args = ["algo=lora", "preset=attn-mlp"]\n'
    'optimizer_type = "HinaAdamW"\nnetwork_dim = 32': "alpha_far_below_rank network_alpha",
    'optimizer_type = "hina_kohya.HinaAuto"': "lr_near_one learning_rate",
    'optimizer_type = "hina_kohya.HinaAdamW"\nlearning_rate = 1.0': "lr_of_prodigy learning_rate",
    'optimizer_type = "Adafactor"\nunet_lr = 1e-4': "adafactor_ignores_lr unet_lr",
    # options that exclude each other
    'full_bf16 = true\nmixed_precision = "fp16"': "full_bf16_alone mixed_precision",
    "full_fp16 = true": "full_fp16_alone mixed_precision",
    'fp8_base = true\nmixed_precision = "no"': "fp8_without_mixed_precision mixed_precision",
    "fused_backward_pass = true": "fused_backward_pass fused_backward_pass",
    "use_8bit_adam = true": "old_optimizer_flag use_8bit_adam",
    "cache_latents = true\nrandom_crop = true": "augmented_latents cache_latents",
    'enable_bucket = true\nresolution = "64"': "bucket_range min_bucket_reso",
    'enable_bucket = true\nresolution = "1024,768"\nmax_bucket_reso = 768': "bucket_range max_bucket_reso",
    "adaptive_noise_scale = 0.1": "adaptive_noise adaptive_noise_scale",
    'log_with = "tensorboard"': "log_without_folder logging_dir",
    "dim_from_weights = true": "dim_from_nothing dim_from_weights",
    "persistent_data_loader_workers = true\nmax_data_loader_n_workers = 0": (
        "workers_that_persist persistent_data_loader_workers"
    ),
    'optimizer_type = "Adafactor"\nfused_backward_pass = true\ngradient_accumulation_steps = 2': (
        "fused_with_accumulation gradient_accumulation_steps"
    ),
    "scale_v_pred_loss_like_noise_pred = true": "v_prediction_scale scale_v_pred_loss_like_noise_pred",
    "v_pred_like_loss = 0.1\nv_parameterization = true": "v_prediction_twice v_pred_like_loss",
    # what stops a run without a word, or trains nothing (CHECK.md, 4 and 5)
    'output_dir = "C:\\new\\train"': "control_characters output_dir",
    "max_train_epochs = 0": "too_low max_train_epochs",
    "save_every_n_epochs = 0": "too_low save_every_n_epochs",
    "learning_rate = inf": "not_finite learning_rate",
    'lr_scheduler = "cosine"\nlr_warmup_steps = -5': "warmup_negative lr_warmup_steps",
    'lr_scheduler = "cosine"\nlr_decay_steps = 100': "schedule_option_unread lr_decay_steps",
    'lr_scheduler_type = "CosineAnnealingWarmup"': "schedule_refuses lr_scheduler_type",
    'lr_scheduler_type = "OneCycleLR"': "schedule_refuses lr_scheduler_type",
    'lr_scheduler_type = "CyclicLR"': "schedule_refuses lr_scheduler_type",
    'lr_scheduler = "cosine"\nlr_scheduler_args = ["eta_min=1e-6"]': "schedule_refuses lr_scheduler_args",
    "-learning_rate": "lr_left_out learning_rate",
    "enable_bucket = true\nbucket_reso_steps = 32": "bucket_steps bucket_reso_steps",
    'caption_extension = ".tags"': "captions_not_found caption_extension",
    'train_data_dir = "bare"': "no_images train_data_dir",
    'dataset_config = "masks.toml"\n-train_data_dir': "conditioning_without_mask conditioning_data_dir",
    'dataset_config = "crops.toml"\ncache_latents = true\n-train_data_dir': "augmented_latents cache_latents",
    'network_weights = ""': "empty_text network_weights",
    'vae = ""': "empty_text vae",
    'max_timestep = ""': "wrong_type max_timestep",
    'optimizer_type = "prodigyplus.ProdigyPlusScheduleFree"\noptimizer_args = ["fused_back_pass=True"]': (
        "optimizer_stands_still optimizer_args"
    ),
    'optimizer_type = "os.system"': "optimizer_unknown optimizer_type",
    'optimizer_type = "."': "optimizer_unknown optimizer_type",
    'network_args = ["module_dropout=1.0"]': "everything_dropped network_args",
    'network_module = "networks.lora_flux"\nnetwork_args = ["split_qkv=True"]': (
        "network_of_another_model network_module; flux_layers_split network_args"
    ),
    'network_module = "networks.lora_sd3"\nnetwork_args = ["split_qkv=True", "rank_dropout=0.1"]': (
        "network_of_another_model network_module; rank_dropout_of_split_layers network_args"
    ),
    'network_module = "networks.lora_sd3"': "network_of_another_model network_module",
    'network_module = "network.lora"': "network_missing network_module",
    LYCORIS
    + 'network_args = ["algo=lokr", "preset=attn-mlp", "rank_dropout=0.1"]': "rank_dropout_on_cuda network_args",
    LYCORIS + 'network_args = ["algo=lora", "preset=attn-mlp", "dora_wd=True", "bypass_mode=True"]': (
        "dora_bypassed network_args"
    ),
    LOKR + "network_dropout = 0.1": "dropout_without_effect network_dropout",
    LYCORIS + 'network_args = ["algo=full", "preset=attn-mlp"]\nscale_weight_norms = 1.0': (
        "norms_not_scaled scale_weight_norms"
    ),
    "multires_noise_discount = 0.2": "read_with_another_only multires_noise_discount",
    "zero_terminal_snr = true": "snr_without_v_prediction zero_terminal_snr",
    'optimizer_type = "SGDNesterov8bit"': "no_nesterov_in_8_bits optimizer_type",
    # what is needed
    "-output_dir": "missing output_dir",
    "-train_data_dir": "missing train_data_dir",
    "-network_dim": "rank_missing network_dim",
    # optimizers
    'optimizer_type = "HinaAdamW"': "hooks_needed optimizer_type",
    'optimizer_type = "adam"': "optimizer_unknown optimizer_type",
    'optimizer_type = "AdEMAMix8bit"': "optimizer_unknown optimizer_type",
    'optimizer_type = "came_pytorch.Came"\nlr_scheduler = "constant_with_warmup"\nlr_warmup_steps = 10': (
        "optimizer_unknown optimizer_type"
    ),
    'optimizer_type = "adv_optm.Simplified_AdEMAMix"': "optimizer_unknown optimizer_type",
    'optimizer_type = "adv_optm.Lion_adv"': "optimizer_refuses optimizer_type",
    'optimizer_type = "pytorch_optimizer.Muon"': "optimizer_refuses optimizer_type",
    'optimizer_type = "LBFGS"': "optimizer_refuses optimizer_type",
    'optimizer_type = "SparseAdam"': "optimizer_refuses optimizer_type",
    'optimizer_args = ["weight_decy=0.1"]': "optimizer_refuses optimizer_args",
    'optimizer_args = ["weight_decay=-1"]': "optimizer_refuses optimizer_args",
    HINA + 'optimizer_args = ["use_catious=true"]': "optimizer_refuses optimizer_args",
    HINA + 'optimizer_args = ["tam_beta=2"]': "optimizer_refuses optimizer_args",
    HINA + 'optimizer_args = ["tam_beta=0.5"]': "argument_idle optimizer_args",
    HINA + 'optimizer_args = ["betas=(0.9, 0.99"]': "argument_refused optimizer_args",
    'optimizer_type = "hina_kohya.HinaAdamW"\noptimizer_args = ["use_tam=true"]': "argument_refused optimizer_args",
    'optimizer_args = ["weight_decay=1/3"]': "argument_refused optimizer_args",
    'optimizer_args = ["betas =(0.9, 0.99)"]': "argument_refused optimizer_args",
    'optimizer_args = ["weight_decay=0.5,"]': "tuple_by_comma optimizer_args",
    'optimizer_args = ["lr=1e-3"]': "lr_in_arguments optimizer_args",
    'optimizer_args = ["eps=1e-8", "eps=1e-7"]': "argument_twice optimizer_args",
    'optimizer_type = "dadaptation.DAdaptAdam"\nlearning_rate = 1.0': "dadaptation_path optimizer_type",
    'optimizer_type = "pytorch_optimizer.ScheduleFreeAdamW"': "never_in_eval_mode optimizer_type",
    'optimizer_type = "came_pytorch.CAME"': "came_without_warmup lr_warmup_steps",
    LOKR + 'optimizer_type = "AdamW8bit"': "eight_bit_on_lokr optimizer_type",
    'optimizer_type = "adv_optm.AdamW_adv"\noptimizer_args = ["state_precision=\'int8_sr\'"]\nsave_state = true': (
        "state_is_corrupted optimizer_args"
    ),
    'full_bf16 = true\noptimizer_args = ["weight_decay=0.1"]': "decay_rounded_away full_bf16",
    HINA + "deepspeed = true": "shapes_behind_deepspeed deepspeed",
    # networks
    'network_args = ["conv_dim"]': "network_word network_args",
    'network_args = ["con_dim=4"]': "network_argument_unread network_args",
    'network_args = ["conv_dim=4", "conv_dim=8"]': "network_argument_twice network_args",
    'network_args = ["network_dim=16"]': "network_argument_taken network_args",
    'network_args = ["wd_exclude=*_te_*"]': "hooks_needed_by_network network_args",
    'network_module = "networks.oft"\nnetwork_args = ["loraplus_lr_ratio=4"]': "hooks_needed_by_network network_args",
    HINA + 'network_args = ["algo=lokr", "preset=attn-mlp", "wd_roles=lokr_w3"]': "hina_option_refused network_args",
    HINA + 'network_args = ["algo=lokr", "preset=attn-mlp", "weight_decay=much"]': "hina_option_refused network_args",
    'network_module = "hina_kohya.network"': "network_missing network_args",
    'network_module = "networks.lorra"': "network_missing network_module",
    LYCORIS
    + 'network_args = ["algo=lokr", "preset=attn-mlp", "loraplus_lr_ratio=16"]': "loraplus_without_effect network_args",
    LYCORIS + 'network_args = ["algo=lokrr", "preset=attn-mlp"]': "algorithm_unknown network_args",
    LYCORIS + 'network_args = ["algo=lokr", "preset=atn-mlp"]': "preset_unknown network_args",
    LYCORIS + 'network_args = ["algo=lokr"]': "preset_fails_on_sd1 network_args",
    LOKR + DIM_FROM_WEIGHTS: "dim_from_weights_fails_on_sd1 dim_from_weights",
    LYCORIS
    + 'network_args = ["algo=loha", "preset=attn-mlp", "factor=8"]': "argument_of_another_algorithm network_args",
    LYCORIS + 'network_args = ["algo=lora", "preset=attn-mlp", "dora_wd=0"]': "switch_stays_on network_args",
    LYCORIS + 'network_args = ["algo=lokr", "preset=attn-mlp", "decompose_both=False"]': "switch_stays_on network_args",
    LYCORIS + 'network_args = ["algo=loha", "preset=attn-mlp", "dora_wd=True"]': "dora_on_output network_args",
    LYCORIS + 'network_args = ["algo=lora", "preset=attn-mlp", "conv_dim=8"]': "convolutions_left_out network_args",
    # adlrns
    LYCORIS + 'network_args = ["algo=adlrns", "preset=attn-mlp", "bins=4"]': "hooks_needed_by_network network_args",
    ADLRNS + 'network_args = ["preset=attn-mlp", "budgett=4"]': "network_argument_unread network_args",
    ADLRNS + 'network_args = ["preset=attn-mlp", "bins=0"]': "adlrns_refused network_args",
    ADLRNS + 'network_args = ["preset=attn-mlp", "budget=9"]': "adlrns_refused network_args",
    ADLRNS + 'network_args = ["preset=attn-mlp", "bins=6", "budget_unit=mJ"]': "adlrns_refused network_args",
    ADLRNS + 'network_args = ["preset=attn-mlp", "dora_wd=True"]': "adlrns_refused network_args",
    ADLRNS + 'network_args = ["preset=attn-mlp", "algo=lokr"]': "adlrns_refused network_args",
    ADLRNS + 'network_args = ["preset=attn-mlp", "warmup=1500"]': "adlrns_warmup_too_long network_args",
    ADLRNS
    + 'network_args = ["preset=attn-mlp", "bins=6", "refresh_every=1500"]': "adlrns_warmup_too_long network_args",
    ADLRNS + 'network_args = ["preset=attn-mlp", "refresh_every=20"]': "adlrns_refused network_args",
    ADLRNS + 'network_args = ["preset=attn-mlp", "bins=6", "budget=20MB"]': "adlrns_refused network_args",
    ADLRNS + 'network_args = ["preset=attn-mlp", "budget=20MB"]': "adlrns_budget_in_wide_values save_precision",
    ADLRNS + 'network_args = ["preset=attn-mlp", "factor=4"]': "argument_of_another_algorithm network_args",
    # files
    'pretrained_model_name_or_path = "modell.safetensors"': "model_not_found pretrained_model_name_or_path",
    'network_weights = "gone.safetensors"': "path_missing network_weights",
    'train_data_dir = "data/10_cats"': "folder_without_repeats train_data_dir",
    'output_dir = "model.safetensors/output"': "output_not_writable output_dir",
    'resume = "data"': "resume_missing resume",
    'resume = "state"\nmax_train_steps = 500': "resume_has_nothing_left max_train_steps",
    'dataset_config = "dataset.toml"': "dataset_ignores train_data_dir",
    # images that are held out
    HINA + KEEP_BEST: "nothing_held_out validation_split",
    HINA + KEEP_BEST + "validation_split = 0.1": "held_out_is_trained_on validation_seed",
    HINA + KEEP_BEST.replace("keep_best=true", "held_out=x.toml"): "holds_out_by_itself network_args",
    "validation_split = 0.1": "held_out_is_trained_on validation_seed",
    LOKR + KEEP_BEST: "hooks_needed_by_network network_args",
    HINA + KEEP_BEST.replace("true", "yes"): "hina_option_refused network_args",
}


# the same for other trainers
SD3_MODELS = 'clip_l = "model.safetensors"\nclip_g = "model.safetensors"\nt5xxl = "model.safetensors"'
OF_OTHER_TRAINERS = {
    ("sdxl_train_network.py", "cache_text_encoder_outputs = true"): "cached_text_in_training network_train_unet_only",
    ("sdxl_train_network.py", "v2 = true"): "v2_in_sdxl v2",
    (
        "sdxl_train_network.py",
        UNET_ONLY + "cache_text_encoder_outputs = true\nshuffle_caption = true",
    ): "cached_text_with_changing_captions cache_text_encoder_outputs",
    (
        "sd3_train_network.py",
        "blocks_to_swap = 4\ncpu_offload_checkpointing = true",
    ): "swapping_and_offloading cpu_offload_checkpointing",
    ("flux_train_network.py", 'ae = "model.safetensors"\nclip_l = "model.safetensors"'): "model_missing t5xxl",
    ("sdxl_train_network.py", "clip_skip = 2"): "option_never_read clip_skip",
    ("sd3_train_network.py", "noise_offset = 0.05\n" + SD3_MODELS): "option_never_read noise_offset",
}
WARNINGS = {
    "unknown_key", "steps_as_fraction", "switch_stays_on", "loraplus_without_effect", "schedule_option_unread",
    "lr_left_out", "captions_not_found", "rank_dropout_on_cuda", "dora_bypassed", "dropout_without_effect",
    "norms_not_scaled", "read_with_another_only", "snr_without_v_prediction", "no_nesterov_in_8_bits",
    "option_never_read",
    "repeated_key", "warmup_longer_than_run", "schedule_ignored", "text_encoder_lr_ignored",
    "unet_lr_ignored", "second_lr_ignored", "lr_near_one", "lr_of_prodigy", "adafactor_ignores_lr", "rank_missing",
    "argument_twice", "argument_idle", "never_in_eval_mode", "came_without_warmup", "eight_bit_on_lokr",
    "state_is_corrupted", "decay_rounded_away", "shapes_behind_deepspeed", "network_argument_twice",
    "argument_of_another_algorithm", "dora_on_output", "convolutions_left_out", "dataset_ignores",
    "adlrns_budget_in_wide_values",
    "adlrns_warmup_too_long",
}  # fmt: skip
# What one rule finds that stops no run, where others of its findings do.
LESS_GRAVE = {
    'gradient_checkpointing = "false"',
    'save_model_as = "safetensor"',
    'network_args = ["con_dim=4"]',
    "validation_split = 0.1",
    LOKR + KEEP_BEST,
    'network_args = ["wd_exclude=*_te_*"]',
    'network_module = "networks.oft"\nnetwork_args = ["loraplus_lr_ratio=4"]',
}
# Found in files of their own (test_check_datasets, test_call_sites) or with nothing to plant in a TOML (below).
ELSEWHERE = {
    "dataset_unreadable", "command_line", "package_missing", "optimizer_clash", "refused_together", "hooks_cannot_act",
    "missing_for_musubi", "trainer_unsure", "model_of_another_trainer", "unseen", "hooks_not_looked_at",
    "network_not_forecast", "data_not_looked_at", "option_needs_package", "zero_left_out",
    "nothing_held_out_for_musubi",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A place where everything that the base names is there, and every package seems installed."""
    (tmp_path / "data" / "10_cats").mkdir(parents=True)
    (tmp_path / "data" / "10_cats" / "1.png").touch()
    (tmp_path / "state").mkdir()
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "data" / "10_cats" / "1.caption").touch()
    (tmp_path / "bare" / "10_cats").mkdir(parents=True)
    for name, line in (("masks", 'conditioning_data_dir = "data/10_cats"'), ("crops", "random_crop = true")):
        subset = '[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = "data/10_cats"\n'
        (tmp_path / f"{name}.toml").write_text(subset + line + "\n")
    (tmp_path / "state" / "optimizer.bin").touch()
    (tmp_path / "state" / "train_state.json").write_text('{"current_epoch": 1, "current_step": 500}')
    (tmp_path / "dataset.toml").write_text('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "data/10_cats"\n')
    monkeypatch.chdir(tmp_path)
    for module in (optimizer_names, packages):
        monkeypatch.setattr(module, "installed", lambda module: True)
    return tmp_path


def planted(snippet):
    """The base with the lines of a snippet in the place of its own; `-key` takes one out."""
    keys = re.findall(r"^-?([\w-]+)(?= =|$)", snippet, flags=re.MULTILINE)
    kept = [line for line in BASE.strip().splitlines() if line.partition(" =")[0] not in keys]
    lines = dict(re.findall(r"^([\w][\w-]*)( = .*)$", snippet, flags=re.MULTILINE)) if "[" not in snippet[:1] else None
    added = [snippet] if lines is None else [key + rest for key, rest in lines.items()]
    return "\n".join([*kept, *added, ""])


def found(folder, snippet, **how):
    file = folder / "config.toml"
    file.write_text(planted(snippet), encoding="utf-8")
    return looked_at(report.check("config.toml", **{"script": "train_network.py", **how}))


def looked_at(checked):
    """The findings without what was not looked at, as no checkout is known here."""
    return tuple(each for each in checked.findings if each.level is not Level.NOT_LOOKED_AT)


def names(snippet):
    return snippet.replace("\n", "; ")[-70:] if isinstance(snippet, str) else None


@pytest.mark.parametrize("snippet", MISTAKES, ids=names)
def test_a_planted_mistake_is_found_and_nothing_else(folder, snippet):
    findings = found(folder, snippet)
    assert "; ".join(f"{each.rule} {each.key}" for each in findings) == MISTAKES[snippet]
    finding = findings[0]
    assert (finding.level is Level.WARNING) == (finding.rule in WARNINGS or snippet in LESS_GRAVE)
    assert finding.what
    assert finding.evidence


@pytest.mark.parametrize(("script", "snippet"), OF_OTHER_TRAINERS, ids=names)
def test_mistakes_of_other_trainers(folder, script, snippet):
    module = "" if "lora" in snippet else 'network_module = "hina_kohya.lycoris"\n'
    findings = found(folder, module + snippet, script=script)
    assert [f"{each.rule} {each.key}" for each in findings] == [OF_OTHER_TRAINERS[script, snippet]]


def test_every_rule_has_a_mistake_planted_for_it():
    values = "; ".join((*MISTAKES.values(), *OF_OTHER_TRAINERS.values()))
    planted_rules = {each.partition(" ")[0] for each in values.split("; ")}
    assert {*rules(), *combinations.NAMES} <= planted_rules | ELSEWHERE
    assert planted_rules >= WARNINGS


def test_the_base_has_no_mistake(folder):
    assert found(folder, "seed = 1") == ()
    assert found(folder, HINA) == ()
    adlrns = 'network_args = ["preset=attn-mlp", "r_max=8", "budget=4", "rs_lora=true", "weight_decay=0.1"]'
    assert found(folder, ADLRNS + adlrns) == ()
    hooked = adlrns.replace("preset", 'algo=adlrns", "preset')
    assert found(folder, LYCORIS.replace("lycoris.kohya", "hina_kohya.lycoris") + hooked) == ()
    assert found(folder, LYCORIS + hooked, launched=True) == ()


def test_a_dataset_of_a_metadata_file_is_not_split(folder):
    (folder / "meta.json").write_text("{}")
    subset = "[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = 'data/10_cats'\n"
    (folder / "dataset.toml").write_text(f"{subset}metadata_file = 'meta.json'\n")
    split = "validation_split = 0.1\nvalidation_seed = 1\ndataset_config = 'dataset.toml'"
    file = folder / "config.toml"
    text = BASE.replace('train_data_dir = "data"', split)
    for optional, level in (("", Level.WARNING), (HINA + KEEP_BEST, Level.ERROR)):
        keys = {line.partition(" =")[0] for line in optional.splitlines()}
        lines = [line for line in text.splitlines() if line.partition(" =")[0] not in keys]
        rest = dict(line.split(" = ", 1) for line in optional.splitlines())
        file.write_text("\n".join([*lines, *(f"{key} = {value}" for key, value in rest.items())]))
        (finding,) = looked_at(report.check("config.toml", script="train_network.py"))
        assert (finding.rule, finding.level) == ("held_out_is_trained_on", level)
        assert "images of a metadata file are not split" in finding.what


def test_alpha_is_said_to_an_optimizer_that_is_not_told(folder):
    plain = 'optimizer_type = "hina_kohya.HinaAdamW"\nnetwork_dim = 32\n'
    for arguments in ("", 'optimizer_args = ["rank_free_lr=True"]'):
        (finding,) = found(folder, plain + arguments)
        assert "lora_scale=0.03125" in str(finding.edit)
    assert found(folder, plain + 'optimizer_args = ["lora_scale=0.03125"]') == ()


def test_adlrns_knows_the_rank_where_it_is_known(folder):
    def said(snippet, dim=8):
        return [each.what for each in found(folder, f"{ADLRNS}network_dim = {dim}\n{snippet}")]

    assert said('network_args = ["preset=attn-mlp", "r_max=8"]', dim=4) == [
        "r_max = 8 is above network_dim = 4; write r_max=4 or raise network_dim"
    ]
    weights = 'network_args = ["preset=attn-mlp", "r_max=99"]\n' + DIM_FROM_WEIGHTS
    assert not [each for each in said(weights) if "r_max" in each]  # the file's rank is not known here


def test_words_of_the_command_line_win_and_are_checked(folder):
    snippet = 'network_dim = "8"'
    assert found(folder, snippet, words=["--network_dim", "16", "--lr_warmup_steps", "10%"])[0].rule == "warmup_refused"
    (finding,) = found(folder, "seed = 1", words=["--learning_rte", "1e-4", "--network_dim=4"])
    assert (finding.rule, finding.level, finding.key) == ("unknown_key", Level.ERROR, "learning_rte")
    (finding,) = found(folder, "seed = 1", words=["--network_dim", "many"])
    assert (finding.rule, "invalid int value: 'many'" in finding.what) == ("command_line", True)


def test_a_package_that_is_not_installed(folder, monkeypatch):
    monkeypatch.setattr(optimizer_names, "installed", lambda module: False)
    snippets = ("Prodigy", "AdamW8bit", "Lion", "DAdaptLion", "AdamWScheduleFree", "PagedAdamW", "mine.Lion8bit")
    for name in snippets:
        rules_found = {each.rule for each in found(folder, f'optimizer_type = "{name}"\nlearning_rate = 1.0')}
        assert "package_missing" in rules_found, name
    assert found(folder, HINA) == ()


def test_two_packages_that_claim_a_name(folder, monkeypatch):
    one, other = (EntryPoint("Twin", f"{module}:Twin", registered_names.GROUP) for module in ("one", "other"))
    monkeypatch.setattr(registered_names, "entries", lambda: [one, other])
    assert [each.rule for each in found(folder, HINA + 'optimizer_type = "Twin"')] == ["optimizer_clash"]


@pytest.mark.parametrize("snippet", MISTAKES, ids=names)
def test_every_line_removes_its_finding_and_adds_none(folder, snippet):
    """The printed text, typed into the file in the place of the old line, or else at its top."""
    text = planted(snippet)
    (folder / "config.toml").write_text(text, encoding="utf-8")
    checked = report.check("config.toml", script="train_network.py")
    for remedy in checked.remedies:
        if any("   (in " in line for _, line in remedy.steps) or re.search(r"^\[", text, re.MULTILINE):
            after = report.of_source(remedy.edit.applied(checked.source), How(script="train_network.py"))
        else:
            (folder / "config.toml").write_text(typed(text, remedy.steps), encoding="utf-8")
            after = report.check("config.toml", script="train_network.py")
        assert_mends(checked, remedy, after)


@pytest.mark.slow
def test_most_mistakes_have_a_line(folder):
    """What has none needs something that only the user knows."""
    without = []
    for snippet in MISTAKES:
        (folder / "config.toml").write_text(planted(snippet), encoding="utf-8")
        if not report.check("config.toml", script="train_network.py").remedies:
            without.append(snippet)
    assert len(without) < len(MISTAKES) / 4
