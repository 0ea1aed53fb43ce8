"""Folders as trainers leave them, written in a moment: events, adapters with metadata, samples."""

import math
import time

import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils.tensorboard import SummaryWriter

START = 1_795_000_000.0  # seconds since 1970, when the run began
STEP = 0.5  # seconds per step

METADATA = {
    "ss_output_name": "cat",
    "ss_sd_model_name": "sdxl_base.safetensors",
    "ss_base_model_version": "sdxl_base_v1-0",
    "ss_network_module": "networks.lora",
    "ss_network_dim": "4",
    "ss_network_alpha": "2",
    "ss_optimizer": "torch.optim.adamw.AdamW(weight_decay=0.01)",
    "ss_learning_rate": "0.0001",
    "ss_lr_scheduler": "cosine",
    "ss_num_train_images": "24",
    "ss_seed": "7",
    "ss_mixed_precision": "bf16",
    "ss_dataset_dirs": '{"5_cat": {"n_repeats": 5, "img_count": 24}}',
    "ss_training_started_at": str(START),
}

NAMES = [
    f"lora_unet_{side}_blocks_{number}_attentions_0_transformer_blocks_0_attn{attention}_to_{part}"
    for side in ("down", "up") for number in (1, 2) for attention in (1, 2) for part in ("q", "k", "v")
]  # fmt: skip
TEXT = [f"lora_te1_text_model_encoder_layers_{n}_self_attn_{part}_proj" for n in range(2) for part in ("q", "v")]


def adapter(path, step=100, text=0.5, seed=0, names=(*NAMES, *TEXT), **metadata):
    """A LoRA of rank 4. text: the size of the text encoder's change beside the U-Net's."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in names:
        size = text if name.startswith("lora_te") else 1.0
        tensors[f"{name}.lora_up.weight"] = size * torch.randn(24, 4, generator=generator)
        tensors[f"{name}.lora_down.weight"] = torch.randn(4, 16, generator=generator)
        tensors[f"{name}.alpha"] = torch.tensor(2.0)
    finished = START + STEP * step
    about = METADATA | {"ss_steps": str(step), "ss_training_finished_at": str(finished)} | metadata
    save_file(tensors, path, about)


def falling(step):
    """A training loss with the noise of a diffusion model's."""
    return 0.1 + 0.05 * math.exp(-step / 30) + 0.02 * math.sin(17.0 * step * step)


def turning(step, turn=40):
    """A held-out loss that is lowest at `turn`."""
    return 0.11 + 0.03 * ((step - turn) / 60) ** 2


def log(folder, steps=100, first=1, loss=falling, held_out=turning, every=5, start=START, more=None, rates=("unet",)):
    """As sd-scripts logs; returns the folder of the events. held_out None: there is none."""
    place = folder / time.strftime("%Y%m%d%H%M%S", time.gmtime(start)) / "network_train"
    writer = SummaryWriter(str(place))

    def add(tag, value, step, after=0.0):
        writer.add_scalar(tag, value, step, walltime=start + STEP * (step if not after else 0) + after)

    for step in range(first, steps + 1):
        add("loss/current", loss(step), step)
        for name in rates:
            add(f"lr/{name}", 1e-4 * (1 + math.cos(math.pi * step / steps)) / 2, step)
        if held_out is not None and step % every == 0:
            add("loss/validation/step_average", held_out(step), step)
        for tag, value in (more(step) if more else {}).items():
            add(tag, value, step)
    writer.close()
    return place


def by_epoch(folder, values, steps_per_epoch, start=START):
    """Held-out losses as sd-scripts logs them at the end of an epoch: with its number as the step."""
    writer = SummaryWriter(str(folder))
    for number, value in enumerate(values, 1):
        when = start + STEP * steps_per_epoch * number + 0.1
        writer.add_scalar("loss/validation/epoch_average", value, number, walltime=when)
    writer.close()


def samples(folder, name="cat", steps=(20, 40, 60), prompts=2):
    place = folder / "sample"
    place.mkdir(parents=True, exist_ok=True)
    for number, step in enumerate(steps):
        for prompt in range(prompts):
            colour = (40 * number, 80 * prompt, 120)
            Image.new("RGB", (640, 512), colour).save(
                place / f"{name}_{step:06d}_{prompt:02d}_2026010112{step:04d}_42.png"
            )


def whole(folder, **arguments):
    """A run of sd-scripts with all that a report can show, which overfits from step 40."""
    folder.mkdir(parents=True, exist_ok=True)
    log(folder / "logs", **arguments)
    for step in (40, 80):
        adapter(folder / f"cat-step{step:08d}.safetensors", step, seed=step)
    adapter(folder / "cat.safetensors", seed=100)
    samples(folder)
    return folder
