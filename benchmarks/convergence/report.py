"""The Markdown of a benchmark: savings over the halves, then every workload by itself."""

import math
import statistics
from typing import Any

from benchmarks import measure
from benchmarks.campaign import page

from .curves import Steps
from .optimizers import BASELINES, REFERENCES
from .plan import REACH, Mode
from .summary import Result
from .workloads import WORKLOADS

HOW = """
A number is **steps over the reference's steps at equal held-out loss**: 0.80 saves 20 %. Each optimizer gets {trials}
learning rates, log-uniform over a factor of {span:.0f} around its usual place; the best one trains {first} seeds on
the first half and {second} on the second, at {budgets} times the reference budget, each with its whole schedule
(warm-up, cosine to zero). The level is the reference's mean loss at its reference budget; curves are made monotone
and read linearly in log steps. `<=` means that the smallest budget was enough already, `>` that the largest was not
(the mean then takes that budget, so it flatters), `~` both. In brackets: lowest and highest of the seeds, each
against the reference with the same data and first weights. "Whole curve" is the geometric mean over all losses that
both curves pass. Techniques are chosen on the first half of the workloads, against a few baselines; on the second half
what was chosen meets all of them.
"""


def ratio(value: Steps | None) -> str:
    return "" if value is None or math.isnan(value.steps) else f"{value.bound}{value.steps:.2f}"


def with_range(value: Steps | None, seeds: list[Steps]) -> str:
    if value is None or len(seeds) < 2:
        return ratio(value)
    return f"{ratio(value)} ({ratio(min(seeds))}-{ratio(max(seeds))})"


def markdown(summary: dict[str, Any], env: dict[str, Any], command: str, drawn: list[str]) -> str:
    mode = summary["mode"]
    parts = [measure.heading(f"Convergence, {mode.name}", env, command)]
    parts.append(summary.get("note", ""))
    parts.append(
        HOW.format(
            trials=mode.trials,
            span=REACH**2,
            first=mode.seeds[0],
            second=mode.seeds[1],
            budgets=", ".join(f"{multiple:g}" for multiple in mode.multiples),
        ).strip()
    )
    parts.append(_notes(summary))
    for half, title in ((1, "First half: choose"), (2, "Second half: confirm")):
        parts.append(f"## {title}\n\n{_half(summary, half)}")
    parts.append(_equal_rates(summary))
    parts += page.images(drawn)
    parts.append("## Workload by workload")
    for workload, results in summary["workloads"].items():
        parts.append(_workload(workload, results, summary["targets"][workload], mode))
    return page.joined(parts)


def _notes(summary: dict[str, Any]) -> str:
    lines = [f"- not run: {name}: {reason}" for name, reason in summary["skipped"].items()]
    if summary["unfinished"]:
        lines.append(f"- **unfinished** ({len(summary['unfinished'])}): {', '.join(summary['unfinished'])}")
    lines += page.stale(summary["stale"])
    edges = [f"{w} {n}" for w, row in summary["workloads"].items() for n, each in row.items() if each.edge]
    if edges:
        lines.append(f"- best trial at the end of its range, so perhaps not at its best: {', '.join(edges)}")
    bad = [f"{w} {n}" for w, row in summary["workloads"].items() for n, each in row.items() if not each.mean]
    if bad:
        lines.append(f"- diverged on a seed or budget at the chosen learning rate: {', '.join(bad)}")
    return "\n".join(lines)


def _half(summary: dict[str, Any], half: int) -> str:
    workloads = [name for name in summary["workloads"] if WORKLOADS[name].half == half]
    first, second = REFERENCES
    rows = []
    for name in summary["mode"].optimizers:
        found = summary["aggregate"][name][half]
        if not found["workloads"]:
            continue
        row: dict[str, Any] = {"name": name if name in BASELINES else f"**{name}**"}
        for reference in REFERENCES:
            row[reference] = ratio(found[reference]["ratio"])
            row[f"{reference} worst"] = ratio(found[reference]["worst"])
            row[f"{reference} overlap"] = found[reference]["overlap"]
        for workload in workloads:
            each = summary["workloads"][workload].get(name)
            row[workload] = with_range(each.against.get(first), each.seeds_against.get(first, [])) if each else None
        row["reached"] = sum(
            each.target.bound != ">" and math.isfinite(each.target.steps)
            for workload in workloads
            if (each := summary["workloads"][workload].get(name))
        )
        rows.append(row)
    if not rows:
        return "Nothing is finished."
    columns = {"name": "optimizer"}
    for reference in (first, second):
        columns |= {reference: f"to {reference}", f"{reference} worst": "worst", f"{reference} overlap": "whole curve"}
    columns |= {"reached": f"targets of {len(workloads)}"}
    columns |= {workload: f"{workload}, to {first}" for workload in workloads}
    return measure.table(rows, columns)


EQUAL_RATES = """
## First half: at equal learning rates

Steps over those of {base}, from the trials alone: the same seed, at {base}'s best learning rate and its neighbours, a
difference in loss turned into steps by the slope of {base}'s curve. One seed, but nothing depends on which of the
learning rates happened to win, as the table above does. Only for what has the same step size.
"""


def _equal_rates(summary: dict[str, Any]) -> str:
    workloads = [name for name in summary["workloads"] if WORKLOADS[name].half == 1]
    rows = []
    for name in summary["variants"]:
        found = {w: each.equal_rates for w in workloads if (each := summary["workloads"][w].get(name))}
        known = {workload: value for workload, value in found.items() if value is not None}
        if known:
            rows.append({"name": name, "mean": statistics.geometric_mean(known.values()), **known})
    if not rows:
        return ""
    columns = {"name": "variant", "mean": "geometric mean", **{w: w for w in workloads}}
    about = EQUAL_RATES.strip().format(base=summary["base"])
    return f"{about}\n\n{measure.table(rows, columns)}"


def _workload(workload: str, results: dict[str, Result], target: float | None, mode: Mode) -> str:
    budget = mode.steps(workload)
    rows = []
    for name, each in results.items():
        losses = each.losses[budget]
        rows.append(
            {
                "name": name if name in BASELINES else f"**{name}**",
                "lr": f"{each.lr:g}{' (end)' if each.edge else ''}",
                "loss": f"{statistics.fmean(losses):.4f} ({min(losses):.4f}-{max(losses):.4f})",
                "target": str(each.target) if math.isfinite(each.target.steps) else "",
                "optimizer_ms": round(each.optimizer_ms, 2),
                "seconds": "" if not math.isfinite(each.seconds_to_target) else f"{each.seconds_to_target:.2f}",
                **{r: with_range(each.against.get(r), each.seeds_against.get(r, [])) for r in REFERENCES},
            }
        )
    columns = {
        "name": "optimizer",
        "lr": "lr",
        "loss": f"held-out loss at {budget} steps",
        "target": "steps to target",
        "seconds": "optimizer s to target",
        "optimizer_ms": "optimizer ms a step",
        **{reference: f"to {reference}" for reference in REFERENCES},
    }
    level = f"; target {target:.4f}, the best baseline's loss at {budget} steps" if target is not None else ""
    return f"### {workload}\n\nHalf {WORKLOADS[workload].half}{level}.\n\n{measure.table(rows, columns)}"
