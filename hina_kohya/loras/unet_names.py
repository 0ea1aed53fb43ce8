"""The U-Net of SD 1.x, 2.x and SDXL has two sets of names: the original's (`input_blocks`) and diffusers'.

SD 1.x and 2.x files of sd-scripts have diffusers' names, its SDXL files the original's. Both have two resnets a level.
"""

import re

from hina_kohya.loras.errors import AdapterError

_RESNETS = 2
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_FIXED = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
_ORIGINAL = ("input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "label_emb.", "out.")
_DIFFUSERS = ("down_blocks.", "mid_block.", "up_blocks.", "time_embedding.", "add_embedding.", "conv_in", "conv_out")


def is_original(path: str) -> bool:
    return path.startswith(_ORIGINAL)


def is_diffusers(path: str) -> bool:
    return path.startswith(_DIFFUSERS)


def to_diffusers(path: str) -> str:
    """diffusers' name of a module under its original name. Raises AdapterError."""
    if path in _FIXED:
        return _FIXED[path]
    match = re.fullmatch(r"(input_blocks|output_blocks)\.(\d+)\.(\d+)\.(.+)", path)
    if match:
        side, index, part, rest = match[1], int(match[2]), match[3], match[4]
        level, place = divmod(index - (side == "input_blocks"), _RESNETS + 1)
        block = f"{'down' if side == 'input_blocks' else 'up'}_blocks.{level}"
        if part == "0" and rest == "op":
            return f"{block}.downsamplers.0.conv"
        if rest == "conv":
            return f"{block}.upsamplers.0.conv"
        if part == "0":
            return f"{block}.resnets.{place}.{_RESNET.get(rest, rest)}"
        return f"{block}.attentions.{place}.{rest}"
    match = re.fullmatch(r"middle_block\.(\d)\.(.+)", path)
    if match and match[1] in _MIDDLE:
        inner = match[2] if match[1] == "1" else _RESNET.get(match[2], match[2])
        return f"mid_block.{_MIDDLE[match[1]]}.{inner}"
    raise AdapterError(f"{path} is no module of the U-Net of SD 1.x, 2.x or SDXL; leave --names out")


def to_original(path: str, sdxl: bool) -> str:
    """The original name of a module under diffusers' name. Raises AdapterError."""
    back = {value: key for key, value in _FIXED.items()}
    if path in back:
        return back[path]
    inner = {value: key for key, value in _RESNET.items()}
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", path)
    if match:
        level, kind, place, rest = int(match[2]), match[3], int(match[4]), match[5]
        side = "input_blocks" if match[1] == "down" else "output_blocks"
        index = level * (_RESNETS + 1) + (match[1] == "down")
        if kind == "downsamplers":
            return f"{side}.{index + _RESNETS}.0.op"
        if kind == "upsamplers":
            attends = level < 2 if sdxl else level > 0
            return f"{side}.{index + _RESNETS}.{2 if attends else 1}.conv"
        if kind == "resnets":
            return f"{side}.{index + place}.0.{inner.get(rest, rest)}"
        if kind == "attentions":
            return f"{side}.{index + place}.1.{rest}"
    match = re.fullmatch(r"mid_block\.(\w+\.\d)\.(.+)", path)
    middle = {value: key for key, value in _MIDDLE.items()}
    if match and match[1] in middle:
        rest = match[2] if match[1].startswith("attentions") else inner.get(match[2], match[2])
        return f"middle_block.{middle[match[1]]}.{rest}"
    raise AdapterError(f"{path} is no module of the U-Net of SD 1.x, 2.x or SDXL; leave --names out")
