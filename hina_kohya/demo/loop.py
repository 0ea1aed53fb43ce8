"""The training loop: accelerate drives it, sd-scripts' order of calls, exact resume, a Ctrl-C that loses nothing."""

import dataclasses as dc
import json
import math
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.optimization import get_scheduler
from safetensors import SafetensorError  # pyright: ignore[reportAttributeAccessIssue]

from hina_kohya.trainers import averages, calibrating

from . import network as adapter
from . import optimizer as optimizers
from .data import DigitImages
from .errors import TrainingError, UserError
from .files import atomic_folder
from .model import DigitModel
from .progress import Bar
from .settings import Settings
from .validation import Validation, options_of

SMOOTHING = 0.98  # of the loss that the bar and loss/average show
# A resumed run that changes one of these is another run: exact continuation is off, and it says so.
CONTINUED = (
    "seed",
    "digits",
    "num_images",
    "train_batch_size",
    "gradient_accumulation_steps",
    "max_train_steps",
    "validation_split",
)


def smooth(losses: list[float]) -> float:
    """Bias-corrected moving average of the losses so far; those further back have no weight left."""
    recent = losses[-400:]
    weights = [SMOOTHING ** (len(recent) - 1 - i) for i in range(len(recent))]
    return sum(w * x for w, x in zip(weights, recent, strict=True)) / sum(weights)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C asks the loop to stop after its step; the second one stops at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
        yield asked.is_set
        return

    def ask(signum, frame) -> None:
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


class Trainer:
    """Owns everything of one run. `run` returns False if the user stopped it."""

    def __init__(self, settings: Settings, model: DigitModel):
        self.settings, self.model = settings, model
        self.data = DigitImages(settings.digits, settings.seed, settings.num_images)
        options_of(settings)
        self.losses: list[float] = []
        self.started_at = time.time()
        self.accelerator = self._accelerator()
        self.validation = Validation(settings, self.data, self.accelerator) if settings.validation_split else None
        set_seed(settings.seed)  # the adapter's first weights; data and noise have generators of their own

        network = adapter.create(settings, model)
        groups, self.descriptions = adapter.param_groups(settings, network)
        self.optimizer_name, self.raw_optimizer = optimizers.make(
            settings.optimizer_type, settings.optimizer_args, groups, settings.learning_rate
        )
        averages.follow(self.raw_optimizer)
        calibrating.follow(
            self.raw_optimizer, lambda: settings.max_train_steps - self.step, lambda: self.accelerator.scaler
        )
        self.set_optimizer_mode(training=True)
        scheduler = self._scheduler()
        if settings.full_bf16:
            network.to(torch.bfloat16)
        model.freeze().to(self.accelerator.device)
        self.network, self.optimizer, self.scheduler = self.accelerator.prepare(network, self.raw_optimizer, scheduler)
        self.network.prepare_grad_etc(model.text_encoder, model.unet)
        self.metadata = adapter.metadata(settings, self.optimizer_name, len(self.data), self.started_at)
        if self.validation is not None:
            self.metadata["ss_num_validation_images"] = len(self.validation)
        if settings.resume:
            self._resume(Path(settings.resume))

    @property
    def step(self) -> int:
        return len(self.losses)

    @property
    def is_over(self) -> bool:
        """After its last step, or where stop_after ended it."""
        return self.step >= self.settings.max_train_steps or (self.validation is not None and self.validation.ends)

    @property
    def epoch(self) -> int:
        """The number of the epoch that the next step is in; the first is 1."""
        images = self.step * self.settings.train_batch_size * self.settings.gradient_accumulation_steps
        return images // len(self.data) + 1

    @property
    def weights_file(self) -> Path:
        return Path(self.settings.output_dir) / f"{self.settings.output_name}.safetensors"

    def _accelerator(self) -> Accelerator:
        s = self.settings
        if s.mixed_precision == "fp16" and not torch.cuda.is_available():
            raise UserError("mixed_precision fp16 needs a GPU, there is none; use bf16 or no")
        logs = Path(s.logging_dir) / time.strftime("%Y%m%d%H%M%S") if s.logging_dir else None
        accelerator = Accelerator(
            gradient_accumulation_steps=s.gradient_accumulation_steps,
            mixed_precision=s.mixed_precision,
            log_with="tensorboard" if logs else None,
            project_dir=logs,
        )
        if accelerator.num_processes > 1:
            raise UserError(f"{accelerator.num_processes} processes were launched; the embedded trainer is for one")
        if logs:
            accelerator.init_trackers("network_train")
        return accelerator

    def _scheduler(self):
        s = self.settings
        warmup = s.lr_warmup_steps if s.lr_warmup_steps >= 1 else s.lr_warmup_steps * s.max_train_steps
        return get_scheduler(
            s.lr_scheduler,
            self.raw_optimizer,
            num_warmup_steps=int(warmup),
            num_training_steps=s.max_train_steps,
            num_cycles=s.lr_scheduler_num_cycles,
            power=s.lr_scheduler_power,
        )

    def set_optimizer_mode(self, training: bool) -> None:
        """Schedule-free optimizers keep two sets of weights: one to train, one to save and sample."""
        switch = getattr(self.raw_optimizer, "train" if training else "eval", None)
        if callable(switch):
            switch()

    # Saving and resuming.

    def save_weights(self, name: str | None = None) -> Path:
        file = self.weights_file.with_name(f"{name or self.settings.output_name}.safetensors")
        ending = {"ss_training_finished_at": time.time(), "ss_steps": self.step, "ss_epoch": self.epoch}
        self.set_optimizer_mode(training=False)
        adapter.save(self.network, file, self.metadata | ending)
        self.set_optimizer_mode(training=True)
        return file

    def save_best(self, ckpt_name: str, unwrapped_nw: Any, steps: int, epoch_no: int) -> None:
        """As sd-scripts' `save_model`, for the validation, which hands over what it saves and switches modes itself."""
        file = self.weights_file.with_name(ckpt_name)
        ending = {"ss_training_finished_at": time.time(), "ss_steps": steps, "ss_epoch": epoch_no}
        unwrapped_nw.save_weights(str(file), None, {key: str(value) for key, value in (self.metadata | ending).items()})

    def save_state(self, name: str | None = None) -> Path:
        folder = self.weights_file.with_name(f"{name or self.settings.output_name}-state")
        settings = {k: v for k, v in dc.asdict(self.settings).items() if k in CONTINUED}
        with atomic_folder(folder) as unfinished:
            self.accelerator.save_state(str(unfinished))
            state = {"current_step": self.step, "settings": settings, "losses": self.losses}
            (unfinished / "train_state.json").write_text(json.dumps(state), encoding="utf-8")
        return folder

    def _resume(self, folder: Path) -> None:
        file = folder / "train_state.json"
        if not file.is_file():
            raise UserError(f"resume {folder} has no train_state.json; give a folder that save_state wrote")
        try:
            state = json.loads(file.read_text(encoding="utf-8"))
            settings = {"validation_split": 0.0} | state["settings"]  # older states held nothing out
            losses, before = [*state["losses"]], {key: settings[key] for key in CONTINUED}
            step = int(state["current_step"])
        except (ValueError, KeyError, TypeError) as exc:
            raise UserError(f"resume {folder}: its train_state.json is damaged ({exc}); take an older state") from exc
        if step >= self.settings.max_train_steps:
            raise UserError(
                f"max_train_steps is {self.settings.max_train_steps}, must exceed the {step} steps "
                f"of {folder}: it counts the whole run"
            )
        split = self.settings.validation_split
        if split and split != before["validation_split"]:
            raise UserError(
                f"validation_split is {split:g}, and was {before['validation_split']:g} in {folder}: images that were "
                "trained on would be held out; give what it was, or 0"
            )
        differences = [k for k in CONTINUED if before[k] != getattr(self.settings, k)]
        for key in differences:
            print(f"note: {key} was {before[key]} before, is {getattr(self.settings, key)} now")
        try:
            self.accelerator.load_state(str(folder))
        except (SafetensorError, OSError, EOFError, pickle.UnpicklingError) as exc:
            raise UserError(f"resume {folder} is damaged: {type(exc).__name__} {exc}; take an older state") from exc
        except (RuntimeError, ValueError, KeyError) as exc:
            # torch reads archives, and says RuntimeError of a damaged one, too.
            what = "is damaged" if "archive" in str(exc) else "does not fit network_args or optimizer_type"
            raise UserError(f"resume {folder} {what}: {exc}") from exc
        self.losses = losses

    # Training.

    def run(self) -> bool:
        s, every = self.settings, self.settings.save_every_n_steps
        self.network.on_epoch_start(self.model.text_encoder, self.model.unet)  # switches it to training
        with Bar(self.step, s.max_train_steps) as bar, interruptible() as stop_asked:
            while not self.is_over and not stop_asked():
                self.losses.append(self._optimizer_step())
                average, lrs = smooth(self.losses), self.scheduler.get_last_lr()
                bar.update(self.step, average, lrs[-1])
                names = self.descriptions or [f"group{i}" for i in range(len(lrs))]
                log = {f"lr/{name}": lr for name, lr in zip(names, lrs, strict=True)}
                self.accelerator.log(log | {"loss/current": self.losses[-1], "loss/average": average}, step=self.step)
                if self.validation is not None and self.step % self.validation.every == 0:
                    self.validation.run(self)
                if every and self.step % every == 0 and not self.is_over:
                    name = f"{s.output_name}-step{self.step:08d}"
                    self.save_weights(name)
                    if s.save_state:
                        self.save_state(name)
        self.accelerator.end_training()
        return self.is_over

    def _optimizer_step(self) -> float:
        s, total = self.settings, 0.0
        for micro in range(s.gradient_accumulation_steps):
            index = self.step * s.gradient_accumulation_steps + micro
            batch = self.data.batch(index, s.train_batch_size, s.caption_dropout_rate)
            with self.accelerator.accumulate(self.network):
                if hasattr(self.network, "on_step_start"):
                    self.network.on_step_start(self.model.text_encoder, self.model.unet)
                with self.accelerator.autocast():
                    loss = self.model.loss(batch)
                total += loss.item()
                if not math.isfinite(total):
                    raise TrainingError(
                        f"the loss became {loss.item()} at step {self.step + 1}; no file was overwritten. Lower "
                        f"learning_rate ({s.learning_rate:g}) or raise lr_warmup_steps ({s.lr_warmup_steps:g})"
                    )
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients and s.max_grad_norm:
                    self.accelerator.clip_grad_norm_(self.network.get_trainable_params(), s.max_grad_norm)
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad(set_to_none=True)
        return total / s.gradient_accumulation_steps
