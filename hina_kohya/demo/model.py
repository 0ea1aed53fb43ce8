"""The small text-to-image model: CLIP tokenizer and text model, U-Net, DDPM scheduler, as diffusers lays them out."""

import dataclasses as dc
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from transformers import CLIPTextModel, CLIPTokenizer

from .data import Batch
from .settings import BASE_MODEL

MAX_TOKENS = 10


@dc.dataclass
class DigitModel:
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    scheduler: DDPMScheduler

    @classmethod
    def load(cls, folder: Path = BASE_MODEL) -> "DigitModel":
        """Read a diffusers-style folder; the fp16 weights become fp32."""

        def read(kind: Any, name: str, **how: Any) -> Any:  # Any: both libraries mistype what from_pretrained returns
            return kind.from_pretrained(folder / name, local_files_only=True, **how)

        return cls(
            read(CLIPTokenizer, "tokenizer"),
            read(CLIPTextModel, "text_encoder", torch_dtype=torch.float32),
            read(UNet2DConditionModel, "unet", torch_dtype=torch.float32),
            read(DDPMScheduler, "scheduler"),
        )

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder / "tokenizer")
        self.text_encoder.half().save_pretrained(folder / "text_encoder")
        self.unet.half().save_pretrained(folder / "unet")
        self.scheduler.save_pretrained(folder / "scheduler")

    @property
    def device(self) -> torch.device:
        return self.unet.device

    def to(self, device: torch.device | str) -> "DigitModel":
        self.text_encoder.to(device)  # type: ignore[arg-type]
        self.unet.to(device)  # type: ignore[arg-type]
        return self

    def freeze(self) -> "DigitModel":
        for module in (self.text_encoder, self.unet):
            module.requires_grad_(False)
            module.eval()
        return self

    def encode(self, captions: list[str]) -> torch.Tensor:
        """[B, MAX_TOKENS, C]. Equal captions are encoded once: a batch holds only a few different ones."""
        unique = sorted(set(captions))
        tokens = self.tokenizer(
            unique, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
        ).input_ids.to(self.device)
        hidden = self.text_encoder(tokens).last_hidden_state
        return hidden[[unique.index(c) for c in captions]]

    def loss(self, batch: Batch) -> torch.Tensor:
        """Mean squared error of the velocity (v prediction), as any diffusion trainer computes it."""
        pixels, noise = batch.pixels.to(self.device), batch.noise.to(self.device)
        timesteps = batch.timesteps.to(self.device)
        noisy = self.scheduler.add_noise(pixels, noise, timesteps)  # type: ignore[arg-type]
        target = self.scheduler.get_velocity(pixels, noise, timesteps)  # type: ignore[arg-type]
        output = self.unet(noisy, timesteps, self.encode(batch.captions)).sample
        return F.mse_loss(output.float(), target)
