"""Text encoders as `transformers` 4.54 names them; older ones have CLIPSdpaAttention, which networks look for, too."""

from hina_kohya.trainers.facts.architectures.node import Node, block, layer_norm, linear, listed, repeated, rms_norm


def clip(width: int, layers: int, projection: bool = False) -> Node:
    layer = block(
        "CLIPEncoderLayer",
        self_attn=block(
            "CLIPAttention", k_proj=linear(width), v_proj=linear(width), q_proj=linear(width), out_proj=linear(width)
        ),
        layer_norm1=layer_norm(width),
        mlp=block("CLIPMLP", fc1=linear(4 * width, width), fc2=linear(width, 4 * width)),
        layer_norm2=layer_norm(width),
    )
    text_model = block(
        "CLIPTextTransformer",
        encoder=block("CLIPEncoder", layers=repeated(layers, layer)),
        final_layer_norm=layer_norm(width),
    )
    if not projection:
        return block("CLIPTextModel", text_model=text_model)
    return block("CLIPTextModelWithProjection", text_model=text_model, text_projection=linear(width, width, bias=False))


def t5_xxl() -> Node:
    width, inner = 4096, 10240
    norm = rms_norm(width, "T5LayerNorm", has_norm=False)
    whole, widen, narrow = (linear(*shape, bias=False) for shape in ((width,), (inner, width), (width, inner)))
    attention = block("T5Attention", q=whole, k=whole, v=whole, o=whole)
    feed_forward = block("T5DenseGatedActDense", wi_0=widen, wi_1=widen, wo=narrow)
    layer = listed(
        block("T5LayerSelfAttention", SelfAttention=attention, layer_norm=norm),
        block("T5LayerFF", DenseReluDense=feed_forward, layer_norm=norm),
    )
    stack = block("T5Stack", block=repeated(24, block("T5Block", layer=layer)), final_layer_norm=norm)
    return block("T5EncoderModel", encoder=stack)


def gemma2_2b() -> Node:
    width, heads, groups, inner = 2304, 8 * 256, 4 * 256, 9216
    norm = rms_norm(width, "Gemma2RMSNorm")
    layer = block(
        "Gemma2DecoderLayer",
        self_attn=_attention("Gemma2Attention", width, heads, groups),
        mlp=_gated("Gemma2MLP", width, inner),
        input_layernorm=norm,
        post_attention_layernorm=norm,
        pre_feedforward_layernorm=norm,
        post_feedforward_layernorm=norm,
    )
    return block("Gemma2Model", layers=repeated(26, layer), norm=norm)


def qwen3_06b() -> Node:
    width, heads, groups, inner = 1024, 16 * 128, 8 * 128, 3072
    norm = rms_norm(width, "Qwen3RMSNorm", has_norm=False)
    head = rms_norm(128, "Qwen3RMSNorm", has_norm=False)
    layer = block(
        "Qwen3DecoderLayer",
        self_attn=_attention("Qwen3Attention", width, heads, groups, q_norm=head, k_norm=head),
        mlp=_gated("Qwen3MLP", width, inner),
        input_layernorm=norm,
        post_attention_layernorm=norm,
    )
    return block("Qwen3Model", layers=repeated(28, layer), norm=norm)


def _attention(cls: str, width: int, heads: int, groups: int, **norms: Node) -> Node:
    return block(
        cls,
        q_proj=linear(heads, width, bias=False),
        k_proj=linear(groups, width, bias=False),
        v_proj=linear(groups, width, bias=False),
        o_proj=linear(width, heads, bias=False),
        **norms,
    )


def _gated(cls: str, width: int, inner: int) -> Node:
    widen = linear(inner, width, bias=False)
    return block(cls, gate_proj=widen, up_proj=widen, down_proj=linear(width, inner, bias=False))
