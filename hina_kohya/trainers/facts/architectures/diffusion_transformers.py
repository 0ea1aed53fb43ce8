"""Diffusion transformers: SD 3.5 (`sd3_models`), FLUX.1 (`flux_models`), HunyuanImage 2.1 (`hunyuan_image_models`)."""

from hina_kohya.trainers.facts.architectures.node import (
    Node,
    block,
    conv2d,
    layer_norm,
    leaf,
    linear,
    listed,
    repeated,
    rms_norm,
    sequential,
)

_SILU, _GELU = leaf("SiLU"), leaf("GELU")


def mmdit(width: int, depth: int, dual: int) -> Node:
    """SD 3.5: the first `dual` blocks have a second self-attention, the last one ends the text stream."""
    blocks = [
        block(
            "MMDiTBlock",
            context_block=_single_dit(width, ends=index == depth - 1),
            x_block=_single_dit(width, dual=index < dual),
        )
        for index in range(depth)
    ]
    return block(
        "MMDiT",
        x_embedder=block("PatchEmbed", proj=conv2d(width, 16, 2)),
        t_embedder=block("TimestepEmbedding", mlp=_mlp(width, 256)),
        y_embedder=block("Embedder", mlp=_mlp(width, 2048)),
        context_embedder=linear(width, 4096),
        joint_blocks=listed(*blocks),
        final_layer=_last("UnPatch", width),
    )


def _single_dit(width: int, dual: bool = False, ends: bool = False) -> Node:
    head, still = rms_norm(64, has_norm=False), layer_norm(width, affine=False)

    def attention(**proj: Node) -> Node:
        return block("AttentionLinears", qkv=linear(3 * width, width), **proj, ln_q=head, ln_k=head)

    if ends:
        modulation = sequential(_SILU, linear(2 * width, width))
        return block("SingleDiTBlock", norm1=still, attn=attention(), adaLN_modulation=modulation)
    whole = attention(proj=linear(width))
    return block(
        "SingleDiTBlock",
        norm1=still,
        attn=whole,
        **({"attn2": whole} if dual else {}),
        norm2=still,
        mlp=block("MLP", fc1=linear(4 * width, width), fc2=linear(width, 4 * width)),
        adaLN_modulation=sequential(_SILU, linear((9 if dual else 6) * width, width)),
    )


def flux(guidance: bool = True) -> Node:
    """FLUX.1 dev; schnell lacks `guidance_in`, which no network trains unless asked to."""
    width, inner = 3072, 4 * 3072
    head = rms_norm(128, weight="scale", has_norm=False)
    norm, still = block("QKNorm", query_norm=head, key_norm=head), layer_norm(width, affine=False)
    stream = {
        "mod": block("Modulation", lin=linear(6 * width, width)),
        "norm1": still,
        "attn": block("SelfAttention", qkv=linear(3 * width, width), norm=norm, proj=linear(width)),
        "norm2": still,
        "mlp": sequential(linear(inner, width), _GELU, linear(width, inner)),
    }
    double = {f"{side}_{name}": node for side in ("img", "txt") for name, node in stream.items()}
    single = block(
        "SingleStreamBlock",
        linear1=linear(3 * width + inner, width),
        linear2=linear(width, width + inner),
        norm=norm,
        pre_norm=still,
        modulation=block("Modulation", lin=linear(3 * width, width)),
    )

    def embedder(inputs: int) -> Node:
        return block("MLPEmbedder", in_layer=linear(width, inputs), out_layer=linear(width))

    return block(
        "Flux",
        img_in=linear(width, 64),
        time_in=embedder(256),
        vector_in=embedder(768),
        **({"guidance_in": embedder(256)} if guidance else {}),
        txt_in=linear(width, 4096),
        double_blocks=repeated(19, block("DoubleStreamBlock", **double)),
        single_blocks=repeated(38, single),
        final_layer=_last("LastLayer", width),
    )


def hunyuan_image() -> Node:
    width, inner, text = 3584, 4 * 3584, 3584
    head, still = rms_norm(128), layer_norm(width, affine=False)
    mlp = block("MLP", fc1=linear(inner, width), fc2=linear(width, inner))
    stream = {
        "mod": block("ModulateDiT", linear=linear(6 * width, width)),
        "norm1": still,
        "attn_qkv": linear(3 * width, width),
        "attn_q_norm": head,
        "attn_k_norm": head,
        "attn_proj": linear(width),
        "norm2": still,
        "mlp": mlp,
    }
    double = {f"{side}_{name}": node for side in ("img", "txt") for name, node in stream.items()}
    single = block(
        "MMSingleStreamBlock",
        linear1=linear(3 * width + inner, width),
        linear2=linear(width, width + inner),
        q_norm=head,
        k_norm=head,
        pre_norm=still,
        modulation=block("ModulateDiT", linear=linear(3 * width, width)),
    )
    refiner = block(
        "IndividualTokenRefinerBlock",
        norm1=layer_norm(width),
        self_attn_qkv=linear(3 * width, width),
        self_attn_proj=linear(width),
        norm2=layer_norm(width),
        mlp=mlp,
        adaLN_modulation=sequential(_SILU, linear(2 * width, width)),
    )
    time = block("TimestepEmbedder", mlp=_mlp(width, 256))
    return block(
        "HYImageDiffusionTransformer",
        byt5_in=block(
            "ByT5Mapper",
            layernorm=layer_norm(1472),
            fc1=linear(2048, 1472),
            fc2=linear(2048),
            fc3=linear(width, 2048),
        ),
        img_in=block("PatchEmbed2D", proj=conv2d(width, 64, 1)),
        txt_in=block(
            "SingleTokenRefiner",
            input_embedder=linear(width, text),
            t_embedder=time,
            c_embedder=block("TextProjection", linear_1=linear(width, text), linear_2=linear(width)),
            individual_token_refiner=block("IndividualTokenRefiner", blocks=repeated(2, refiner)),
        ),
        time_in=time,
        double_blocks=repeated(20, block("MMDoubleStreamBlock", **double)),
        single_blocks=repeated(40, single),
        final_layer=_last("FinalLayer", width),
    )


def _mlp(width: int, inputs: int) -> Node:
    return sequential(linear(width, inputs), _SILU, linear(width))


def _last(cls: str, width: int) -> Node:
    return block(
        cls,
        norm_final=layer_norm(width, affine=False),
        linear=linear(64, width),
        adaLN_modulation=sequential(_SILU, linear(2 * width, width)),
    )
