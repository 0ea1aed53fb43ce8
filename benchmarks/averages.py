"""Averages of weights against the last file and the best one, on the embedded model.

One kept while training (`ema`), and soups of saved files.

Held-out digits, that neither the base model nor an adapter has seen, are split in two: one half chooses (the best file,
the greedy soup), the other judges. Noise and timesteps are the same for all. The training is that of
configs/training/digits_lokr.toml with smaller batches, which have the noise of a user's; seeds are fresh. Greedy soup:
Wortsman et al., arXiv:2203.05482, Algorithm 1, over files of one run.
"""

import argparse
import dataclasses as dc
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from hina_kohya.demo.data import Batch, caption, load_digits
from hina_kohya.demo.loop import Trainer
from hina_kohya.demo.model import DigitModel
from hina_kohya.demo.settings import read_settings
from hina_kohya.loras.averaging import soup
from hina_kohya.trainers.averages import Average

RESULTS = Path(__file__).parent / "results"
CONFIG = "configs/training/digits_lokr.toml"
SEEDS = (101, 102, 103, 104, 105)
SETTINGS = {
    "constant rate": "--lr_scheduler constant_with_warmup",
    "cosine": "--lr_scheduler cosine",
    "12 images of each, constant rate": "--lr_scheduler constant_with_warmup --num_images 12",
}
STEPS, EVERY, TIMESTEPS = 300, 30, 8
WIDTHS = (0.05, 0.1, 0.2)
LAST = "last file"


def held_out(trainer: Trainer) -> dict[str, Batch]:
    """The images that choose and those that judge, each at `TIMESTEPS` timesteps."""
    _, _, images, labels = load_digits()
    rows = [row for row, label in enumerate(labels) if label in trainer.settings.digits]
    found = {}
    for number, name in enumerate(("chooses", "judges")):
        own = rows[number::2]
        pixels = torch.from_numpy(images[own]).unsqueeze(1).repeat(TIMESTEPS, 1, 1, 1)
        noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(number))
        times = (torch.arange(TIMESTEPS) + 0.5) * 1000 / TIMESTEPS
        captions = [caption(int(labels[row])) for row in own] * TIMESTEPS
        found[name] = Batch(pixels, noise, times.long().repeat_interleave(len(own)), captions)
    return found


def run(words: str, seed: int, folder: Path) -> dict[str, float]:
    """Arm -> held-out loss on the half that judges."""
    settings = read_settings(
        [*f"--config_file {CONFIG} --train_batch_size 8 --max_train_steps {STEPS} --judge 0 {words}".split(),
         "--seed", str(seed), "--output_dir", str(folder)])  # fmt: skip
    trainer = Trainer(dc.replace(settings, logging_dir=None), DigitModel.load())
    named = dict(trainer.network.named_parameters())
    averages = {f"ema={width:g}": Average(named, trainer.raw_optimizer, width) for width in WIDTHS}
    data = held_out(trainer)
    trainer.network.on_epoch_start(trainer.model.text_encoder, trainer.model.unet)
    files = []
    while trainer.step < STEPS:
        trainer.losses.append(trainer._optimizer_step())
        if trainer.step % EVERY == 0:
            files.append(trainer.save_weights(f"step{trainer.step:04d}"))
    trainer.network.eval()

    @torch.no_grad()
    def loss(part: str, file: Path | None = None) -> float:
        if file is not None:
            trainer.network.load_weights(str(file))
        return float(trainer.model.loss(data[part]))

    result = {}
    for name, average in averages.items():
        average.take()
        with average.in_place():
            result[name] = loss("judges")
    mixtures = {"soup": soup(files), "soup --ema 0.15": soup(files, ema=0.15)}
    chosen = {file: loss("chooses", file) for file in files}
    for name, mixture in mixtures.items():
        mixture.write(folder / "soup.safetensors")
        result[name] = loss("judges", folder / "soup.safetensors")
    result["greedy soup"] = loss("judges", greedy(chosen, lambda file: loss("chooses", file), folder / "greedy"))
    result["best file"] = loss("judges", min(files, key=chosen.__getitem__))
    result[LAST] = loss("judges", files[-1])
    return result


def greedy(losses: dict[Path, float], loss: Callable[[Path], float], folder: Path) -> Path:
    """The best file, and each next one that makes the average no worse."""
    first, *rest = sorted(losses, key=losses.__getitem__)
    members, best, lowest = [first], first, losses[first]
    for number, file in enumerate(rest):
        candidate = folder / f"{number}.safetensors"
        soup([*members, file], [1.0] * (len(members) + 1)).write(candidate)
        value = loss(candidate)
        if value <= lowest:
            members, best, lowest = [*members, file], candidate, value
    return best


def table(runs: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown: loss relative to the last file in percent, mean over seeds with its standard error, and wins."""
    arms = [arm for arm in next(iter(next(iter(runs.values())).values())) if arm != LAST]
    lines = [f"| | {' | '.join(runs)} |", "| --- " * (len(runs) + 1) + "|"]
    lasts = [statistics.mean(each[LAST] for each in seeds.values()) for seeds in runs.values()]
    lines.append(f"| {LAST}, held-out loss | " + " | ".join(f"{last:.4f}" for last in lasts) + " |")
    for arm in arms:
        cells = []
        for seeds in runs.values():
            changes = [100 * (each[arm] / each[LAST] - 1) for each in seeds.values()]
            error = statistics.stdev(changes) / len(changes) ** 0.5 if len(changes) > 1 else float("nan")
            wins = sum(change < 0 for change in changes)
            cells.append(f"{statistics.mean(changes):+.2f} % ± {error:.2f}, {wins} of {len(changes)}")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--output", type=Path, default=RESULTS / "averages", help="where .json and .md go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs: dict[str, dict[str, dict[str, float]]] = {name: {} for name in SETTINGS}
    for seed in options.seeds:
        for name, words in SETTINGS.items():
            with tempfile.TemporaryDirectory() as folder:
                runs[name][str(seed)] = run(words, seed, Path(folder))
            print(name, seed, {arm: round(loss, 5) for arm, loss in runs[name][str(seed)].items()}, flush=True)
            about = {"steps": STEPS, "file every": EVERY, "torch": torch.__version__, "runs": runs}
            options.output.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        heading = "# Averages\n\n`python -m benchmarks.averages`: held-out loss against that of the last file\n\n"
        options.output.with_suffix(".md").write_text(heading + table(runs), encoding="utf-8")


if __name__ == "__main__":
    main()
