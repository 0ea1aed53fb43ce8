"""The held-out loss of a training, by the trainer's own validation: keeps the best adapter, ends a run that is over.

Two hooks: on the function that gives the loss of a batch, and on the one that returns what switches the optimizer to
training. The trainer calls that after each validation, while the validated weights are still in place. Its own average
is not used: LossRecorder mixes the validations of the first epoch.
"""

import dataclasses as dc
import logging
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError  # pyright: ignore[reportAttributeAccessIssue]
from torch import Tensor

from hina_kohya.files import atomic
from hina_kohya.trainers import best, bindings, loop, splits
from hina_kohya.trainers.best import Best
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.network_args import BestOptions, best_options
from hina_kohya.trainers.trainer import Trainer

logger = logging.getLogger("hina_kohya")

LOSS, LOWEST = "loss/held_out", "loss/best"  # the second is logged where it falls: its last step is the best one
_IS_TRAIN = 12  # place of `is_train` among the arguments, in every release
_LOCALS = ("self", "args", "accelerator", "network", "global_step", "epoch", "save_dtype", "save_model")


class _Now:
    held_out: "HeldOut | None" = None


def require(trainer: Trainer, settings: Any) -> None:
    """Raises UserError where something of a validation is asked of a trainer that has none."""
    options = best_options(getattr(settings, "network_args", None))
    if options and not any(map(bindings.is_bound, trainer.batch_loss)):
        lacks = (
            "this release has none that hina-kohya can follow; take sd-scripts 0.10 or newer"
            if trainer.batch_loss
            else f"{trainer.name} has none: keep files by save_every_n_steps, and choose among them by their samples"
        )
        raise UserError(f"network_args: {options} needs the trainer's validation, and {lacks}; remove it")


def release() -> None:
    _Now.held_out = None
    loop.release()


def batch_loss(wrapped: Any, _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """In the place of the trainer's function, which returns the loss of a batch."""
    loss = wrapped(*args, **kwargs)
    is_train = kwargs.get("is_train", args[_IS_TRAIN] if len(args) > _IS_TRAIN else True)
    if _Now.held_out is not None and not is_train:
        _Now.held_out.losses.append(loss.detach())
    return loss


def get_modes(wrapped: Any, _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """In the place of the trainer's function, which returns what switches an optimizer to training and evaluation."""
    train, evaluate = wrapped(*args, **kwargs)
    settings = kwargs.get("args", args[-1] if args else None)
    _Now.held_out = None
    options = best_options(getattr(settings, "network_args", None))
    if not options:
        return train, evaluate
    _Now.held_out = held_out = HeldOut(options)

    def train_again() -> None:
        held_out.validated()
        train()

    return train_again, evaluate


class HeldOut:
    """Of one training. losses: of the validation that runs now, a scalar for each batch and timestep."""

    def __init__(self, options: BestOptions):
        run = loop.read("args", "accelerator", "train_dataset_group", "val_dataset_group")
        splits.check(run.get("train_dataset_group"), run.get("val_dataset_group"), str(options))
        splits.hold(run["val_dataset_group"])
        loop.begin()
        args, accelerator = run["args"], run["accelerator"]
        seed = args.seed if args.validation_seed is None else args.validation_seed
        self.options, self.losses = options, list[Tensor]()
        self.best = Best(seed)
        self._step: int | None = None  # of the validation before
        self._file = Path(args.output_dir, f"{args.output_name or 'last'}-best.{args.save_model_as}")
        accelerator.register_save_state_pre_hook(lambda _models, _weights, folder: self.best.write(Path(folder)))
        accelerator.register_load_state_pre_hook(lambda _models, folder: self._resume(Path(folder)))

    def _resume(self, folder: Path) -> None:
        """The state may be older than the best file: then the file counts."""
        found = best.of_state(folder)
        if found is None:
            logger.info("hina-kohya: %s holds no best validation; the next one is the first", folder)
            return
        if found.seed != self.best.seed:
            raise UserError(
                f"--resume {folder}: its held-out loss is that of seed {found.seed}, not {self.best.seed}, and other "
                f"images may be held out; give --validation_seed {found.seed}"
            )
        file = best.of_file(self._file)
        file = file if file is not None and file.run == found.run else None
        if file is not None and file.loss < found.loss:
            found = dc.replace(found, loss=file.loss, step=file.step)
        if self.options.keep_best and file is None and found.loss < math.inf:
            text = "hina-kohya: %s is not the file of this run's best step %d; one is written below a loss of %.5g"
            logger.warning(text, self._file, found.step, found.loss)
        self.best = found

    def validated(self) -> None:
        """Judges the validation that ended, if one did."""
        if not self.losses:
            return
        run, losses = loop.read(*_LOCALS), torch.stack(self.losses).float()
        self.losses.clear()
        accelerator, step = run["accelerator"], run["global_step"]
        values = accelerator.gather(losses).cpu().double()
        if step == self._step:  # it validates twice where an epoch ends
            return
        self._step = step
        self._same_values(len(values))
        before, self.best = self.best, self.best.after(loss := float(values.mean()), step)
        falls = self.best.loss < before.loss
        if falls and self.options.keep_best and not self._save(run):
            self.best = dc.replace(self.best, loss=before.loss, step=before.step)
            falls = False
        if accelerator.trackers:
            logs = {LOSS: loss} | ({LOWEST: loss} if falls else {})
            run["self"].step_logging(accelerator, logs, step, run["epoch"] + 1)
        if self.options.stop_after and self.best.misses >= self.options.stop_after:
            self._stop(run["args"], step)

    def _same_values(self, count: int) -> None:
        if self.best.values not in (0, count):
            text = (
                "hina-kohya: the held-out loss is the mean of %d values now, and was that of %d: the best begins anew"
            )
            logger.warning(text, count, self.best.values)
            self.best = Best(self.best.seed)
        self.best = dc.replace(self.best, values=count)

    def _save(self, run: dict[str, Any]) -> bool:
        """By the trainer's own function, with its metadata. False where the disk refused: the old file stays whole."""
        accelerator, is_saved = run["accelerator"], True
        if accelerator.is_main_process:
            network = _Whole(accelerator.unwrap_model(run["network"]), self.best)
            what = {"ckpt_name": self._file.name, "unwrapped_nw": network, "steps": run["global_step"]}
            what["epoch_no"] = run["epoch"] + 1
            if "save_model" not in run:  # since 0.11
                more = {name: run[name] for name in ("args", "accelerator", "save_dtype")}
                run["save_model"] = lambda **words: run["self"]._save_model(**words, **more)
            try:
                run["save_model"](**what)
                logger.info("hina-kohya: held-out loss %.5g at step %d is the lowest", self.best.loss, self.best.step)
            except (OSError, SafetensorError) as error:
                text = (
                    "hina-kohya: error: the best adapter so far, of step %d, could not be written: %s. Training goes on"
                )
                logger.error(text, self.best.step, error)
                is_saved = False
        return bool(accelerator.gather(torch.tensor([is_saved], device=accelerator.device)).all())

    def _stop(self, args: Any, step: int) -> None:
        lowest = (
            f"below {self.best.loss:.5g}, that of step {self.best.step}" if self.best.loss < math.inf else "a number"
        )
        text = "hina-kohya: training ends at step %d: in %d validations the held-out loss was not %s"
        logger.warning(text, step, self.best.misses, lowest)
        loop.end(args, step)


class _Whole:
    """A network whose file appears whole or not at all, and says what it is."""

    def __init__(self, network: Any, record: Best):
        self._network, self._record = network, record

    def save_weights(self, file: str, dtype: Any, metadata: dict[str, str] | None) -> None:
        with atomic(Path(file)) as unfinished:
            self._network.save_weights(str(unfinished), dtype, {**(metadata or {}), best.KEY: self._record.text()})
