"""The Markdown and the picture of the benchmark: loss over bytes."""

import statistics
from typing import Any

from matplotlib.figure import Figure  # no pyplot: no global state, no display

from benchmarks import measure
from benchmarks.campaign import page

from .plan import RATES
from .runs import OURS, PARTS
from .summary import ARMS, TRAINED, best_of_sd_scripts, mean, row_of
from .world import BATCH, CALIBRATION_BATCHES

HOW = """
The frozen embedded diffusion model learns the digits 8 and 9 by a LoRA on its U-Net ({steps} steps of {batch} images,
AdamW, a cosine, scale 1), which is then made smaller. A number is the **held-out loss that a file adds** to that of
the LoRA that it was made of, mean ± standard deviation over {seeds} seeds, in thousandths. Sizes are those of a LoRA
trained at a half, a quarter, an eighth and a sixteenth of the rank: ours count whole, metadata included, others
without. Training, calibration ({samples} samples) and evaluation share no image. `{ours}` is `hina-kohya resize
--calibrate`; `level, no metric` is the same without a calibration; `threshold` is LyCORIS's, by its formula. The
modes of sd-scripts are {real}, each with the parameter whose file is the largest within the size; at a sixteenth all
of them give every module the one direction that they leave at least. The learning rate is the best of {rates} for the
large LoRA, on a seed of its own, and the small ones are trained at it, too.
"""


def _plus_minus(row: dict[str, Any]) -> str:
    spread = f" ± {1e3 * statistics.stdev(row['added']):.2f}" if len(row["added"]) > 1 else ""
    return f"{1e3 * mean(row):.2f}{spread}"


def markdown(found: dict[str, Any], env: dict[str, Any], command: str, drawn: list[str]) -> str:
    real = "made by its own resize_lora.py" if found["real"] else "made by their formulas"
    how = HOW.format(steps=found["steps"], batch=BATCH, seeds=found["seeds"], samples=BATCH * CALIBRATION_BATCHES,
                     ours=OURS, real=real, rates=", ".join(f"{rate:g}" for rate in RATES))  # fmt: skip
    parts = [measure.heading(f"Smaller LoRAs, {found['mode']}", env, command), " ".join(how.split())]
    notes = page.stale(found["stale"])
    if found["missing"]:
        notes.append(f"- **unfinished**: {found['missing']} of the runs that are known by now are missing")
    parts.append("\n".join(notes))
    for parent, world in found["worlds"].items():
        parts += [f"## Of rank {parent}", _about(world), _table(world["rows"]), _verdict(world["rows"])]
    return page.joined([*parts, *page.images(drawn)])


def _about(world: dict[str, Any]) -> str:
    return (
        f"{world['bytes']:,} bytes, held-out loss {statistics.fmean(world['loss']):.4f} ({world['none']:.4f} without "
        f"an adapter), learning rate {world['lr']:g}. Calibration: {world['calibration_seconds']:.1f} s of CPU time. "
        f"Where rounding made files of sd-scripts larger than the size, by {world['excess']:.1%} at most, they stay."
    )


def _table(rows: list[dict[str, Any]]) -> str:
    shown = []
    for arm in ARMS:
        cells = {str(part): row for part in PARTS if (row := row_of(rows, arm, part))}
        if cells:
            counts = {len(row["added"]) for row in cells.values()}
            few = f", {max(counts)} seeds" if arm == TRAINED else ""
            shown.append({"arm": arm + few} | {part: _plus_minus(row) for part, row in cells.items()})
    columns = {"arm": "by"} | {str(part): f"1/{part} of the size" for part in PARTS}
    sizes = {str(part): f"{row['bytes']:,} bytes" for part in PARTS if (row := row_of(rows, OURS, part))}
    return measure.table([{"arm": ""} | sizes, *shown], columns)


def _verdict(rows: list[dict[str, Any]]) -> str:
    lines = []
    for part in PARTS:
        ours, theirs = row_of(rows, OURS, part), best_of_sd_scripts(rows, part)
        if ours is None:
            continue
        lines.append(
            f"- to 1/{part}: {mean(ours) / mean(theirs):.2f} of what the best mode of sd-scripts adds ({theirs['arm']})"
        )
        if trained := row_of(rows, TRAINED, part):
            lines[-1] += (
                f"; {1e3 * mean(trained):.2f} is what a LoRA trained at that size has above the large one, in "
                f"{len(trained['added'])} seeds"
            )
    return "\n".join(lines)


def figures(found: dict[str, Any]) -> dict[str, Figure | None]:
    worlds = found["worlds"]
    if not worlds:
        return {"loss": None}
    figure = Figure(figsize=(6.5 * len(worlds), 4.5), layout="constrained")
    for axis, (parent, world) in zip(figure.subplots(1, len(worlds), squeeze=False)[0], worlds.items(), strict=True):
        for number, arm in enumerate(ARMS):
            points = [row for part in PARTS[::-1] if (row := row_of(world["rows"], arm, part))]
            if not points:
                continue
            spread = [statistics.stdev(row["added"]) if len(row["added"]) > 1 else 0.0 for row in points]
            style = {"linewidth": 2.5} if arm == OURS else {"linewidth": 1, "linestyle": "--"}
            axis.errorbar([row["bytes"] for row in points], [mean(row) for row in points], spread, marker="o",
                          capsize=2, color=f"C{number}", label=arm, **style)  # fmt: skip
        axis.set(title=f"LoRA of rank {parent}", xlabel="bytes", ylabel="held-out loss added", xscale="log")
        axis.set_yscale("log")
    figure.axes[0].legend(fontsize=7)
    return {"loss": figure}
