"""One training of the embedded model on a part of its images, measured at every validation; its weights are kept."""

import dataclasses as dc
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from hina_kohya.demo.data import Batch, caption, load_digits
from hina_kohya.demo.loop import Trainer
from hina_kohya.demo.model import DigitModel
from hina_kohya.demo.settings import read_settings

from .plan import EVERY, FOLDS, Run

CONFIG = "configs/training/digits_lokr.toml"
WORDS = "--train_batch_size 8 --lr_scheduler constant_with_warmup --judge 0"
CHOOSE_AT = (200, 400, 600, 800)  # where sd-scripts validates
JUDGE_AT = (125, 375, 625, 875)  # middles of quarters, for the judging images in turn
MOST_OF_ALL = 12  # images that stand for all training images


def in_turn(labels: torch.Tensor, seed: int) -> list[int]:
    """All rows, shuffled, the digits in turn, so that each block of them has both."""
    generator = torch.Generator().manual_seed(seed)
    own = [torch.nonzero(labels == digit).flatten() for digit in labels.unique()]
    shuffled = [rows[torch.randperm(len(rows), generator=generator)].tolist() for rows in own]
    longest = max(map(len, shuffled))
    return [rows[place] for place in range(longest) for rows in shuffled if place < len(rows)]


def held_out(part: str, order: list[int]) -> list[int]:
    """Rows that a part does not train on: none, a tenth (at least one), or one of `FOLDS` folds."""
    if part == "all":
        return []
    if part == "tenth":
        return order[: max(1, round(len(order) / 10))]
    number = int(part.removeprefix("fold"))
    return order[number * len(order) // FOLDS : (number + 1) * len(order) // FOLDS]


def at(pixels: torch.Tensor, labels: torch.Tensor, timesteps: list[tuple[int, ...]], seed: int) -> Batch:
    """Images at timesteps of their own. pixels: [n, 1, 8, 8]"""
    rows = torch.tensor([row for row, own in enumerate(timesteps) for _ in own])
    noise = torch.randn((len(rows), *pixels.shape[1:]), generator=torch.Generator().manual_seed(seed))
    times = torch.tensor([time for own in timesteps for time in own])
    return Batch(pixels[rows], noise, times, [caption(int(labels[row])) for row in rows])


def judges(digits: list[int]) -> Batch:
    """The images that no way of choosing knows."""
    _, _, images, labels = load_digits()
    rows = [row for row, label in enumerate(labels) if label in digits]
    timesteps = [(JUDGE_AT[number % len(JUDGE_AT)],) for number in range(len(rows))]
    return at(torch.from_numpy(images[rows]).unsqueeze(1), torch.from_numpy(labels[rows]), timesteps, seed=1)


def trainer_of(run: Run, folder: Path) -> Trainer:
    words = f"--config_file {CONFIG} {WORDS} --max_train_steps {run.steps}"
    settings = read_settings([*words.split(), "--seed", str(run.seed), "--output_dir", str(folder)])
    return Trainer(dc.replace(settings, logging_dir=None), DigitModel.load())


def execute(run: Run, weights: Path) -> dict[str, Any]:
    """The record of a run; `weights` gets the adapter of each validation, by step."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(run, Path(folder))
    data = trainer.data
    order = in_turn(data.labels, run.seed)[: run.images]
    out = held_out(run.part, order)
    batches = {}
    if run.part in ("all", "tenth", "fold0"):  # the other folds only say a step
        batches["judges"] = judges(trainer.settings.digits)
    rows = out or order[:MOST_OF_ALL]
    batches["chooses"] = at(data.pixels[rows], data.labels[rows], [CHOOSE_AT] * len(rows), run.seed)
    others = torch.tensor(sorted(set(order) - set(out)))
    data.pixels, data.labels = data.pixels[others], data.labels[others]
    record: dict[str, Any] = dc.asdict(run) | {"trained_on": len(data), "at": [], **{name: [] for name in batches}}
    states = {}
    start = time.process_time()
    trainer.network.on_epoch_start(trainer.model.text_encoder, trainer.model.unet)
    while trainer.step < run.steps:
        trainer.losses.append(trainer._optimizer_step())
        if trainer.step % EVERY == 0:
            trainer.network.eval()
            with torch.no_grad():
                for name, batch in batches.items():
                    record[name].append(round(float(trainer.model.loss(batch)), 6))
            trainer.network.train()
            record["at"].append(trainer.step)
            states[trainer.step] = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    if "judges" in batches:
        weights.parent.mkdir(parents=True, exist_ok=True)
        torch.save(states, weights)
    return record | {"cpu_seconds": round(time.process_time() - start, 1)}
