"""Where trainers do what a finding says: function and file, of sd-scripts before and since the move of 0.11."""

from hina_kohya.trainers.musubi import MUSUBI
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS
from hina_kohya.trainers.trainer import Trainer

RELEASES = {SD_SCRIPTS.name: "0.10.1 to 0.11.1", MUSUBI.name: "0.3.4"}

_BEFORE = "library/train_util.py"
_BASE = "src/musubi_tuner/training/trainer_base.py"
# function of sd-scripts -> the file that it is in since 0.11, and before
FILES = {
    **dict.fromkeys(
        ("get_optimizer", "get_scheduler_fix", "is_schedulefree_optimizer"), ("library/optimizer.py", _BEFORE)
    ),
    **dict.fromkeys(("read_config_from_file", "verify_training_args"), ("library/args.py", _BEFORE)),
    **dict.fromkeys(("prepare_accelerator", "prepare_dataset_args"), ("library/accelerator_setup.py", _BEFORE)),
    **dict.fromkeys(
        ("BaseDataset.adjust_min_max_bucket_reso_by_steps", "BaseDataset.is_text_encoder_output_cacheable"),
        ("library/dataset.py", _BEFORE),
    ),
    "get_noise_noisy_latents_and_timesteps": ("library/loss.py", _BEFORE),
    "split_train_val": ("library/dataset.py", _BEFORE),
    "load_user_config": ("library/config_util.py", "library/config_util.py"),
    "ConfigSanitizer": ("library/config_util.py", "library/config_util.py"),
    "verify_sdxl_training_args": ("library/sdxl_train_util.py", "library/sdxl_train_util.py"),
    "NetworkTrainer.train": ("train_network.py", "train_network.py"),
    "NetworkTrainer.is_train_text_encoder": ("train_network.py", "train_network.py"),
    "SdxlNetworkTrainer.assert_extra_args": ("sdxl_train_network.py", "sdxl_train_network.py"),
    "FluxNetworkTrainer.assert_extra_args": ("flux_train_network.py", "flux_train_network.py"),
    "AnimaNetworkTrainer.assert_extra_args": ("anima_train_network.py", "anima_train_network.py"),
}
# function of sd-scripts -> the function of musubi-tuner that does the same, and its file
OF_MUSUBI = {
    "get_optimizer": ("NetworkTrainer.get_optimizer", _BASE),
    "get_scheduler_fix": ("NetworkTrainer.get_lr_scheduler", _BASE),
    "NetworkTrainer.train": ("NetworkTrainer._build_network", _BASE),
    "read_config_from_file": ("read_config_from_file", "src/musubi_tuner/training/parser_common.py"),
    "load_user_config": ("load_user_config", "src/musubi_tuner/dataset/config_utils.py"),
    "ConfigSanitizer": ("ConfigSanitizer", "src/musubi_tuner/dataset/config_utils.py"),
}


def at(function: str, trainer: Trainer = SD_SCRIPTS) -> str:
    """`function in file (other file before 0.11), releases`: what a finding cites."""
    if trainer is MUSUBI:
        function, file = OF_MUSUBI[function]
        return f"{function} in {file}, musubi-tuner {RELEASES[trainer.name]}"
    file, old_file = FILES[function]
    note = f" ({old_file} before 0.11)" if old_file != file else ""
    return f"{function} in {file}{note}, sd-scripts {RELEASES[trainer.name]}"
