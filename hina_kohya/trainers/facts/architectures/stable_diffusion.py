"""U-Nets of SD 1.x, 2.x (`library.original_unet`) and SDXL (`library.sdxl_original_unet`)."""

from hina_kohya.trainers.facts.architectures.node import (
    Node,
    block,
    conv2d,
    group_norm,
    layer_norm,
    leaf,
    linear,
    listed,
    repeated,
    sequential,
)

TIME = 1280  # width of the time embedding
_IDENTITY, _SILU = leaf("Identity"), leaf("SiLU")


def transformer(width: int, context: int, depth: int, projection: Node) -> Node:
    def attention(keys: int) -> Node:
        return block(
            "CrossAttention",
            to_q=linear(width, bias=False),
            to_k=linear(width, keys, bias=False),
            to_v=linear(width, keys, bias=False),
            to_out=listed(linear(width)),
        )

    gated = block("GEGLU", proj=linear(8 * width, width))
    layer = block(
        "BasicTransformerBlock",
        attn1=attention(width),
        ff=block("FeedForward", net=listed(gated, _IDENTITY, linear(width, 4 * width))),
        attn2=attention(context),
        norm1=layer_norm(width),
        norm2=layer_norm(width),
        norm3=layer_norm(width),
    )
    return block(
        "Transformer2DModel",
        norm=group_norm(width),
        proj_in=projection,
        transformer_blocks=repeated(depth, layer),
        proj_out=projection,
    )


def unet(context: int) -> Node:
    """SD 1.x and 2.x. A 2.x model loaded from a Diffusers folder has Linear projections of the same size."""
    widths = (320, 640, 1280, 1280)

    def attention(width: int) -> Node:
        return transformer(width, context, 1, conv2d(width, width, 1))

    def down(width: int, before: int, deepest: bool) -> Node:
        resnets = listed(_resnet(width, before), _resnet(width, width))
        if deepest:
            return block("DownBlock2D", resnets=resnets)
        return block(
            "CrossAttnDownBlock2D",
            attentions=repeated(2, attention(width)),
            resnets=resnets,
            downsamplers=listed(block("Downsample2D", conv=conv2d(width, width, 3))),
        )

    def up(level: int) -> Node:
        width, below = widths[level], widths[min(level + 1, 3)]
        skips = (width, width, widths[max(level - 1, 0)])
        resnets = listed(*(_resnet(width, (below if i == 0 else width) + skip) for i, skip in enumerate(skips)))
        upsamplers = {"upsamplers": listed(block("Upsample2D", conv=conv2d(width, width, 3)))} if level else {}
        if level == 3:
            return block("UpBlock2D", resnets=resnets, **upsamplers)
        attentions = repeated(3, attention(width))
        return block("CrossAttnUpBlock2D", attentions=attentions, resnets=resnets, **upsamplers)

    middle = widths[-1]
    return block(
        "UNet2DConditionModel",
        conv_in=conv2d(widths[0], 4, 3),
        time_embedding=block("TimestepEmbedding", linear_1=linear(TIME, widths[0]), linear_2=linear(TIME)),
        down_blocks=listed(*(down(width, widths[max(i - 1, 0)], i == 3) for i, width in enumerate(widths))),
        up_blocks=listed(*map(up, (3, 2, 1, 0))),
        mid_block=block(
            "UNetMidBlock2DCrossAttn",
            attentions=listed(attention(middle)),
            resnets=repeated(2, _resnet(middle, middle)),
        ),
        conv_norm_out=group_norm(widths[0]),
        conv_out=conv2d(4, widths[0], 3),
    )


def _resnet(width: int, inputs: int) -> Node:
    shortcut = {} if inputs == width else {"conv_shortcut": conv2d(width, inputs, 1)}
    return block(
        "ResnetBlock2D",
        norm1=group_norm(inputs),
        conv1=conv2d(width, inputs, 3),
        time_emb_proj=linear(width, TIME),
        norm2=group_norm(width),
        conv2=conv2d(width, width, 3),
        **shortcut,
    )


def sdxl_unet() -> Node:
    widths, depths, context = (320, 640, 1280), (0, 2, 10), 2048

    def step(level: int, inputs: int, *more: Node) -> Node:
        return listed(_sdxl_resnet(widths[level], inputs), *attention(level), *more)

    def attention(level: int) -> list[Node]:
        width = widths[level]
        return [transformer(width, context, depths[level], linear(width))] if depths[level] else []

    inputs, outputs = [sequential(conv2d(widths[0], 4, 3))], []
    skips = [widths[0]]
    for level, width in enumerate(widths):
        for before in (skips[-1], width):
            inputs.append(step(level, before))
            skips.append(width)
        if level < 2:
            inputs.append(sequential(block("Downsample2D", op=conv2d(width, width, 3))))
            skips.append(width)
    for level, width in reversed(list(enumerate(widths))):
        for place in range(3):
            before = widths[level + 1] if place == 0 and level < 2 else width
            upsample = [block("Upsample2D", conv=conv2d(width, width, 3))] if place == 2 and level else []
            outputs.append(step(level, before + skips.pop(), *upsample))
    middle = _sdxl_resnet(widths[2], widths[2])
    return block(
        "SdxlUNet2DConditionModel",
        time_embed=sequential(linear(TIME, widths[0]), _SILU, linear(TIME)),
        label_emb=sequential(sequential(linear(TIME, 2816), _SILU, linear(TIME))),
        input_blocks=listed(*inputs),
        middle_block=listed(middle, *attention(2), middle),
        output_blocks=listed(*outputs),
        out=listed(group_norm(widths[0], "GroupNorm32"), _SILU, conv2d(4, widths[0], 3)),
    )


def _sdxl_resnet(width: int, inputs: int) -> Node:
    return block(
        "ResnetBlock2D",
        in_layers=sequential(group_norm(inputs, "GroupNorm32"), _SILU, conv2d(width, inputs, 3)),
        emb_layers=sequential(_SILU, linear(width, TIME)),
        out_layers=sequential(group_norm(width, "GroupNorm32"), _SILU, _IDENTITY, conv2d(width, width, 3)),
        skip_connection=_IDENTITY if inputs == width else conv2d(width, inputs, 1),
    )
