"""How the models of each trainer are given the timestep: classes, or their bases, by name. Data only."""

import dataclasses as dc


@dc.dataclass(frozen=True)
class Timestep:
    """How a model is given the timestep of each sample.

    argument: of its forward, by keyword or by position
    largest : the timestep runs from 0 to this
    falls   : it is `largest` for the image and 0 for noise alone, the other way round than most
    """

    argument: str
    largest: float = 1000.0
    falls: bool = False


SD_SCRIPTS: dict[str, Timestep] = {
    "UNet2DConditionModel": Timestep("timestep"),
    "SdxlUNet2DConditionModel": Timestep("timesteps"),
    "MMDiT": Timestep("t"),
    "Flux": Timestep("timesteps", 1.0),  # and Chroma
    "Anima": Timestep("timesteps", 1.0),
    "NextDiT": Timestep("t", 1.0, falls=True),
    "HYImageDiffusionTransformer": Timestep("timestep"),
}

MUSUBI: dict[str, Timestep] = {
    "WanModel": Timestep("t"),
    "HYVideoDiffusionTransformer": Timestep("t"),
    "HunyuanVideo_1_5_DiffusionTransformer": Timestep("timestep"),
    "HunyuanVideoTransformer3DModelPacked": Timestep("timestep"),  # FramePack
    "DiffusionTransformer3D": Timestep("time"),  # Kandinsky 5, one sample at a time
    "Flux": Timestep("timesteps", 1.0),  # Kontext
    "Flux2": Timestep("timesteps", 1.0),
    "QwenImageTransformer2DModel": Timestep("timestep", 1.0),
    "SingleStreamDiT": Timestep("t", 1.0),  # Krea 2
    "ZImageTransformer2DModel": Timestep("t", 1.0, falls=True),
    "Ideogram4Transformer": Timestep("t", 1.0, falls=True),
    "Qwen3VLForConditionalGeneration": Timestep("timestep", 1.0, falls=True),  # HiDream-O1
}
