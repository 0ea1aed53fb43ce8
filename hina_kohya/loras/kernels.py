"""Which layers of a U-Net are convolutions: LoHa and LoKr files have their factors as matrices and do not say.

A LoRA of a 1x1 convolution has to be four-dimensional for sd-scripts and LyCORIS to load it; ComfyUI takes either.
"""

from hina_kohya.loras.names import UNET, Place

_THREE = ("conv1", "conv2", "conv_in", "conv_out", "conv")
_PROJECTIONS = ("proj_in", "proj_out")  # 1x1 convolutions in SD 1.x, linear in SD 2.x and SDXL


def kernel(place: Place, is_sd1: bool) -> tuple[int, ...]:
    """() for a linear layer; place of a U-Net of SD 1.x, 2.x or SDXL."""
    last = place.path.rpartition(".")[2]
    if place.part != UNET:
        return ()
    if last in _THREE:
        return (3, 3)
    if last == "conv_shortcut" or (is_sd1 and last in _PROJECTIONS and ".attentions." in place.path):
        return (1, 1)
    return ()
