"""Images that are held out: the loss on them at fixed timesteps with fixed noise, the best adapter, an early end."""

from pathlib import Path
from typing import Any

import torch

from hina_kohya.trainers.best import Best
from hina_kohya.trainers.held_out import HeldOut
from hina_kohya.trainers.network_args import HELD_OUT, BestOptions, best_options

from .data import Batch, DigitImages, caption
from .errors import UserError
from .settings import Settings

TIMESTEPS = (200, 400, 600, 800)  # where sd-scripts validates


def options_of(settings: Settings) -> BestOptions:
    """Raises UserError where images must be held out and none are."""
    options = best_options(settings.network_args)
    if options.held_out:
        raise UserError(
            f"network_args: {options}: hina-kohya train holds images out by itself; give --validation_split 0.1 in the "
            f"place of {HELD_OUT}"
        )
    if options and not settings.validation_split:
        raise UserError(
            f"network_args: {options} needs images that are held out, and there are none: give --validation_split 0.1"
        )
    return options


class Validation:
    """Of one run; it takes its images out of `data`. Raises UserError where that leaves none on either side."""

    def __init__(self, settings: Settings, data: DigitImages, accelerator: Any):
        seed = settings.seed if settings.validation_seed is None else settings.validation_seed
        self.every = settings.validate_every_n_steps
        self.ends = False
        pixels, labels = data.hold_out(settings.validation_split, seed)
        generator = torch.Generator().manual_seed(seed)
        captions = [caption(int(label)) for label in labels]
        self._batches = [
            Batch(pixels, torch.randn(pixels.shape, generator=generator), torch.full_like(labels, timestep), captions)
            for timestep in TIMESTEPS
        ]
        self._held_out = HeldOut(options_of(settings), settings, accelerator, seed, end=self._end)

    @property
    def best(self) -> Best:
        return self._held_out.best

    @property
    def best_file(self) -> Path | None:
        """None where it is not asked for, or not written yet."""
        file = self._held_out.file
        return file if self._held_out.options.keep_best and file.is_file() else None

    def __len__(self) -> int:
        """Images that are held out."""
        return len(self._batches[0].captions)

    def _end(self, _settings: Any, _step: int) -> None:
        self.ends = True

    @torch.no_grad()
    def run(self, trainer: Any) -> None:
        """After a step, between two of them."""
        trainer.set_optimizer_mode(training=False)
        trainer.network.eval()
        with trainer.accelerator.autocast():
            self._held_out.losses += [trainer.model.loss(batch) for batch in self._batches]
        run = {"self": trainer, "args": trainer.settings, "accelerator": trainer.accelerator}
        run |= {"network": trainer.network, "epoch": trainer.epoch - 1, "save_model": trainer.save_best}
        self._held_out.judge(run, trainer.step)
        trainer.network.train()
        trainer.set_optimizer_mode(training=True)
