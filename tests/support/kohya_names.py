"""Every name that sd-scripts could give to a module of a model."""


def paths(node, above=()):
    if not node.children and node.base in ("Linear", "Conv2d"):
        yield ".".join(above)
    for name, child in node.children:
        yield from paths(child, (*above, name))


def kohya(architecture):
    """Every name that sd-scripts could give to a module of a model."""
    found = [f"lora_unet_{path.replace('.', '_')}" for path in paths(architecture.unet())]
    encoders = architecture.text_encoders()
    prefixes = ["lora_te"] if architecture.name in ("sd15", "sd2") else ["lora_te1", "lora_te2", "lora_te3"]
    if architecture.name == "flux1":
        prefixes = ["lora_te1", "lora_te3"]
    return found + [f"{prefix}_{path.replace('.', '_')}" for prefix, encoder in zip(prefixes, encoders, strict=False)
                    for path in paths(encoder)]  # fmt: skip
