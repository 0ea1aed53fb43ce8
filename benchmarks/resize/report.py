"""The Markdown and the pictures of the benchmark: loss over bytes."""

import statistics
from typing import Any

from matplotlib.figure import Figure  # no pyplot: no global state, no display

from benchmarks import measure
from benchmarks.campaign import page

from .runs import OURS, PARTS
from .summary import ARMS, TRAINED, best_of_sd_scripts, mean, row_of
from .worlds import WORLDS

HOW = """
A LoRA is trained, and then made smaller. A number is the **held-out loss that a file adds** to that of the LoRA that it
was made of, mean ± standard deviation over {seeds} seeds where no other number is said, in thousandths. Sizes are those
of a LoRA trained at a half, a quarter, an eighth and a sixteenth of the rank: ours count whole, metadata included,
others without. Training, calibration and evaluation share no data. `{ours}` is `hina-kohya resize --calibrate`; `level,
no metric` is the same without a calibration; `threshold` is LyCORIS's, by its formula. The modes of sd-scripts are
{real}, each with the parameter whose file is the largest within the size; each of them leaves every module one
direction at least, so that at 1/16 of rank 16 all are alike.
"""


def _plus_minus(row: dict[str, Any]) -> str:
    spread = f" ± {1e3 * statistics.stdev(row['added']):.2f}" if len(row["added"]) > 1 else ""
    return f"{1e3 * mean(row):.2f}{spread}"


def markdown(found: dict[str, Any], env: dict[str, Any], command: str, drawn: list[str]) -> str:
    real = "made by its own resize_lora.py" if found["real"] else "made by their formulas"
    how = HOW.format(seeds=found["seeds"], ours=OURS, real=real)
    parts = [measure.heading(f"Smaller LoRAs, {found['mode']}", env, command), _one_line(how)]
    notes = [*page.stale(found["stale"]), *(f"- skipped: {name}: {why}" for name, why in found["skipped"].items())]
    if found["missing"]:
        notes.append(f"- **unfinished**: {found['missing']} of the runs that are known by now are missing")
    parts.append("\n".join(notes))
    for name, parents in found["worlds"].items():
        world = WORLDS[name]
        parts += [f"## {world.TITLE}", _one_line(world.ABOUT.format(steps=found["steps"][name]))]
        for parent, numbers in parents.items():
            rows = numbers["rows"]
            parts += [f"### Of rank {parent}", _about(numbers), _table(rows, found["seeds"]), _verdict(rows)]
        parts += page.images([file for file in drawn if file.endswith(f"_{name}.png")])
    return page.joined(parts)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _about(numbers: dict[str, Any]) -> str:
    return (
        f"{numbers['bytes']:,} bytes, held-out loss {statistics.fmean(numbers['loss']):.4f} ({numbers['none']:.4f} "
        f"without an adapter), learning rate {numbers['lr']:g}. Calibration: {numbers['calibration_seconds']:.1f} s of "
        f"CPU time. Where rounding made files of sd-scripts larger than the size, by {numbers['excess']:.1%} at most, "
        "they stay."
    )


def _table(rows: list[dict[str, Any]], seeds: int) -> str:
    ours = {part: row for part in PARTS if (row := row_of(rows, OURS, part))}

    def few(row: dict[str, Any], usual: int) -> str:
        return f", {len(row['added'])} of {seeds} seeds" if len(row["added"]) != usual else ""

    shown = [{"arm": ""} | {str(part): f"{row['bytes']:,} bytes{few(row, seeds)}" for part, row in ours.items()}]
    for arm in ARMS:
        cells = {
            str(part): _plus_minus(row) + few(row, len(usual["added"]))
            for part, usual in ours.items()
            if (row := row_of(rows, arm, part))
        }
        if cells:
            shown.append({"arm": arm} | cells)
    return measure.table(shown, {"arm": "by"} | {str(part): f"1/{part} of the size" for part in ours})


def _verdict(rows: list[dict[str, Any]]) -> str:
    lines = []
    for part in PARTS:
        ours = row_of(rows, OURS, part)
        if ours is None:
            continue
        theirs = best_of_sd_scripts(rows, part)
        lines.append(_against(mean(ours), mean(theirs), part, theirs["arm"]))
        if trained := row_of(rows, TRAINED, part):
            lines[-1] += (
                f"; {1e3 * mean(trained):.2f} is what a LoRA trained at that size has above the large one, in "
                f"{len(trained['added'])} seeds"
            )
    return "\n".join(lines)


def _against(ours: float, theirs: float, part: int, arm: str) -> str:
    if theirs <= 0:
        return f"- to 1/{part}: the best mode of sd-scripts ({arm}) adds {1e3 * theirs:.2f}, and this {1e3 * ours:.2f}"
    return f"- to 1/{part}: {ours / theirs:.2f} of what the best mode of sd-scripts adds ({arm})"


def figures(found: dict[str, Any]) -> dict[str, Figure | None]:
    """One of each world, with a diagram for each rank."""
    return {name: _figure(WORLDS[name].TITLE, parents) for name, parents in found["worlds"].items()}


def _figure(title: str, parents: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(6.5 * len(parents), 4.5), layout="constrained")
    for axis, (parent, numbers) in zip(
        figure.subplots(1, len(parents), squeeze=False)[0], parents.items(), strict=True
    ):
        for number, arm in enumerate(ARMS):
            points = [row for part in PARTS[::-1] if (row := row_of(numbers["rows"], arm, part))]
            if not points:
                continue
            spread = [statistics.stdev(row["added"]) if len(row["added"]) > 1 else 0.0 for row in points]
            style = {"linewidth": 2.5} if arm == OURS else {"linewidth": 1, "linestyle": "--"}
            axis.errorbar([row["bytes"] for row in points], [mean(row) for row in points], spread, marker="o",
                          capsize=2, color=f"C{number}", label=arm, **style)  # fmt: skip
        axis.set(title=f"{title}, LoRA of rank {parent}", xlabel="bytes", ylabel="held-out loss added", xscale="log")
        axis.set_yscale("log")
    figure.axes[0].legend(fontsize=7)
    return figure
