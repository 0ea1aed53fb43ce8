"""The Markdown of the benchmark: tables of losses."""

import math
import statistics
from typing import Any

from benchmarks import measure
from benchmarks.campaign import page

from .summary import REFERENCE, Budgets, Cell, Sweep
from .worlds import BATCH, HELD_OUT, LENGTH

HOW = """
SmolLM2-135M with an adapter on every linear layer of its blocks (LyCORIS, `bypass_mode`), trained for {steps} steps of
{batch} x {length} tokens on Python's help pages ("english"), or its own source code ("python"): weights in bf16,
adapters in fp32, autocast, gradients clipped to norm 1, warm-up and a cosine to zero. A number is the **held-out loss**
at the end, of {held_out} x {length} tokens from pages (from the ends of the modules) that are not trained on, the same
ones for every run. The {rates} learning rates were fixed before any result, from a thirtieth of AdamW's best to three
times it, and are the same for all; what finds its rate itself runs at 1.
"""
BEHIND = f"above {REFERENCE} at one rate, at most"
WIDTH = f"rates as good as {REFERENCE}'s best"


def loss(value: float | None) -> str:
    return "diverged" if value is None else f"{value:.3f}"


def markdown(summary: dict[str, Any], env: dict[str, Any], command: str, drawn: list[str]) -> str:
    mode = summary["mode"]
    parts = [measure.heading(f"A pretrained model, {mode['name']}", env, command)]
    text = HOW.format(steps=mode["steps"], batch=BATCH, length=LENGTH, held_out=HELD_OUT, rates=len(mode["rates"]))
    parts += [" ".join(text.split()), _notes(summary)]
    for world, sweeps in summary["sweeps"].items():
        if sweeps:
            base = summary["base"].get(world)
            before = f"Without an adapter {base:.3f}. " if base is not None else ""
            parts.append(f"## {world}\n\n{before}{_READ}\n\n{_sweeps(sweeps)}")
    parts += page.images(drawn)
    parts += [_training(summary["sweeps"]), _cells(summary["cells"]), _budgets(summary["budgets"], mode["steps"])]
    return page.joined(parts)


def _notes(summary: dict[str, Any]) -> str:
    lines = [f"- not run: {name}: {reason}" for name, reason in summary["skipped"].items()]
    if summary["missing"]:
        lines.append(f"- **unfinished**: {summary['missing']} of the runs that are known by now are missing")
    return "\n".join(lines + page.stale(summary["stale"]))


_READ = (
    f"Seed 1 by learning rate; then all seeds at the best one. *{BEHIND}*: the largest difference from a tenth of "
    f"{REFERENCE}'s best rate to its best, negative where it is ahead at each. *{WIDTH}*: the highest over the lowest "
    "of them, 0 if none. Seconds are CPU time of one core, with loading and the held-out loss."
)


def _sweeps(sweeps: dict[str, Sweep]) -> str:
    rates = sorted({lr for each in sweeps.values() for lr in each.losses})
    rows = []
    for name, each in sweeps.items():
        best, seeds = each.best, list(each.seeds.values())
        rows.append(
            {
                "name": name if each.complete else f"{name} (unfinished)",
                **{f"{lr:g}": loss(each.losses[lr]) for lr in each.losses},
                "best": f"{best[1]:.3f} at {best[0]:g}" if best else None,
                "seeds": f"{statistics.fmean(seeds):.3f} ({', '.join(map(loss, seeds))})" if len(seeds) > 1 else None,
                "behind": None if each.behind is None else f"{each.behind:+.3f}",
                "width": None if each.best_widely is None else f"{each.best_widely:.3g}",
                "seconds": round(each.seconds),
                "optimizer_ms": round(each.optimizer_ms),
            }
        )
    columns = {"name": "arm"} | {f"{lr:g}": f"{lr:g}" for lr in rates}
    columns |= {"best": "best", "seeds": "mean of the seeds", "behind": BEHIND, "width": WIDTH}
    return measure.table(rows, columns | {"seconds": "s a run", "optimizer_ms": "optimizer ms a step"})


def _training(by_world: dict[str, dict[str, Sweep]]) -> str:
    parts = []
    for world, sweeps in by_world.items():
        rates = sorted({lr for each in sweeps.values() for lr in each.losses})
        rows = [{"name": n, **{f"{lr:g}": loss(v) for lr, v in each.training.items()}} for n, each in sweeps.items()]
        if rows:
            parts.append(f"{world}\n\n{measure.table(rows, {'name': 'arm'} | {f'{lr:g}': f'{lr:g}' for lr in rates})}")
    return "## Training loss, mean over the last quarter of the steps\n\n" + "\n\n".join(parts) if parts else ""


def _cells(by_arm: dict[str, list[Cell]]) -> str:
    if not by_arm:
        return ""
    rows: dict[tuple[int, float], dict[str, Any]] = {}
    for arm, found in by_arm.items():
        for cell in found:
            row = rows.setdefault((cell.rank, cell.alpha), {"rank": cell.rank, "alpha": f"{cell.alpha:g}"})
            lowest = f"{loss(cell.lowest)} at {cell.lowest_lr:.3g}"
            row[arm] = f"{loss(cell.plain)} / {loss(cell.ruled)} at {cell.ruled_lr:.3g} / {lowest}"
    regrets = []
    for arm, found in by_arm.items():
        losses = {kind: [_regret(getattr(cell, kind), cell.lowest) for cell in found] for kind in ("plain", "ruled")}
        regrets.append({"arm": arm} | {kind: f"{statistics.fmean(v):.3f}, {max(v):.3f}" for kind, v in losses.items()})
    columns = {"arm": "arm", "plain": "one rate: loss above the lowest, mean and worst", "ruled": "by the rule"}
    cells = measure.table(
        [rows[key] for key in sorted(rows)], {"rank": "rank", "alpha": "alpha"} | {a: a for a in by_arm}
    )
    return f"## Ranks and alphas\n\n{_CELLS}\n\n{cells}\n\n{measure.table(regrets, columns)}"


_CELLS = (
    "Held-out loss at rank and alpha 8's best rate as it is / by the rule (times sqrt(8/rank) x rank/alpha, which "
    "`rank_free_lr` does for hina-default) / lowest of what was tried: both, and with alpha = rank a third and three "
    "times the rule's too, where these are finished."
)


def _regret(value: float | None, lowest: float | None) -> float:
    return math.inf if value is None or lowest is None else value - lowest


def _budgets(by_arm: dict[str, Budgets], steps: int) -> str:
    sizes = sorted({n for each in by_arm.values() for n in each.losses})
    if len(sizes) < 2:
        return ""
    rows = [
        {
            "name": name,
            **{str(n): f"{value:.3f} at {each.lr[n]:g}" for n, value in each.losses.items()},
            "seeds": ", ".join(map(loss, each.seeds.values())) if len(each.seeds) > 1 else None,
            "ratio": f"{each.to_reference.bound}{each.to_reference.steps:.2f}" if each.to_reference else None,
        }
        for name, each in by_arm.items()
    ]
    columns = {"name": "arm"} | {str(n): f"{n} steps" for n in sizes}
    columns |= {"seeds": f"seeds after {sizes[-1]}, at the best rate of {steps}"}
    columns |= {"ratio": f"steps over {REFERENCE}'s, to its loss at {steps}"}
    return f"## Budgets\n\nSeed 1, each with its whole schedule.\n\n{measure.table(rows, columns)}"
