"""Parameter sets with the names and shapes that real training gives an optimizer, and lists that a user writes.

``sdxl-lora-rR`` : LoRA on the 700 linear layers of the transformer blocks of the SDXL U-Net; r = 8 is "the LoRA set".
``kohya-lora-r8``: what sd-scripts' networks.lora trains on SDXL: also proj_in, proj_out and both text encoders.
``sdxl-lokr-f8-dD``, ``sdxl-lokr-f8-full``: LyCORIS LoKr with factor 8 on the same 700 layers.
"""

import dataclasses as dc
import math
import re
from collections.abc import Callable, Iterator
from functools import partial

from hina_kohya.text import did_you_mean
from hina_kohya.trainers.errors import UserError

Shapes = list[tuple[str, tuple[int, ...]]]  # name and shape of each parameter


@dc.dataclass(frozen=True)
class Linear:
    """A linear layer as sd-scripts and LyCORIS name it."""

    name: str
    out: int
    inp: int


# (place of the attention module, its width, number of transformer blocks in it)
_SDXL_ATTENTIONS = [
    *((f"down_blocks_1_attentions_{i}", 640, 2) for i in range(2)),
    *((f"down_blocks_2_attentions_{i}", 1280, 10) for i in range(2)),
    ("mid_block_attentions_0", 1280, 10),
    *((f"up_blocks_0_attentions_{i}", 1280, 10) for i in range(3)),
    *((f"up_blocks_1_attentions_{i}", 640, 2) for i in range(3)),
]
_SDXL_CONTEXT = 2048
# (prefix, width, layers) of CLIP-L and OpenCLIP bigG
_SDXL_TEXT_ENCODERS = [("lora_te1", 768, 12), ("lora_te2", 1280, 32)]


def sdxl_blocks() -> Iterator[Linear]:
    for place, d, depth in _SDXL_ATTENTIONS:
        for number in range(depth):
            block = f"lora_unet_{place}_transformer_blocks_{number}"
            for attention, context in (("attn1", d), ("attn2", _SDXL_CONTEXT)):
                for layer, inp in (("to_q", d), ("to_k", context), ("to_v", context), ("to_out_0", d)):
                    yield Linear(f"{block}_{attention}_{layer}", d, inp)
            yield Linear(f"{block}_ff_net_0_proj", 8 * d, d)
            yield Linear(f"{block}_ff_net_2", d, 4 * d)


def kohya_layers() -> Iterator[Linear]:
    yield from sdxl_blocks()
    for place, d, _ in _SDXL_ATTENTIONS:
        yield Linear(f"lora_unet_{place}_proj_in", d, d)
        yield Linear(f"lora_unet_{place}_proj_out", d, d)
    for prefix, d, layers in _SDXL_TEXT_ENCODERS:
        for number in range(layers):
            layer = f"{prefix}_text_model_encoder_layers_{number}"
            for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
                yield Linear(f"{layer}_self_attn_{projection}", d, d)
            yield Linear(f"{layer}_mlp_fc1", 4 * d, d)
            yield Linear(f"{layer}_mlp_fc2", d, 4 * d)


def lora(layers: Callable[[], Iterator[Linear]], rank: int) -> Shapes:
    named: Shapes = []
    for layer in layers():
        named.append((f"{layer.name}.lora_down.weight", (rank, layer.inp)))
        named.append((f"{layer.name}.lora_up.weight", (layer.out, rank)))
    return named


def lokr(layers: Callable[[], Iterator[Linear]], factor: int, dim: int | None) -> Shapes:
    """As `lycoris.modules.lokr` shapes linear layers; ``dim`` None is full_matrix."""
    from lycoris.functional.general import factorization  # noqa: PLC0415

    named: Shapes = []
    for layer in layers():
        (out1, out2), (in1, in2) = factorization(layer.out, factor), factorization(layer.inp, factor)
        named.append((f"{layer.name}.lokr_w1", (out1, in1)))
        if dim is None or dim >= max(out2, in2) / 2:
            named.append((f"{layer.name}.lokr_w2", (out2, in2)))
        else:
            named.append((f"{layer.name}.lokr_w2_a", (out2, dim)))
            named.append((f"{layer.name}.lokr_w2_b", (dim, in2)))
    return named


SETS: dict[str, Callable[[], Shapes]] = {
    **{f"sdxl-lora-r{rank}": partial(lora, sdxl_blocks, rank) for rank in (4, 8, 16, 64)},
    "kohya-lora-r8": partial(lora, kohya_layers, 8),
    "sdxl-lokr-f8-d8": partial(lokr, sdxl_blocks, 8, 8),
    "sdxl-lokr-f8-full": partial(lokr, sdxl_blocks, 8, None),
}
_ITEM = re.compile(r"(?:lora(?P<rank>\d+):)?(?P<shape>\d+(?:x\d+)*)(?:\*(?P<count>\d+))?")
_EXAMPLE = "640x8*200, a shape and how many of it, or lora8:640x2048*70, LoRAs of rank 8 on layers of 640 outputs"
LARGEST = 1 << 31  # elements in all: eight times the largest set here, and 8 GiB in fp32


def parse(text: str) -> Shapes:
    """Parameters of a list such as ``sdxl-lora-r8`` or ``lora8:640x2048*70,640x8*200,320x4x3x3,640``.

    A set by its name; ``AxB``, ``AxBxCxD`` or ``A`` with ``*COUNT`` for parameters without a role; and with ``loraR:``
    the pair of a LoRA of rank R on a layer of A outputs and B inputs. Raises UserError for what is none of these.
    """
    shapes: Shapes = []
    for number, item in enumerate(text.replace(" ", "").split(",")):
        shapes += SETS[item]() if item in SETS else _listed(item, number)
    if (elements := sum(math.prod(shape) for _, shape in shapes)) > LARGEST:
        raise UserError(f"--shapes {text}: {elements:,} elements are more than {LARGEST:,}; give a part of them")
    return shapes


def _listed(item: str, number: int) -> Shapes:
    match = _ITEM.fullmatch(item)
    if match is None:
        hint = did_you_mean(item, SETS) if re.match(r"(?!lora\d)[A-Za-z]", item) else f"sets: {', '.join(SETS)}"
        raise UserError(f"--shapes: {item!r} is neither a set nor a shape; write {_EXAMPLE}; {hint}")
    shape = tuple(map(int, match["shape"].split("x")))
    rank, count = match["rank"], int(match["count"] or 1)
    if not all((*shape, count, int(rank or 1))):
        raise UserError(f"--shapes: {item!r} has a 0; write {_EXAMPLE}")
    if rank is None:
        return [(f"part{number}.{index}.weight", shape) for index in range(count)]
    if len(shape) != 2:
        raise UserError(f"--shapes: {item!r} is a LoRA and needs two sizes, outputs x inputs; write {_EXAMPLE}")
    layers = [Linear(f"lora_unet_part{number}_{index}", *shape) for index in range(count)]
    return lora(lambda: iter(layers), int(rank))
