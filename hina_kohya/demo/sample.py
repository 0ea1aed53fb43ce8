"""DDIM sampling with classifier-free guidance; a seed and a position in the list fix the noise of an image."""

from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from .model import DigitModel

STEPS = 16
GUIDANCE = 2.0
CHUNK = 100


@torch.no_grad()
def sample(
    model: DigitModel, captions: list[str], seed: int, steps: int = STEPS, guidance: float = GUIDANCE
) -> torch.Tensor:
    """One image a caption, [n, 8, 8] in [-1, 1] on the CPU. Base and adapted model get equal noise from equal seeds."""
    scheduler: Any = DDIMScheduler.from_config(model.scheduler.config, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    noise = torch.randn((len(captions), 1, 8, 8), generator=torch.Generator().manual_seed(seed))
    images = []
    for start in range(0, len(captions), CHUNK):
        x = noise[start : start + CHUNK].to(model.device)
        text = model.encode(["", *captions[start : start + CHUNK]])
        context = torch.cat([text[:1].expand(len(x), -1, -1), text[1:]])
        for t in scheduler.timesteps:
            plain, conditional = model.unet(torch.cat([x, x]), t, context).sample.chunk(2)
            x = scheduler.step(plain + guidance * (conditional - plain), t, x).prev_sample  # type: ignore[arg-type]
        images.append(x.clamp(-1, 1).squeeze(1).float().cpu())
    return torch.cat(images)
