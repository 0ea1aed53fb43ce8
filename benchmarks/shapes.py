"""Parameter sets with the names and shapes that real training gives an optimizer.

``sdxl-lora-rR`` : LoRA on the 700 linear layers of the transformer blocks of the SDXL U-Net; r = 8 is "the LoRA set".
``kohya-lora-r8``: what sd-scripts' networks.lora trains on SDXL: also proj_in, proj_out and both text encoders.
``sdxl-lokr-f8-dD``, ``sdxl-lokr-f8-full``: LyCORIS LoKr with factor 8 on the same 700 layers.
``embedded-lora``, ``embedded-lokr``: the adapter of the embedded trainer, made by LyCORIS itself.
"""

import dataclasses as dc
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

Named = list[tuple[str, Tensor]]


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


def lora(layers: Callable[[], Iterator[Linear]], rank: int) -> Named:
    named: Named = []
    for layer in layers():
        named.append((f"{layer.name}.lora_down.weight", torch.empty(rank, layer.inp)))
        named.append((f"{layer.name}.lora_up.weight", torch.empty(layer.out, rank)))
    return named


def lokr(layers: Callable[[], Iterator[Linear]], factor: int, dim: int | None) -> Named:
    """As `lycoris.modules.lokr` shapes linear layers; ``dim`` None is full_matrix."""
    from lycoris.functional.general import factorization  # noqa: PLC0415

    named: Named = []
    for layer in layers():
        (out1, out2), (in1, in2) = factorization(layer.out, factor), factorization(layer.inp, factor)
        named.append((f"{layer.name}.lokr_w1", torch.empty(out1, in1)))
        if dim is None or dim >= max(out2, in2) / 2:
            named.append((f"{layer.name}.lokr_w2", torch.empty(out2, in2)))
        else:
            named.append((f"{layer.name}.lokr_w2_a", torch.empty(out2, dim)))
            named.append((f"{layer.name}.lokr_w2_b", torch.empty(dim, in2)))
    return named


def embedded(algo: str) -> Named:
    from benchmarks.digits import Run  # noqa: PLC0415

    return [(name, torch.empty_like(p)) for name, p in Run(algo).network.named_parameters() if p.requires_grad]


SETS: dict[str, Callable[[], Named]] = {
    **{f"sdxl-lora-r{rank}": partial(lora, sdxl_blocks, rank) for rank in (4, 8, 16, 64)},
    "kohya-lora-r8": partial(lora, kohya_layers, 8),
    "sdxl-lokr-f8-d8": partial(lokr, sdxl_blocks, 8, 8),
    "sdxl-lokr-f8-full": partial(lokr, sdxl_blocks, 8, None),
    "embedded-lora": partial(embedded, "lora"),
    "embedded-lokr": partial(embedded, "lokr"),
}


def make(name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> Named:
    """The set with random values, as after some training: no factor is zero."""
    generator = torch.Generator().manual_seed(seed)
    made: Named = []
    for parameter_name, empty in SETS[name]():
        values = torch.randn(empty.shape, generator=generator).mul_(0.02).to(device, dtype)
        made.append((parameter_name, values.requires_grad_()))
    return made


def describe(named: Named) -> dict[str, int]:
    return {
        "parameters": sum(p.numel() for _, p in named),
        "tensors": len(named),
        "shapes": len({p.shape for _, p in named}),
    }
