# LoRA train script
$pretrained_model = "@SD15@"
$train_data_dir = "@DATA@"
$network_dim = 32
$lr = "1e-4"
$ext_args = [System.Collections.ArrayList]::new()

accelerate launch --num_cpu_threads_per_process=4 "train_network.py" `
  --pretrained_model_name_or_path=$pretrained_model `
  --train_data_dir=$train_data_dir --caption_extension=".txt" `
  --output_dir="@OUT@" --output_name="ps" `
  --network_dim=$network_dim --network_alpha=16 `
  --learning_rate=$lr --max_train_steps=500 --optimizer_type="AdamW" `
  --resolution="512,512" --cache_latents --sdpa --max_data_loader_n_workers=0
