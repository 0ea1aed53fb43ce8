#!/usr/bin/env bash
args=(
  --pretrained_model_name_or_path "@SDXL@"
  --train_data_dir "@DATA@" --caption_extension .txt
  --output_dir "@OUT@" --output_name arr
  --network_module lycoris.kohya
  --network_args "algo=lokr" "factor=8" "preset=attn-mlp"
  --network_dim 10000 --network_alpha 1
  --optimizer_type Prodigy --learning_rate 1
  --optimizer_args "decouple=True" "weight_decay=0.01"
  --max_train_steps 1000 --resolution 1024,1024
  --cache_latents --network_train_unet_only --sdpa --max_data_loader_n_workers 0
)
accelerate launch sdxl_train_network.py "${args[@]}"
