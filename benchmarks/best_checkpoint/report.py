"""The tables: one for each number of images, ways as rows, means over seeds with standard errors."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks import measure

from .plan import NOISE, STOP_AFTER
from .ways import HINDSIGHT, LAST, WAYS, Record, choices, hindsight

Drawn = Callable[[Record, int], float | None]
Group = dict[int, dict[str, Record]]  # seed -> part -> record
COLUMNS = {
    "way": "",
    "trained": "steps trained",
    "step": "step chosen",
    "loss": "held-out loss",
    "last": "against the last file",
    "wins": "lower in",
    "best": "over the best step",
    "drawn": "classifier",
    "stops": "stops",
    "false": "of them false",
    "missed": "lost by these",
}


def plus_minus(values: Sequence[float], form: str) -> str:
    mean = statistics.fmean(values)
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{mean:{form}} ± {error:{form.lstrip('+')}}"


def rows(seeds: Group, drawn: Drawn) -> list[dict[str, Any]]:
    """One for each way, and one for the best step in hindsight."""
    lists: dict[str, dict[str, list[Any]]] = {}

    def add(name: str, parts: dict[str, Record], taken: str, place: int, **more: Any) -> None:
        everything, record = parts["all"]["judges"], parts[taken]
        loss = record["judges"][place]
        values = {
            "step": record["at"][place], "loss": loss, "last": 100 * (loss / everything[-1] - 1),
            "best": 100 * (loss / min(everything) - 1), "drawn": drawn(record, place), **more,
        }  # fmt: skip
        for key, value in values.items():
            lists.setdefault(name, {}).setdefault(key, []).append(value)

    for parts in seeds.values():
        add(HINDSIGHT, parts, "all", hindsight(parts), trained=parts["all"]["steps"])
        for choice in choices(parts):
            add(choice.way.name, parts, choice.way.taken, choice.place, trained=choice.trained, choice=choice)
    order = [LAST, HINDSIGHT, *(way.name for way in WAYS if way.name != LAST)]
    return [_row(name, lists[name]) for name in order if name in lists]


def _row(name: str, values: dict[str, list[Any]]) -> dict[str, Any]:
    steps, count = values["step"], len(values["step"])
    row: dict[str, Any] = {
        "way": name,
        "trained": f"{statistics.fmean(values['trained']):.0f}",
        "step": f"{statistics.fmean(steps):.0f} ({min(steps)} to {max(steps)})",
        "loss": f"{statistics.fmean(values['loss']):.4f}",
        "best": f"{plus_minus(values['best'], '+.2f')} %",
    }
    if name != LAST:
        row["last"] = f"{plus_minus(values['last'], '+.2f')} %"
        row["wins"] = f"{sum(change < 0 for change in values['last'])} of {count}"
    if None not in values["drawn"]:
        row["drawn"] = f"{plus_minus([100 * share for share in values['drawn']], '.1f')} %"
    looks = [choice for choice in values.get("choice", []) if choice.way.curves]
    if looks:
        wrong = [choice.missed for choice in looks if choice.is_false_stop]
        row["stops"] = f"{sum(choice.stopped is not None for choice in looks)} of {count}"
        row["false"] = len(wrong)
        row["missed"] = f"{100 * statistics.fmean(wrong):.2f} %" if wrong else None
    return row


def markdown(groups: Iterable[Group], drawn: Drawn, env: dict[str, Any]) -> str:
    parts = [
        measure.heading("The best checkpoint", env, "python -m benchmarks.best_checkpoint"),
        f"Loss: of images that no way chooses by. Over the best step: of the training on all images. A stop is one by "
        f"`stop_after={STOP_AFTER}`; it is false if the loss is lower after it than at the step kept by more than "
        f"{100 * NOISE:g} %. Means over seeds with standard errors.",
    ]
    for seeds in groups:
        first = next(iter(seeds.values()))["all"]
        title = f"{first['images']} images, {first['steps']} steps, {len(seeds)} seeds"
        parts.append(f"## {title}\n\n{measure.table(rows(seeds, drawn), COLUMNS)}")
    return "\n\n".join(parts)
