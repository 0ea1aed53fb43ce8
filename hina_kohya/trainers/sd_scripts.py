"""kohya-ss/sd-scripts, 0.4 to 0.11: read in its source, and run with 0.10.1 (48d368fa) and 0.11.1 (6c223bb)."""

from hina_kohya.trainers.facts import optimizers, timesteps
from hina_kohya.trainers.trainer import GroupsCall, Trainer

SD_SCRIPTS = Trainer(
    name="sd-scripts",
    home="SD_SCRIPTS_HOME",
    marks=("train_network.py", "library/train_util.py"),
    scripts="*train_network.py",
    script_folders=(".",),
    import_folders=(".",),
    # 0.11 moved both, and re-exports them from where they were.
    get_optimizer=("library.optimizer:get_optimizer", "library.train_util:get_optimizer"),
    get_scheduler=("library.optimizer:get_scheduler_fix", "library.train_util:get_scheduler_fix"),
    step_logs=("train_network:NetworkTrainer.generate_step_logs",),
    batch_loss=("train_network:NetworkTrainer.process_batch",),
    get_modes=("library.optimizer:get_optimizer_train_eval_fn", "library.train_util:get_optimizer_train_eval_fn"),
    network_package="networks",
    network_scripts={
        "_flux": "flux_train_network.py",
        "_sd3": "sd3_train_network.py",
        "_lumina": "lumina_train_network.py",
        "_hunyuan_image": "hunyuan_image_train_network.py",
        "_anima": "anima_train_network.py",
    },
    dataset_module="library.config_util",
    groups_calls=(
        GroupsCall(positional=3, default_lr=2),  # text encoder lr, U-Net lr, learning rate
        GroupsCall(positional=2, pair=False),  # again without the last, where that raised TypeError
    ),
    optimizers=optimizers.SD_SCRIPTS,
    timesteps=timesteps.SD_SCRIPTS,
)
