"""kohya-ss/musubi-tuner: read in its source, and run with 0.3.4 (30c658c)."""

from hina_kohya.trainers.facts import optimizers, timesteps
from hina_kohya.trainers.trainer import GroupsCall, Trainer

_HOMES = (
    "musubi_tuner.training.trainer_base:NetworkTrainer",
    "musubi_tuner.hv_train_network:NetworkTrainer",  # before 0.3.0; since then it imports the class
    "musubi_tuner.hv_train:FineTuningTrainer",
)

MUSUBI = Trainer(
    name="musubi-tuner",
    home="MUSUBI_HOME",
    marks=("src/musubi_tuner/hv_train_network.py",),
    scripts="*train_network*.py",
    script_folders=("src/musubi_tuner", "."),  # those of the second only start those of the first
    import_folders=("src", "."),
    get_optimizer=tuple(f"{home}.get_optimizer" for home in _HOMES),
    get_scheduler=tuple(f"{home}.get_lr_scheduler" for home in _HOMES),
    step_logs=tuple(f"{home}.generate_step_logs" for home in _HOMES),
    returns_modes=True,
    after_step=(f"{_HOMES[0]}.on_post_optimizer_step",),
    network_package="musubi_tuner.networks",
    network_scripts={
        "_wan": "wan_train_network.py",
        "_flux_2": "flux_2_train_network.py",
        "_flux": "flux_kontext_train_network.py",
        "_qwen_image": "qwen_image_train_network.py",
        "_zimage": "zimage_train_network.py",
        "_krea2": "krea2_train_network.py",
        "_framepack": "fpack_train_network.py",
        "_hv_1_5": "hv_1_5_train_network.py",
        "_kandinsky": "kandinsky5_train_network.py",
        "_ideogram4": "ideogram4_train_network.py",
        "_hidream_o1": "hidream_o1_train_network.py",
    },
    dataset_module="musubi_tuner.dataset.config_utils",
    groups_calls=(GroupsCall(keywords=frozenset({"unet_lr"}), default_lr="unet_lr", pair=True),),
    optimizers=optimizers.MUSUBI,
    timesteps=timesteps.MUSUBI,
)
