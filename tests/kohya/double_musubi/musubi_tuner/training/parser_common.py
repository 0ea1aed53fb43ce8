"""Double of musubi-tuner's training/parser_common.py: the options that matter to a plugin, and TOML files."""

import argparse
import os
import sys

import toml

TEXTS = """config_file dit dataset_config output_dir logging_dir resume network_module network_weights"""
FLAGS = """save_state gradient_checkpointing dim_from_weights sdpa"""


def int_or_float(text):
    return float(text) if "." in text else int(text)


def setup_parser_common():
    parser = argparse.ArgumentParser()
    for name in TEXTS.split():
        parser.add_argument(f"--{name}")
    for name in FLAGS.split():
        parser.add_argument(f"--{name}", action="store_true")
    for name in ("optimizer_args", "network_args", "base_weights", "lr_scheduler_args"):
        parser.add_argument(f"--{name}", nargs="*")
    for name, default in (("output_name", "lora"), ("optimizer_type", ""), ("lr_scheduler", "constant")):
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--lr_scheduler_type", default="")
    parser.add_argument("--learning_rate", type=float, default=2e-6)
    parser.add_argument("--max_grad_norm", type=float, default=1.0)
    parser.add_argument("--lr_warmup_steps", type=int_or_float, default=0)
    parser.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], default="no")
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--max_train_steps", type=int, default=1600)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--network_dim", type=int)
    parser.add_argument("--network_alpha", type=float, default=1)
    parser.add_argument("--network_dropout", type=float)
    parser.add_argument("--scale_weight_norms", type=float)
    parser.add_argument("--discrete_flow_shift", type=float, default=3.0)
    return parser


def read_config_from_file(args, parser):
    """Sections flattened by one level, values as they are; the command line wins."""
    if not args.config_file:
        return args
    path = args.config_file if args.config_file.endswith(".toml") else args.config_file + ".toml"
    if not os.path.exists(path):
        print(f"{path} not found.")
        sys.exit(1)
    flat = {}
    for key, value in toml.load(path).items():
        flat.update(value if isinstance(value, dict) else {key: value})
    args = parser.parse_args(namespace=argparse.Namespace(**flat))
    args.config_file = os.path.splitext(args.config_file)[0]
    return args
