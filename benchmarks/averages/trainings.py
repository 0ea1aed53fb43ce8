"""What is trained: an adapter that takes steps, is saved, and is judged by data that it never trains on.

That data is split in two: one part chooses (the best file, the greedy soup), the other judges. Noise and timesteps are
the same for all.
"""

import abc
import dataclasses as dc
from pathlib import Path
from typing import Literal

import torch
from torch.optim import Optimizer

from benchmarks.convergence.task import Named

Part = Literal["chooses", "judges"]


class Training(abc.ABC):
    """named: what is trained, and averaged"""

    named: Named
    optimizer: Optimizer

    @abc.abstractmethod
    def advance(self) -> None:
        """One step."""

    @abc.abstractmethod
    def save(self, step: int) -> Path: ...

    @abc.abstractmethod
    def load(self, file: Path) -> None: ...

    @abc.abstractmethod
    def loss(self, part: Part) -> float:
        """Of the weights as they are."""


class Digits(Training):
    """The demo's LoKr, in smaller batches, which have the noise of a user's."""

    CONFIG = "configs/training/digits_lokr.toml"
    TIMESTEPS = 8

    def __init__(self, seed: int, steps: int, words: str, folder: Path):
        from hina_kohya.demo.loop import Trainer  # noqa: PLC0415 (seconds of import)
        from hina_kohya.demo.model import DigitModel  # noqa: PLC0415
        from hina_kohya.demo.settings import read_settings  # noqa: PLC0415

        settings = read_settings(
            [*f"--config_file {self.CONFIG} --train_batch_size 8 --max_train_steps {steps} --judge 0 {words}".split(),
             "--seed", str(seed), "--output_dir", str(folder)])  # fmt: skip
        self.trainer = Trainer(dc.replace(settings, logging_dir=None), DigitModel.load())
        self.named, self.optimizer = list(self.trainer.network.named_parameters()), self.trainer.raw_optimizer
        self.trainer.network.on_epoch_start(self.trainer.model.text_encoder, self.trainer.model.unet)
        self._data = {"chooses": self._held_out(0), "judges": self._held_out(1)}

    def _held_out(self, number: int):
        """Every second of the images that neither the base model nor an adapter has seen, each at all timesteps."""
        from hina_kohya.demo.data import Batch, caption, load_digits  # noqa: PLC0415

        _, _, images, labels = load_digits()
        own = [row for row, label in enumerate(labels) if label in self.trainer.settings.digits][number::2]
        pixels = torch.from_numpy(images[own]).unsqueeze(1).repeat(self.TIMESTEPS, 1, 1, 1)
        noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(number))
        times = (torch.arange(self.TIMESTEPS) + 0.5) * 1000 / self.TIMESTEPS
        captions = [caption(int(labels[row])) for row in own] * self.TIMESTEPS
        return Batch(pixels, noise, times.long().repeat_interleave(len(own)), captions)

    def advance(self) -> None:
        self.trainer.losses.append(self.trainer._optimizer_step())

    def save(self, step: int) -> Path:
        return self.trainer.save_weights(f"step{step:04d}")

    def load(self, file: Path) -> None:
        self.trainer.network.load_weights(str(file))

    @torch.no_grad()
    def loss(self, part: Part) -> float:
        self.trainer.network.eval()
        loss = float(self.trainer.model.loss(self._data[part]))
        self.trainer.network.train()
        return loss


class Text(Training):
    """A LoRA of rank 8 on SmolLM2-135M, by HinaAdamW at its best of six rates in `benchmarks.pretrained`.

    tokens: of the text, to train on; None: all
    """

    RATE, RANK = 5e-3, 8

    def __init__(self, seed: int, steps: int, cosine: bool, tokens: int | None, model: Path, folder: Path):
        from benchmarks.convergence.runs import CLIP, schedule, warm_up  # noqa: PLC0415
        from benchmarks.pretrained.worlds import TEXT, NextToken, cut  # noqa: PLC0415
        from hina_kohya import HinaAdamW  # noqa: PLC0415

        self.task = NextToken(model, seed, TEXT, "lora", self.RANK, float(self.RANK))
        self.task.text = self.task.text[:tokens]
        self.named, self.folder, self.step = self.task.named, folder, 0
        self.optimizer = HinaAdamW(self.named, lr=self.RATE)
        factor = schedule if cosine else warm_up
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: factor(step, steps))
        self._clip = CLIP
        text = self.task.held_out_text
        halves = {"chooses": text[: len(text) // 2], "judges": text[len(text) // 2 :]}
        self._data = {part: cut(half, 32, torch.Generator().manual_seed(0)) for part, half in halves.items()}

    def advance(self) -> None:
        self.task.backward(self.step)
        torch.nn.utils.clip_grad_norm_([param for _, param in self.named], self._clip)
        self.optimizer.step()
        self._scheduler.step()
        self.step += 1

    def save(self, step: int) -> Path:
        from safetensors.torch import save_file  # noqa: PLC0415

        file = self.folder / f"step{step:04d}.safetensors"
        tensors = {name: tensor.contiguous() for name, tensor in self.task.network.state_dict().items()}
        save_file(tensors, file, {"ss_steps": str(step)})
        return file

    def load(self, file: Path) -> None:
        from safetensors.torch import load_file  # noqa: PLC0415

        self.task.network.load_state_dict(load_file(file))

    def loss(self, part: Part) -> float:
        return self.task.mean_loss(self._data[part])
