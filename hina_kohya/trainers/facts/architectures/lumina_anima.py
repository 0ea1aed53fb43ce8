"""Diffusion transformers without biases: Lumina 2 (`lumina_models`) and Anima (`anima_models`)."""

import functools

from hina_kohya.trainers.facts.architectures.node import (
    Node,
    block,
    layer_norm,
    leaf,
    linear,
    repeated,
    rms_norm,
    sequential,
)

_SILU, _GELU = leaf("SiLU"), leaf("GELU")
_plain = functools.partial(linear, bias=False)


def lumina2() -> Node:
    width, inner, time, heads, groups, head = 2304, 9216, 1024, 24, 8, 96
    norm, head_norm = rms_norm(width), rms_norm(head)

    def layer(modulated: bool) -> Node:
        return block(
            "JointTransformerBlock",
            attention=block(
                "JointAttention",
                qkv=_plain((heads + 2 * groups) * head, width),
                out=_plain(width),
                q_norm=head_norm,
                k_norm=head_norm,
            ),
            feed_forward=block(
                "FeedForward", w1=_plain(inner, width), w2=_plain(width, inner), w3=_plain(inner, width)
            ),
            attention_norm1=norm,
            ffn_norm1=norm,
            attention_norm2=norm,
            ffn_norm2=norm,
            **({"adaLN_modulation": sequential(_SILU, linear(4 * width, time))} if modulated else {}),
        )

    return block(
        "NextDiT",
        t_embedder=block("TimestepEmbedder", mlp=sequential(linear(time, 256), _SILU, linear(time))),
        cap_embedder=sequential(norm, linear(width)),
        context_refiner=repeated(2, layer(modulated=False)),
        x_embedder=linear(width, 64),
        noise_refiner=repeated(2, layer(modulated=True)),
        layers=repeated(26, layer(modulated=True)),
        norm_final=norm,
        final_layer=block(
            "FinalLayer",
            norm_final=layer_norm(width, affine=False),
            linear=linear(64, width),
            adaLN_modulation=sequential(_SILU, linear(width, time)),
        ),
    )


def anima() -> Node:
    width, inner, low, text = 2048, 8192, 256, 1024

    def attention(keys: int) -> Node:
        return block(
            "Attention",
            q_proj=_plain(width),
            q_norm=rms_norm(128),
            k_proj=_plain(width, keys),
            k_norm=rms_norm(128),
            v_proj=_plain(width, keys),
            output_proj=_plain(width),
        )

    def modulation(outputs: int) -> Node:
        return sequential(_SILU, _plain(low, width), _plain(outputs * width, low))

    still = layer_norm(width, affine=False)
    layer = block(
        "Block",
        layer_norm_self_attn=still,
        self_attn=attention(width),
        layer_norm_cross_attn=still,
        cross_attn=attention(text),
        layer_norm_mlp=still,
        mlp=block("GPT2FeedForward", layer1=_plain(inner, width), layer2=_plain(width, inner)),
        adaln_modulation_self_attn=modulation(3),
        adaln_modulation_cross_attn=modulation(3),
        adaln_modulation_mlp=modulation(3),
    )
    return block(
        "Anima",
        x_embedder=block("PatchEmbed", proj=sequential(leaf("Rearrange"), _plain(width, (16 + 1) * 4))),
        t_embedder=sequential(
            leaf("Timesteps"),
            block("TimestepEmbedding", linear_1=_plain(width), linear_2=_plain(3 * width, width)),
        ),
        llm_adapter=_adapter(text),
        blocks=repeated(28, layer),
        final_layer=block("FinalLayer", layer_norm=still, linear=_plain(64, width), adaln_modulation=modulation(2)),
        t_embedding_norm=rms_norm(width),
    )


def _adapter(width: int) -> Node:
    norm = rms_norm(width, "LLMAdapterRMSNorm", has_norm=False)
    head = rms_norm(64, "LLMAdapterRMSNorm", has_norm=False)
    attention = block(
        "LLMAdapterAttention",
        q_proj=_plain(width),
        q_norm=head,
        k_proj=_plain(width),
        k_norm=head,
        v_proj=_plain(width),
        o_proj=_plain(width),
    )
    layer = block(
        "LLMAdapterTransformerBlock",
        norm_self_attn=norm,
        self_attn=attention,
        norm_cross_attn=norm,
        cross_attn=attention,
        norm_mlp=norm,
        mlp=sequential(linear(4 * width, width), _GELU, linear(width, 4 * width)),
    )
    return block("LLMAdapter", blocks=repeated(6, layer), out_proj=linear(width), norm=norm)
