"""Which tensor of a file is what to which module: `lora_unet_x.lora_up.weight` is the `up` of `lora_unet_x`.

Endings were read off files of sd-scripts, LyCORIS, musubi-tuner, peft and diffusers (see `parameters.role_table`, which
has them for training; here the same thing has one name whoever wrote it, and what has no finite rank is told apart).
"""

from hina_kohya.loras.errors import AdapterError

UP, DOWN, MID, ALPHA, MAGNITUDE = "up", "down", "mid", "alpha", "magnitude"
DIFF = "diff"

_LORA = {
    "lora_down.weight": DOWN,
    "lora_up.weight": UP,
    "lora_mid.weight": MID,
    "lora_A.weight": DOWN,
    "lora_B.weight": UP,
    "lora_A.default.weight": DOWN,
    "lora_B.default.weight": UP,
    "lora.down.weight": DOWN,
    "lora.up.weight": UP,
    "lora_layer.down.weight": DOWN,
    "lora_layer.up.weight": UP,
    "lora_linear_layer.down.weight": DOWN,
    "lora_linear_layer.up.weight": UP,
}
_HADAMARD = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
_KRONECKER = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
# Changes of biases and norms: they are added, and stay as they are.
ADDED = ("diff_b", "w_norm", "b_norm")
ENDINGS = {
    **_LORA,
    **{name: name for name in (*_HADAMARD, *_KRONECKER, *ADDED, DIFF, ALPHA)},
    "dora_scale": MAGNITUDE,
    "lora_magnitude_vector": MAGNITUDE,
    "lora_magnitude_vector.weight": MAGNITUDE,
}
_PROCESSOR = {"_lora.down.weight": DOWN, "_lora.up.weight": UP}  # diffusers up to 0.20: `to_q_lora.down.weight`

# Endings of adapters that are no sum of a base weight and a product that the file holds.
UNSUPPORTED = {
    "oft_blocks": "OFT or BOFT, which rotate the base weight",
    "oft_diag": "OFT, which rotates the base weight",
    "oft_R.weight": "OFT, which rotates the base weight",
    "boft_R": "BOFT, which rotates the base weight",
    "rescale": "OFT or BOFT, which rotate the base weight",
    "on_input": "(IA)3, which scales the base weight",
    "ia3_l": "(IA)3, which scales the base weight",
    "a1.weight": "GLoRA, which multiplies the base weight",
    "lambda_layer": "T-LoRA, which subtracts a start that is not in the file",
    "up_list.0": "DyLoRA as LyCORIS trains it; save it through LyCORIS first",
    "lora_A.0": "DyLoRA as sd-scripts trains it; run its networks/extract_lora_from_dylora.py first",
    "vera_lambda_b": "VeRA, whose matrices are not in the file",
    "lora_embedding_A": "peft's LoRA of an embedding",
    "lora_B.bias": "a LoRA with a bias",
    "bias_indices": "a LoRA with a sparse bias",
    "adlrns_kept": 'ADLRNS; run "hina-kohya adlrns export" first',
}


def split(key: str) -> tuple[str, str] | None:
    """(module, part) of a tensor's name, or None where it is no adapter's."""
    start = -1
    while (start := key.find(".", start + 1)) != -1:
        part = ENDINGS.get(key[start + 1 :])
        if part is not None:
            return key[:start], part
    for ending, part in _PROCESSOR.items():
        if key.endswith(ending):
            return key.removesuffix(ending), part
    return None


def unsupported(key: str) -> str | None:
    """What kind of adapter a tensor belongs to that no LoRA can be made of."""
    return next((what for ending, what in UNSUPPORTED.items() if key.endswith(f".{ending}")), None)


def algorithm(parts: set[str], kernel: tuple[int, ...] = ()) -> str:
    """The usual name of a module's algorithm."""
    if parts & set(_KRONECKER):
        name = "LoKr"
    elif parts & set(_HADAMARD):
        name = "LoHa"
    elif DIFF in parts:
        name = "full"
    elif parts & {UP, DOWN}:
        name = "LoCon" if any(size != 1 for size in kernel) else "LoRA"
    else:
        name = "bias or norm"
    return f"{name} + DoRA" if MAGNITUDE in parts else name


def check_whole(module: str, parts: set[str]) -> None:
    """Raises AdapterError for factors without their partners, and for two algorithms in one module."""
    needs = []
    if parts & {UP, DOWN, MID}:
        needs.append((UP, DOWN))
    if parts & set(_HADAMARD):
        tucker = ("hada_t1", "hada_t2") if parts & {"hada_t1", "hada_t2"} else ()
        needs.append((*_HADAMARD[:4], *tucker))
    if parts & set(_KRONECKER):
        needs += [_kronecker_side(parts, side) for side in ("lokr_w1", "lokr_w2")]
    missing = [part for need in needs for part in need if part not in parts]
    if missing:
        raise AdapterError(
            f"{module} has {_words(parts)} and no {_words(missing)}; the file is not whole, get it again"
        )
    kinds = [bool(parts & set(kind)) for kind in ((UP, DOWN), _HADAMARD, _KRONECKER, (DIFF,))]
    both = any({side, f"{side}_a"} <= parts for side in ("lokr_w1", "lokr_w2"))
    if sum(kinds) > 1 or both:
        raise AdapterError(f"{module} has {_words(parts)}: two adapters in one; resize the files that it was made of")
    if MAGNITUDE in parts and not any(kinds):
        raise AdapterError(f"{module} has a dora_scale and no factors; the file is not whole, get it again")


def _kronecker_side(parts: set[str], side: str) -> tuple[str, ...]:
    core = f"lokr_t{side[-1]}"
    if side in parts and core not in parts:
        return (side,)
    return (f"{side}_a", f"{side}_b") if parts & {f"{side}_a", f"{side}_b", core} else (side,)


def _words(parts: set[str] | list[str]) -> str:
    return ", ".join(sorted(parts))
