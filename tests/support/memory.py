"""Bytes of all live tensors, and a LoRA of a known size."""

import gc

import torch


def live_bytes():
    gc.collect()
    seen = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            storage = thing.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())


def lora_set(rank=8):
    widths = [(640, 640), (640, 2048), (5120, 640), (1280, 1280)] * 2
    return {
        f"lora_unet_m{i}.{name}": shape
        for i, (out, n) in enumerate(widths)
        for name, shape in (("lora_down.weight", (rank, n)), ("lora_up.weight", (out, rank)))
    }
