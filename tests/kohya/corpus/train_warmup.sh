#!/bin/bash
# Train a character LoRA
MODEL="@SD15@"
IMAGES="@DATA@"
OUT=@OUT@
LR=${LR:-1e-4}
DIM=16   # rank

accelerate launch --num_cpu_threads_per_process=1 train_network.py \
  --pretrained_model_name_or_path="$MODEL" \
  --train_data_dir="${IMAGES}" --caption_extension=".txt" \
  --output_dir="$OUT" --output_name="sh" \
  --network_module=networks.lora --network_dim=$DIM --network_alpha=8 \
  --learning_rate=$LR --max_train_steps=800 --optimizer_type="AdamW" \
  --resolution="512,512" --cache_latents --sdpa --max_data_loader_n_workers=0 \
  --lr_scheduler="constant" --lr_warmup_steps=100
