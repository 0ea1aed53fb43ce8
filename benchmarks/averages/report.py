"""The Markdown: each arm's change of the held-out loss against the last file."""

import statistics
from typing import Any

from benchmarks import measure
from benchmarks.campaign import page

from .plan import Plan
from .runs import LAST, Store
from .settings import DIGITS, FILES, TEXT, Setting

HOW = f"""
Change of the held-out loss against that of the last file, mean over seeds ± standard error, and in how many of the
seeds it fell. What is held out is split in two: one half chooses (the best file, the greedy soup), the other judges.
Every run saves {FILES} files. Digits: the demo's LoKr (configs/training/digits_lokr.toml) in batches of 8,
{{digits}} steps. SmolLM2-135M: a LoRA of rank 8 on Python's help pages, HinaAdamW, {{text}} steps of 4 x 128 tokens.
"""


def summarise(plan: Plan, store: Store) -> dict[str, Any]:
    """settings: name -> seed -> arm -> loss"""
    settings: dict[str, dict[str, dict[str, float]]] = {}
    for run in plan.known(store):
        if record := store.get(run):
            settings.setdefault(run.setting, {})[str(run.seed)] = record["losses"]
    return {
        "mode": plan.mode.name, "settings": settings, "skipped": plan.skipped,
        "missing": sum(store.get(run) is None for run in plan.known(store)), "stale": len(plan.stale(store)),
    }  # fmt: skip


def markdown(content: dict[str, Any], env: dict[str, Any], command: str, drawn: list[str]) -> str:
    how = HOW.format(digits=_steps(DIGITS), text=_steps(TEXT))
    notes = page.stale(content["stale"])
    if content["missing"]:
        notes.append(f"- **unfinished**: {content['missing']} of the runs are missing")
    notes += [f"- not run: {name}: {reason}" for name, reason in content["skipped"].items()]
    return page.joined(
        [
            measure.heading(f"Averages, {content['mode']}", env, command),
            " ".join(how.split()),
            "\n".join(notes),
            table(content["settings"]),
            *page.images(drawn),
        ]
    )


def _steps(settings: dict[str, Setting]) -> str:
    return " and ".join(str(steps) for steps in sorted({setting.steps for setting in settings.values()}))


def table(settings: dict[str, dict[str, dict[str, float]]]) -> str:
    if not settings:
        return ""
    lasts = {name: statistics.fmean(losses[LAST] for losses in seeds.values()) for name, seeds in settings.items()}
    rows = [{"arm": f"{LAST}, held-out loss"} | {name: f"{last:.4f}" for name, last in lasts.items()}]
    for arm in next(iter(next(iter(settings.values())).values())):
        if arm != LAST:
            rows.append({"arm": arm} | {name: _change(arm, seeds) for name, seeds in settings.items()})
    return measure.table(rows, {"arm": ""} | {name: name for name in settings})


def _change(arm: str, seeds: dict[str, dict[str, float]]) -> str:
    changes = [100 * (losses[arm] / losses[LAST] - 1) for losses in seeds.values()]
    error = f" ± {statistics.stdev(changes) / len(changes) ** 0.5:.2f}" if len(changes) > 1 else ""
    lower = sum(change < 0 for change in changes)
    return f"{statistics.fmean(changes):+.2f} %{error}, {lower} of {len(changes)}"
