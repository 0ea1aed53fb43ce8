"""Parameters copied, and state through a file."""

import io

import torch


def through_file(state_dict):
    """What accelerate does: saved with torch.save, read with weights_only=True."""
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def copy_of(params):
    return {name: torch.nn.Parameter(param.detach().clone()) for name, param in params.items()}
