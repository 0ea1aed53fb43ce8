"""The Markdown of a benchmark."""

from typing import Any

from benchmarks import measure
from benchmarks.campaign import page

from .adapter import BATCH, IMAGES, LEVELS
from .summary import within

LAYER = """
Forward of one Linear: CPU ms of one thread, interleaved, medians of the quietest quarter of rounds. Grouped: 6 cells of
equal size whose ranks double from cell to cell. Alone it scores and sorts the batch itself; of known cells it sorts it;
in a model the batch is sorted already, once for all layers. Masked is the same function of known cells with all
directions computed.
"""
STEP = """
Forward and backward of a frozen Linear of {data}, 256 rows of 4 samples, R = 16: CPU ms of one thread,
interleaved, medians of the quietest quarter of rounds. Ours measures gains in every step, as by default; overhead is
what the adapter adds to the frozen layer.
"""
PATCHES = """
8x8 patches of scikit-learn's two sample images, noise 25/255: trained on the left halves, PSNR on the right ones. MACs
are counted on the test data, in percent of the dense network's. Tuned: the same epochs of Adam with a cosine, at the
best of the same learning rates. *free*: training-free. DyLoRA draws one prefix rank a batch and stores its largest.
RaNA-like (arXiv 2503.18216, an approximation: quantile thresholds) computes the router whole and masks the rest.
"""
ADAPTER = """
The frozen embedded diffusion model learns the digits 8 and 9, batch {batch}; held-out loss on the test digits, each at
{levels} noise levels with fixed noise. Without an adapter: {none}. **rank** is the adapter's
measured mean multiply-adds on the held-out images in those of a static LoRA of rank 1; methods that mask in training
count as what acts. `stored` values of the file; `ms`: CPU time of a training step. All have scale 1, AdamW, clipping at
1, warm-up and cosine, and the best of the same number of learning rates on seeds of its own.
DyLoRA and MatryoshkaLoRA train rank 8 once and are cut; MatryoshkaLoRA is our own code after the paper (diagonal: mean
over the prefixes of ranks 2, 4, 8, of scale sqrt(4 / rank)). T-LoRA: rank 2r at no noise falling linearly to 1,
without its orthogonal start, whose frozen copy doubles cost and file. AdaLoRA is peft's, with its orthogonality added
to the loss.
"""


def plus_minus(row: dict[str, Any], name: str, digits: int) -> str:
    spread = "" if row["sd"] is None else f" ± {row['sd']:.{digits}f}"
    return f"{row[name]:.{digits}f}{spread}"


def markdown(found: dict[str, Any], env: dict[str, Any], command: str, drawn: list[str]) -> str:
    parts = [measure.heading(f"ADLRNS, {found['mode']}", env, command), _notes(found), _promises(found)]
    if found["layer"]:
        parts.append(f"## Layer\n{LAYER}")
        parts += [_layer(data, each) for data, each in found["layer"].items()]
    parts += [_step(data, each) for data, each in found["step"].items()]
    if found["dense"]:
        parts.append(f"## Patch denoising\n{PATCHES}")
        parts += [_patches(width, found) for width in found["dense"]]
    if any(found["adapter"].values()):
        none = "not measured" if found["none"] is None else f"{found['none']:.4f}"
        parts.append(f"## Adapters\n{ADAPTER.format(batch=BATCH, levels=LEVELS, none=none)}")
        parts += [_adapter(data, rows) for data, rows in found["adapter"].items()]
    return page.joined(parts + page.images(drawn))


def _notes(found: dict[str, Any]) -> str:
    more = "".join(f", {seeds} with {data} images" for data, seeds in found["more_seeds"].items())
    trials = ", ".join(f"{count} for {part}" for part, count in found["trials"].items())
    lines = [
        f"- {found['seeds']} seeds{more}; learning rates tried: {trials}, on a third as many seeds of their own; ± is "
        "the standard deviation over seeds."
    ]
    if found["missing"]:
        lines.append(f"- **unfinished**: {found['missing']} of {found['runs']} runs are missing")
    lines += page.stale(found["stale"])
    edges = {f"{part} {row['method']} {data}" for part in ("patches", "adapter")
             for data, rows in found[part].items() for row in rows if row["edge"]}  # fmt: skip
    if edges:
        lines.append(
            f"- best learning rate at the end of its range, so perhaps not at its best: {', '.join(sorted(edges))}"
        )
    busy = [f"{part} {data} ({each['load']})" for part in ("layer", "step", "time")
            for data, each in found[part].items() if each["load"] > 1.5]  # fmt: skip
    if busy:
        lines.append(f"- measured on a busy machine (load average), which slows CPU times, too: {', '.join(busy)}")
    return "\n".join(lines)


def _promises(found: dict[str, Any]) -> str:
    columns = {"what": "asked for in issue 5", "asked": "bound", "value": "measured", "kept": "kept"}
    about = (
        "Adapters: ± is the standard error of the mean difference over seeds, which both methods share. *Surely*: the "
        "upper end of the one-sided 95 % interval. Not worse than static means that surely not more than a hundredth "
        "of what static gains over no adapter is lost."
    )
    return f"## Summary\n\n{about}\n\n{measure.table(found['promises'], columns)}"


def _layer(data: str, each: dict[str, Any]) -> str:
    size, batch = data.split("x")
    dense = each["rows"]["dense"]
    rows = [
        {"name": name, "ms": row["median"], "iqr": row["iqr"], "macs": 100 * row["macs"] / dense["macs"],
         "time": 100 * row["median"] / dense["median"]}
        for name, row in each["rows"].items()
    ]  # fmt: skip
    columns = {"name": "rank", "ms": "ms", "iqr": "IQR", "macs": "MACs, % of dense", "time": "time, % of dense"}
    return f"### {size}x{size}, batch {batch}\n\n{measure.table(rows, columns)}"


def _step(data: str, each: dict[str, Any]) -> str:
    rows = [{"name": name, **row, "overhead": 100 * row["overhead"]} for name, row in each["rows"].items()]
    columns = {"name": "adapter", "median": "ms", "iqr": "IQR", "overhead": "overhead, %",
               "to_bypass": "to LyCORIS's bypass"}  # fmt: skip
    return f"## Adapter step\n{STEP.format(data=data)}\n{measure.table(rows, columns)}"


def _patches(width: str, found: dict[str, Any]) -> str:
    dense, times = found["dense"][width], found["time"].get(width, {}).get("rows", {})
    rows = [{"method": "dense", "percent": 100.0, "psnr": plus_minus(dense, "psnr", 3),
             "ms": times.get("dense 0", {}).get("median")}]  # fmt: skip
    for row in sorted(found["patches"].get(width, []), key=lambda r: (r["rank"], r["method"], r["stage"])):
        ms = times.get(f"{row['method']} {row['rank']}", {}).get("median")
        rows.append({**row, "psnr": plus_minus(row, "psnr", 3), "ms": ms})
    columns = {"method": "method", "stage": "", "rank": "static rank of that cost", "percent": "MACs, %",
               "psnr": "PSNR, dB", "stored": "stored", "lr": "lr", "ms": "ms, whole test set"}  # fmt: skip
    return f"### Width {width}, dense trained for {dense['epochs']} epochs\n\n{measure.table(rows, columns)}"


def _adapter(data: str, rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    count = IMAGES[data]
    images = "all images of the training part, 283" if count is None else f"the first {count} images of each digit"
    steps = rows[0]["steps"]
    shown = [
        {**row, "loss": plus_minus(row, "loss", 4), "over": None if within(row) else "over"}
        for row in sorted(rows, key=lambda r: (r["mean_rank"], r["loss"]))
    ]
    columns = {"mean_rank": "asked", "method": "adapter", "loss": "held-out loss", "rank": "rank", "over": "budget",
               "stored": "stored", "step_ms": "ms", "lr": "lr"}  # fmt: skip
    return f"### {data} images\n\nTrained on {images}, for {steps} steps.\n\n{measure.table(shown, columns)}"
