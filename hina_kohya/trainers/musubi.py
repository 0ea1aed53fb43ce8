"""kohya-ss/musubi-tuner: read in its source, and run with 0.3.4 (30c658c)."""

from hina_kohya.trainers.trainer import GroupsCall, Trainer

_HOMES = (
    "musubi_tuner.training.trainer_base:NetworkTrainer",
    "musubi_tuner.hv_train_network:NetworkTrainer",  # before 0.3.0; since then it imports the class
    "musubi_tuner.hv_train:FineTuningTrainer",
)

MUSUBI = Trainer(
    name="musubi-tuner",
    scripts="*train_network*.py",
    get_optimizer=tuple(f"{home}.get_optimizer" for home in _HOMES),
    get_scheduler=tuple(f"{home}.get_lr_scheduler" for home in _HOMES),
    returns_modes=True,
    network_package="musubi_tuner.networks",
    groups_calls=(GroupsCall(keywords=frozenset({"unet_lr"}), default_lr="unet_lr", pair=True),),
    optimizer_names={
        "AdamW": "torch.optim.AdamW",
        "AdamW8bit": "bitsandbytes.optim.AdamW8bit",
        "Adafactor": "transformers.optimization.Adafactor",
    },
)
