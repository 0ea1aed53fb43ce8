"""What other programs and older guides call an option: looked up before any search by spelling."""

# name in a file or on a command line -> the option of sd-scripts that means it
OPTIONS = {
    **dict.fromkeys(("batch_size", "train_batchsize", "per_device_train_batch_size"), "train_batch_size"),
    **dict.fromkeys(("lr", "base_lr", "learning_rates"), "learning_rate"),
    **dict.fromkeys(("unet_learning_rate", "lr_unet", "unet_rate"), "unet_lr"),
    **dict.fromkeys(("te_lr", "text_encoder_learning_rate", "lr_te", "text_lr", "textencoder_lr"), "text_encoder_lr"),
    **dict.fromkeys(("epochs", "num_epochs", "num_train_epochs", "max_epochs", "train_epochs"), "max_train_epochs"),
    **dict.fromkeys(("steps", "max_steps", "train_steps", "total_steps", "num_train_steps"), "max_train_steps"),
    **dict.fromkeys(("rank", "lora_rank", "lora_dim", "lora_r", "dim", "linear"), "network_dim"),
    **dict.fromkeys(("alpha", "lora_alpha", "linear_alpha"), "network_alpha"),
    **dict.fromkeys(
        ("model", "model_path", "base_model", "pretrained_model", "ckpt", "model_name_or_path", "name_or_path"),
        "pretrained_model_name_or_path",
    ),
    "optimizer": "optimizer_type",
    **dict.fromkeys(("scheduler", "lr_sched", "learning_rate_scheduler", "lr_schedule"), "lr_scheduler"),
    **dict.fromkeys(("warmup_steps", "num_warmup_steps", "lr_warmup"), "lr_warmup_steps"),
    **dict.fromkeys(
        ("lr_restarts", "lr_scheduler_cycles", "num_cycles", "lr_restart_cycles"), "lr_scheduler_num_cycles"
    ),
    **dict.fromkeys(
        ("gradient_accumulation", "grad_accumulation_steps", "accumulation_steps"), "gradient_accumulation_steps"
    ),
    **dict.fromkeys(("train_data", "dataset_dir", "image_dir", "images_folder", "train_dir"), "train_data_dir"),
    **dict.fromkeys(("reg_dir", "regularization_dir"), "reg_data_dir"),
    **dict.fromkeys(("output_path", "save_dir", "output_folder"), "output_dir"),
    **dict.fromkeys(("lora_name", "model_name", "save_name"), "output_name"),
    **dict.fromkeys(("max_resolution", "image_size"), "resolution"),
    **dict.fromkeys(("vae_path",), "vae"),
    **dict.fromkeys(("log_dir", "logging_folder"), "logging_dir"),
    **dict.fromkeys(("precision", "dtype", "train_dtype"), "mixed_precision"),
    **dict.fromkeys(("num_repeats", "repeats"), "dataset_repeats"),
    **dict.fromkeys(("num_workers", "dataloader_num_workers", "max_dataloader_workers"), "max_data_loader_n_workers"),
    **dict.fromkeys(("save_every_epochs", "save_every_n_epoch", "save_n_epochs"), "save_every_n_epochs"),
    **dict.fromkeys(("save_steps", "save_every_steps"), "save_every_n_steps"),
    **dict.fromkeys(("use_gradient_checkpointing",), "gradient_checkpointing"),
    **dict.fromkeys(("use_xformers", "enable_xformers", "enable_xformers_memory_efficient_attention"), "xformers"),
    **dict.fromkeys(("v_pred", "v_prediction", "vpred"), "v_parameterization"),
    **dict.fromkeys(("zsnr", "zero_snr", "ztsnr"), "zero_terminal_snr"),
    **dict.fromkeys(("snr_gamma", "min_snr"), "min_snr_gamma"),
    **dict.fromkeys(("flip_augmentation", "random_flip"), "flip_aug"),
    **dict.fromkeys(("shuffle_tags",), "shuffle_caption"),
    **dict.fromkeys(("clip_grad_norm", "gradient_clipping"), "max_grad_norm"),
    **dict.fromkeys(("cache_latent",), "cache_latents"),
}
# Of guides that give each text encoder an option; sd-scripts has a list.
TWO_ENCODERS = ("text_encoder_lr1", "text_encoder_lr2")
# Names that are arguments of optimizers, and belong into optimizer_args.
OF_OPTIMIZERS = (
    "weight_decay", "betas", "beta1", "beta2", "beta3", "eps", "d_coef", "d0", "decouple", "use_bias_correction",
    "safeguard_warmup", "growth_rate", "momentum", "relative_step", "scale_parameter", "warmup_init", "amsgrad",
    "prodigy_steps", "stochastic_rounding", "use_stableadamw", "split_groups",
)  # fmt: skip
# Names that are arguments of networks, and belong into network_args.
OF_NETWORKS = (
    "algo", "preset", "conv_dim", "conv_alpha", "factor", "dora_wd", "use_tucker", "use_scalar", "decompose_both",
    "block_size", "rank_dropout", "module_dropout", "train_norm", "rescaled", "constraint", "bypass_mode", "rs_lora",
    "wd_on_output", "full_matrix", "unbalanced_factorization", "rank_dropout_scale", "loraplus_lr_ratio",
    "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio", "block_dims", "block_alphas", "down_lr_weight",
    "mid_lr_weight", "up_lr_weight", "train_blocks", "split_qkv", "unit",
)  # fmt: skip
# name in network_args -> the one that LyCORIS or sd-scripts reads
NETWORK_ARGUMENTS = {
    **dict.fromkeys(("use_dora", "dora", "weight_decompose"), "dora_wd"),
    **dict.fromkeys(("use_cp", "use_conv_cp", "use_cp_decomposition"), "use_tucker"),
    **dict.fromkeys(("algorithm", "lora_type", "lycoris_algo"), "algo"),
    **dict.fromkeys(("lokr_factor", "decompose_factor"), "factor"),
    **dict.fromkeys(("conv_rank", "conv_lora_dim", "conv_network_dim", "convolution_dim"), "conv_dim"),
    **dict.fromkeys(("conv_network_alpha", "convolution_alpha"), "conv_alpha"),
    **dict.fromkeys(("loraplus_ratio", "lora_plus_ratio", "loraplus_lr", "loraplus"), "loraplus_lr_ratio"),
    **dict.fromkeys(("rslora", "use_rslora", "rank_stabilized"), "rs_lora"),
    **dict.fromkeys(("scale", "scalar"), "use_scalar"),
    **dict.fromkeys(("norm", "use_norm"), "train_norm"),
}
# What a field "LoRA type" or its like names -> algorithm of LyCORIS
ALGORITHMS = {
    "lokr": "lokr", "loha": "loha", "locon": "locon", "ia3": "ia3", "dylora": "dylora", "glora": "glora",
    "diag-oft": "diag-oft", "boft": "boft", "lycoris/lokr": "lokr", "lycoris/loha": "loha", "lycoris/locon": "locon",
}  # fmt: skip
TYPES_OF_NETWORKS = ("algo", "lora_type", "LoRA_type", "network_type", "lycoris_algo", "adapter_type")
# Keys that programs write for themselves beside options: they do no harm. program -> its keys
OF_PROGRAMS = {
    "the kohya_ss GUI": (
        "noise_offset_type", "stop_text_encoder_training", "mem_eff_save", "epoch", "double_blocks_to_swap",
        "single_blocks_to_swap", "LoRA_type", "LyCORIS_preset", "additional_parameters", "train_on_input",
        "stop_text_encoder_training_pct", "model_list", "num_cpu_threads_per_process",
        "num_machines", "num_processes", "extra_accelerate_launch_args", "gpu_ids", "main_process_port", "multi_gpu",
        "dynamo_mode", "dynamo_use_dynamic", "dynamo_use_fullgraph", "headless", "sdxl_cache_text_encoder_outputs",
        "sdxl_no_half_vae", "save_as_bool", "folders",
        "accelerate_launch", "flux1_checkbox", "sd3_checkbox", "sdxl",
    ),
    "lora-scripts": (
        "model_train_type", "ui_custom_params", "enable_preview", "prompt_type", "positive_prompts",
        "negative_prompts", "sample_width", "sample_height", "sample_cfg", "sample_seed", "sample_steps",
        "randomly_choice_prompt", "random_prompt_include_subdirs", "enable_base_weight", "enable_block_weights",
        "lycoris_algo", "lokr_factor", "dylora_unit", "optimizer_args_custom", "network_args_custom",
    ),
    "CivitAI": ("targetSteps", "numRepeats", "engine", "trainUNetOnly"),
}  # fmt: skip
