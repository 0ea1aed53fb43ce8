"""What a configuration names, made in a folder: models that say which kind they are, images with captions."""

import json
import struct

# One tensor that only this kind has.
KINDS = {
    "SD15": "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    "SDXL": "conditioner.embedders.1.model.ln_final.weight",
    "FLUX": "double_blocks.0.img_attn.norm.key_norm.scale",
}


def model(file, kind):
    """A .safetensors of one small tensor."""
    header = json.dumps({KINDS[kind]: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0\0\0")
    return file


def make(folder):
    """mark -> path"""
    images = folder / "data" / "2_toy thing"
    images.mkdir(parents=True)
    for number in (1, 2):
        (images / f"{number}.png").touch()
        (images / f"{number}.txt").write_text("a toy")
    (folder / "prompt.txt").write_text("a toy")
    return {
        "@SD15@": str(model(folder / "sd15.safetensors", "SD15")),
        "@SDXL@": str(model(folder / "sdxl.safetensors", "SDXL")),
        "@DATA@": str(folder / "data"), "@IMAGES@": str(images), "@OUT@": str(folder),
    }  # fmt: skip


def put(text, places):
    for mark, place in places.items():
        text = text.replace(mark, place)
    return text
