"""The held-out loss of a training, by the trainer's own validation: keeps the best adapter, ends a run that is over.

Two hooks: on the function that gives the loss of a batch, and on the one that returns what switches the optimizer to
training. The trainer calls that after each validation, while the validated weights are still in place. Its own average
is not used: LossRecorder mixes the validations of the first epoch.
"""

import dataclasses as dc
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError  # pyright: ignore[reportAttributeAccessIssue]
from torch import Tensor

from hina_kohya.files import atomic
from hina_kohya.trainers import best, bindings, loop, splits
from hina_kohya.trainers.best import Best
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.network_args import HELD_OUT, BestOptions, best_options
from hina_kohya.trainers.trainer import Trainer

logger = logging.getLogger("hina_kohya")

LOSS, LOWEST = "loss/held_out", "loss/best"  # the second is logged where it falls: its last step is the best one
_IS_TRAIN = 12  # place of `is_train` among the arguments, in every release
LOCALS = ("self", "args", "accelerator", "network", "global_step", "epoch", "save_dtype", "save_model")


class _Now:
    held_out: "HeldOut | None" = None


def require(trainer: Trainer, settings: Any) -> None:
    """Raises UserError where something of a validation is asked of a trainer that has none."""
    options = best_options(getattr(settings, "network_args", None))
    if options.held_out and trainer.batch_loss:
        raise UserError(
            f"network_args: {options}: {trainer.name} holds images out by itself; give --validation_split 0.1 "
            f"--validation_seed 42 in the place of {HELD_OUT}"
        )
    if options and not any(map(bindings.is_bound, (*trainer.batch_loss, *trainer.after_step))):
        newer = "sd-scripts 0.10" if trainer.batch_loss else "musubi-tuner 0.3"
        what = f"network_args: {options} needs a validation, and this release has none that hina-kohya can follow"
        raise UserError(f"{what}; take {newer} or newer, or remove it")


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
    _Now.held_out = held_out = of_sd_scripts(options)

    def train_again() -> None:
        held_out.validated()
        train()

    return train_again, evaluate


def of_sd_scripts(options: BestOptions) -> "HeldOut":
    """Raises UserError where its split is none."""
    run = loop.read("args", "accelerator", "train_dataset_group", "val_dataset_group")
    splits.check(run.get("train_dataset_group"), run.get("val_dataset_group"), str(options))
    splits.hold(run["val_dataset_group"])
    args = run["args"]
    return HeldOut(
        options, args, run["accelerator"], args.seed if args.validation_seed is None else args.validation_seed
    )


class HeldOut:
    """Of one training. losses: of the validation that runs now, a scalar for each batch and timestep."""

    def __init__(
        self,
        options: BestOptions,
        args: Any,
        accelerator: Any,
        seed: int,
        seed_option: str = "validation_seed",
        end: Callable[[Any, int], None] | None = None,
    ):
        """end: what ends the trainer's loop, from its settings and step; None: the hooks do"""
        if end is None:
            loop.begin()
        self._end = end or loop.end
        self.options, self.losses = options, list[Tensor]()
        self.best, self._seed_option = Best(seed), seed_option
        self._step: int | None = None  # of the validation before
        ending = getattr(args, "save_model_as", "safetensors")
        self.file = Path(args.output_dir, f"{args.output_name or 'last'}-best.{ending}")
        accelerator.register_save_state_pre_hook(lambda _models, _weights, folder: self.best.write(Path(folder)))
        accelerator.register_load_state_pre_hook(lambda _models, folder: self._resume(Path(folder)))

    def _resume(self, folder: Path) -> None:
        """The state may be older than the best file: then the file counts."""
        record = best.of_state(folder)
        if record is None:
            logger.info("hina-kohya: %s holds no best validation; the next one is the first", folder)
            return
        if record.seed != self.best.seed:
            raise UserError(
                f"--resume {folder}: its held-out loss is that of seed {record.seed}, not {self.best.seed}, and other "
                f"images may be held out; give --{self._seed_option} {record.seed}"
            )
        file = best.of_file(self.file)
        file = file if file is not None and file.run == record.run else None
        if file is not None and file.loss < record.loss:
            record = dc.replace(record, loss=file.loss, step=file.step)
        if self.options.keep_best and file is None and record.loss < math.inf:
            text = "hina-kohya: %s is not the file of this run's best step %d; one is written below a loss of %.5g"
            logger.warning(text, self.file, record.step, record.loss)
        self.best = record

    def validated(self) -> None:
        """Judges the validation that ended, if one did."""
        if self.losses:
            run = loop.read(*LOCALS)
            self.judge(run, run["global_step"])

    def judge(self, run: dict[str, Any], step: int) -> None:
        """After the last loss of a validation. run: `LOCALS` of the loop, where it has them"""
        losses = torch.stack(self.losses).float()
        self.losses.clear()
        accelerator = run["accelerator"]
        values = accelerator.gather(losses).cpu().double()
        if step == self._step:  # sd-scripts validates twice where an epoch ends
            return
        self._step = step
        self._same_values(len(values))
        before, self.best = self.best, self.best.after(loss := float(values.mean()), step)
        falls = self.best.loss < before.loss
        if falls and self.options.keep_best and not self._save(run, step):
            self.best = dc.replace(self.best, loss=before.loss, step=before.step)
            falls = False
        if accelerator.trackers:
            logs = {LOSS: loss} | ({LOWEST: loss} if falls else {})
            if hasattr(run["self"], "step_logging"):
                run["self"].step_logging(accelerator, logs, step, run["epoch"] + 1)
            else:
                accelerator.log(logs, step=step)
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

    def _save(self, run: dict[str, Any], step: int) -> bool:
        """By the trainer's own function, with its metadata. False where the disk refused: the old file stays whole."""
        accelerator, is_saved = run["accelerator"], True
        if accelerator.is_main_process:
            network = _Whole(accelerator.unwrap_model(run["network"]), self.best)
            what = {"ckpt_name": self.file.name, "unwrapped_nw": network, "steps": step}
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
        self._end(args, step)


class _Whole:
    """A network whose file appears whole or not at all, and says what it is."""

    def __init__(self, network: Any, record: Best):
        self._network, self._record = network, record

    def save_weights(self, file: str, dtype: Any, metadata: dict[str, str] | None) -> None:
        with atomic(Path(file)) as unfinished:
            self._network.save_weights(str(unfinished), dtype, {**(metadata or {}), best.KEY: self._record.text()})
