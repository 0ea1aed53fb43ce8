"""The step that a held-out loss chooses, against the best one in hindsight and the last, on the embedded model.

Every way trains the demo's adapter as configs/training/digits_lokr.toml does, in batches of 8, which have the noise of
a user's. A way that holds images out trains on fewer, and a way that needs several trainings is charged with their
steps. Stop it at any point; the same command goes on.
"""

import argparse
import json
from pathlib import Path

import torch

from benchmarks import measure
from hina_kohya.files import atomic

from . import plan
from .drawing import Drawing
from .report import Group, markdown
from .runs import execute

NAME = "best_checkpoint"


def groups(records: list[dict], seeds: tuple[int, ...]) -> list[Group]:
    """By number of images: seeds with the records of the parts that all of them have."""
    done = {plan.Run.of(record): record for record in records}
    found = []
    for images, steps in plan.STEPS.items():
        parts: dict[int, set[str]] = {
            seed: {run.part for run in done if (run.images, run.seed, run.steps) == (images, seed, steps)}
            for seed in seeds
        }
        whole = [seed for seed in seeds if {"all", "tenth"} <= parts[seed]]
        if whole:
            common = sorted(set.intersection(*(parts[seed] for seed in whole)))
            found.append({seed: {part: done[plan.Run(images, part, seed, steps)] for part in common} for seed in whole})
    return found


def write(records: list[dict], seeds: tuple[int, ...], drawing: Drawing, folder: Path) -> None:
    env = measure.environment(1, torch.device("cpu"))
    text = markdown(groups(records, seeds), drawing.share, env)
    content = {
        "environment": env,
        "seeds": list(seeds),
        "cpu_minutes": round(sum(record["cpu_seconds"] for record in records) / 60, 1),
        "drawn": drawing.shares,
        "runs": records,
    }
    measure.write(NAME, content, text, folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.best_checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=plan.SEEDS)
    parser.add_argument("--runs", type=Path, default=Path("runs/best_checkpoint"), help="where finished runs are kept")
    parser.add_argument("--results", type=Path, default=measure.RESULTS)
    parser.add_argument("--report", action="store_true", help="only write the results of the finished seeds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.runs.mkdir(parents=True, exist_ok=True)
    seeds, records, drawing = tuple(options.seeds), [], Drawing(options.runs)
    for run in plan.runs(seeds):
        file = options.runs / f"{run.key}.json"
        if not file.is_file():
            if options.report:
                continue
            record = execute(run, file.with_suffix(".pt"))
            with atomic(file) as unfinished:
                unfinished.write_text(json.dumps(record), encoding="utf-8")
            print(run.key, record["cpu_seconds"], flush=True)
        records.append(json.loads(file.read_text(encoding="utf-8")))
    write(records, seeds, drawing, options.results)


if __name__ == "__main__":
    main()
