"""Models that sd-scripts trains, as skeletons that a network can be made on before any model is loaded."""

import dataclasses as dc
from collections.abc import Callable

from hina_kohya.text import did_you_mean
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.facts.architectures import diffusion_transformers, lumina_anima, stable_diffusion
from hina_kohya.trainers.facts.architectures.node import Node, build, leaf
from hina_kohya.trainers.facts.architectures.text_encoders import clip, gemma2_2b, qwen3_06b, t5_xxl

__all__ = ["ARCHITECTURES", "Architecture", "build", "get"]


@dc.dataclass(frozen=True)
class Architecture:
    """What a trainer of sd-scripts hands to `create_network`.

    unet               : the skeleton of the U-Net or transformer
    text_encoders      : those of the text encoders, in the trainer's order
    lone_text_encoder  : the trainer hands over the text encoder itself, and not a list
    """

    name: str
    title: str
    unet: Callable[[], Node]
    text_encoders: Callable[[], tuple[Node, ...]]
    lone_text_encoder: bool = False


def _clip_pair() -> tuple[Node, Node]:
    return clip(768, 12, projection=True), clip(1280, 32, projection=True)


ARCHITECTURES: dict[str, Architecture] = {
    each.name: each
    for each in (
        Architecture("sd15", "SD 1.x", lambda: stable_diffusion.unet(768), lambda: (clip(768, 12),), True),
        Architecture("sd2", "SD 2.x", lambda: stable_diffusion.unet(1024), lambda: (clip(1024, 23),), True),
        Architecture(
            "sdxl", "SDXL", stable_diffusion.sdxl_unet, lambda: (clip(768, 12), clip(1280, 32, projection=True))
        ),
        Architecture(
            "sd3.5-medium",
            "SD 3.5 medium",
            lambda: diffusion_transformers.mmdit(1536, 24, dual=13),
            lambda: (*_clip_pair(), t5_xxl()),
        ),
        Architecture(
            "sd3.5-large",
            "SD 3.5 large",
            lambda: diffusion_transformers.mmdit(2432, 38, dual=0),
            lambda: (*_clip_pair(), t5_xxl()),
        ),
        Architecture("flux1", "FLUX.1", diffusion_transformers.flux, lambda: (clip(768, 12), t5_xxl())),
        Architecture("lumina2", "Lumina 2", lumina_anima.lumina2, lambda: (gemma2_2b(),)),
        Architecture(
            "hunyuan-image",
            "HunyuanImage 2.1",
            diffusion_transformers.hunyuan_image,
            # No network has targets in them, and the trainer trains neither.
            lambda: (leaf("Qwen2_5_VLForConditionalGeneration"), leaf("T5Stack")),
        ),
        Architecture("anima", "Anima", lumina_anima.anima, lambda: (qwen3_06b(),)),
    )
}


def get(name: str) -> Architecture:
    """An architecture by name. Raises UserError."""
    if name not in ARCHITECTURES:
        raise UserError(f"there is no architecture {name!r}; {did_you_mean(name, ARCHITECTURES)}")
    return ARCHITECTURES[name]
