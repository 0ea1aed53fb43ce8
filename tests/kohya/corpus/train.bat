@echo off
rem start training
set MODEL=@SD15@
set "DATA=@DATA@"
accelerate launch --num_cpu_threads_per_process 2 train_network.py ^
  --pretrained_model_name_or_path "%MODEL%" ^
  --train_data_dir "%DATA%" --caption_extension ".txt" ^
  --output_dir "@OUT@" --output_name "bat" ^
  --network_module networks.lora --network_dim 8 --network_alpha 4 ^
  --learning_rate 1e-4 --max_train_steps 500 --optimizer_type AdamW ^
  --resolution 512 --cache_latents --sdpa --max_data_loader_n_workers 0
pause
