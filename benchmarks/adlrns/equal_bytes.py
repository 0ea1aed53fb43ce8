"""Held-out loss at equal bytes of the file that people load: a LoRA, ADLRNS as it is shipped, and two variants of it.

python -m benchmarks.adlrns.equal_bytes

The frozen embedded diffusion model learns two digits, of each 50 images. All arms have the learning rate that the full
benchmark found best for the LoRA, of three. Results are of seeds that nobody had run when this was written. Where a
number depends on the length of the training, ADLRNS has what its page says: a third of the steps as warm-up. Stop it at
any point; the same command goes on.
"""

import argparse
import dataclasses as dc
import itertools
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure

from . import adapter
from .methods import Method, Ours, Pairs
from .runs import Run

SEEDS, STEPS, RANKS = range(300, 305), 240, (4,)
RATES = {2: 6e-3, 4: 6e-3, 8: 6e-3}  # of benchmarks/results/adlrns_full.md, for a LoRA, 100 images
DATA = "100"


class Shipped(Ours):
    """One bin, and everything else as it is by default: half of the directions stay."""

    def arguments(self) -> tuple[int, list[str]]:
        return 2 * self.rank, [f"budget={self.rank}", f"warmup={self.steps // 3}"]


class AnyRank(Shipped):
    """The same with any rank; shipped are powers of two."""

    def make(self) -> None:
        super().make()
        shipped = self.made._candidates

        def candidates(sums: Any) -> list[Any]:
            return [dc.replace(each, spectrum=dc.replace(each.spectrum, steps=())) for each in shipped(sums)]

        self.made._candidates = candidates


class Bins(Ours):
    """Six bins of timesteps in a file of the same bytes: all its directions are in it, and half of them act."""

    def arguments(self) -> tuple[int, list[str]]:
        often = min(50, max(1, self.steps // 16))  # 50 is the default; shorter runs need refreshes, too
        return self.rank, ["bins=6", f"warmup={self.steps // 3}", f"refresh_every={often}"]


ARMS: dict[str, type[Method]] = {"LoRA": Pairs, "ADLRNS": Shipped, "ADLRNS, any rank": AnyRank, "ADLRNS, 6 bins": Bins}


def run_of(arm: str, rank: int, lr: float, seed: int, steps: int) -> Run:
    return Run("adapter", arm, DATA, rank, steps, lr, seed)


def result(run: Run) -> dict[str, Any]:
    """Held-out loss, and bytes of the file in fp16 without metadata."""
    torch.manual_seed(run.seed)
    method = ARMS[run.method](adapter.fresh_model(), run.rank, run.steps, run.seed)
    seconds, fine = adapter.train(method, run)
    method.evaluate(run.rank, adapter.held_out().timesteps)
    with torch.no_grad():
        loss = method.model.loss(adapter.held_out()).item() if fine else float("inf")
    values = sum(p.numel() for p in method.parameters())
    shapes = len({tuple(p.shape) for p in method.parameters()})
    return {"arm": run.method, "rank": run.rank, "lr": run.lr, "seed": run.seed, "loss": loss, "values": values,
            "shapes": shapes, "bytes": size_of(method), "cpu_seconds": seconds}  # fmt: skip


def size_of(method: Method) -> int | None:
    """None for the LoRA here, which has no file; its values say what it would be."""
    if not hasattr(method.made, "save_weights"):
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lora.safetensors"
        method.made.save_weights(str(file), torch.float16, None)
        return file.stat().st_size


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adlrns.equal_bytes", description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--ranks", type=int, nargs="+", default=list(RANKS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--results", type=Path, default=measure.RESULTS)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    journal = options.results / "adlrns_equal_bytes.jsonl"
    rows = [json.loads(line) for line in journal.read_text().splitlines()] if journal.is_file() else []
    done = {(row["arm"], row["rank"], row["seed"]) for row in rows}
    for rank, seed, arm in itertools.product(options.ranks, SEEDS, options.arms):
        if (arm, rank, seed) not in done:
            rows.append(result(run_of(arm, rank, RATES[rank], seed, options.steps)))
            print(f"{arm}, rank {rank}, seed {seed}: {rows[-1]['loss']:.5f}", flush=True)
            with journal.open("a") as file:
                print(json.dumps(rows[-1]), file=file)
    env = measure.environment(1, torch.device("cpu"))
    minutes = sum(row["cpu_seconds"] for row in rows) / 60
    found = {"environment": env, "steps": options.steps, "cpu_minutes": minutes, "runs": rows}
    measure.write("adlrns_equal_bytes", found, markdown(rows, options.steps, env), options.results)
    return 0


def markdown(rows: list[dict[str, Any]], steps: int, env: dict[str, Any]) -> str:
    table = []
    for rank in dict.fromkeys(row["rank"] for row in rows):
        lora = {row["seed"]: row["loss"] for row in rows if (row["arm"], row["rank"]) == ("LoRA", rank)}
        for arm in dict.fromkeys(row["arm"] for row in rows):
            own = [row for row in rows if (row["arm"], row["rank"]) == (arm, rank)]
            more = [row["loss"] - lora[row["seed"]] for row in own]
            error = statistics.stdev(more) / len(more) ** 0.5
            table.append({
                "bytes of a LoRA of rank": rank, "arm": arm, "loss": f"{statistics.fmean(r['loss'] for r in own):.5f}",
                "over LoRA": "" if arm == "LoRA" else f"{statistics.fmean(more):+.5f} ± {error:.5f}",
                "values": own[0]["values"], "shapes": f"{statistics.fmean(r['shapes'] for r in own):g}",
                "bytes": own[0]["bytes"] or "", "lr": own[0]["lr"],
            })  # fmt: skip
    columns = {name: name for name in table[0]}
    return (
        f"# ADLRNS at equal bytes\n\n`python -m benchmarks.adlrns.equal_bytes`: {steps} steps on 100 images of two "
        f"digits, batch {adapter.BATCH}; held-out loss, mean of {len(SEEDS)} seeds; the error is that of the mean "
        f"difference by seed. The rate is the LoRA's best of three. "
        f"Shapes: how many different ones the trained tensors have at the end. {env['date']}, commit {env['commit']}."
        f"\n\n{measure.table(table, columns)}\n"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
