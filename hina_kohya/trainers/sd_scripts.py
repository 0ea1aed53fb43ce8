"""kohya-ss/sd-scripts, 0.4 to 0.11: read in its source, and run with 0.10.1 (48d368fa) and 0.11.1 (6c223bb)."""

from hina_kohya.trainers.trainer import GroupsCall, Timestep, Trainer

SD_SCRIPTS = Trainer(
    name="sd-scripts",
    home="SD_SCRIPTS_HOME",
    has=("train_network.py", "library/train_util.py"),
    scripts="*train_network.py",
    script_folders=(".",),
    import_folders=(".",),
    # 0.11 moved both, and re-exports them from where they were.
    get_optimizer=("library.optimizer:get_optimizer", "library.train_util:get_optimizer"),
    get_scheduler=("library.optimizer:get_scheduler_fix", "library.train_util:get_scheduler_fix"),
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
    optimizer_names={
        "AdamW": "torch.optim.AdamW",
        **{name: f"bitsandbytes.optim.{name}" for name in (
            "AdamW8bit", "PagedAdamW", "PagedAdamW8bit", "PagedAdamW32bit", "Lion8bit", "PagedLion8bit")},
        "Lion": "lion_pytorch.Lion",
        "SGDNesterov": "torch.optim.SGD",
        "SGDNesterov8bit": "bitsandbytes.optim.SGD8bit",
        **dict.fromkeys(("DAdaptation", "DAdaptAdamPreprint"), "dadaptation.experimental.DAdaptAdamPreprint"),
        "DAdaptAdanIP": "dadaptation.experimental.DAdaptAdanIP",
        **{name: f"dadaptation.{name}" for name in (
            "DAdaptAdaGrad", "DAdaptAdam", "DAdaptAdan", "DAdaptLion", "DAdaptSGD")},
        "Prodigy": "prodigyopt.Prodigy",
        "Adafactor": "transformers.optimization.Adafactor",
        **{name: f"schedulefree.{name}" for name in ("RAdamScheduleFree", "AdamWScheduleFree", "SGDScheduleFree")},
    },
    timesteps={
        "UNet2DConditionModel": Timestep("timestep"),
        "SdxlUNet2DConditionModel": Timestep("timesteps"),
        "MMDiT": Timestep("t"),
        "Flux": Timestep("timesteps", 1.0),  # and Chroma
        "Anima": Timestep("timesteps", 1.0),
        "NextDiT": Timestep("t", 1.0, falls=True),
        "HYImageDiffusionTransformer": Timestep("timestep"),
    },
)  # fmt: skip
