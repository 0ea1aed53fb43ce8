"""What was trained and with what, in rows: from the file's metadata, else from the TOML."""

import datetime
import json

import numpy as np

from hina_kohya.loras.summary import training
from hina_kohya.watch.events import AVERAGE, LOSS
from hina_kohya.watch.folder import number
from hina_kohya.watch.run import Run

# option of a TOML -> the metadata key that says the same.
_OPTIONS = {
    "pretrained_model_name_or_path": "ss_sd_model_name",
    "dit": "ss_sd_model_name",
    "optimizer_type": "ss_optimizer",
    "max_train_steps": "ss_steps",
    "train_batch_size": "ss_total_batch_size",
    "seed": "ss_seed",
    "mixed_precision": "ss_mixed_precision",
    **{name: f"ss_{name}" for name in ("network_module", "network_dim", "network_alpha", "network_args",
                                       "learning_rate", "unet_lr", "text_encoder_lr", "lr_scheduler",
                                       "resolution", "training_comment")},
}  # fmt: skip


def facts(run: Run) -> dict[str, str]:
    """what -> how, in the order of the page."""
    metadata = run.metadata
    if not metadata:
        metadata = {key: run.settings[option] for option, key in _OPTIONS.items() if option in run.settings}
    rows = {"run": run.name}
    rows |= {what: " ".join(how.split()) for what, how in training(metadata)}
    rows |= {
        "data": _data(metadata),
        "precision": _precision(metadata),
        "held out": _held_out(metadata),
        "seed": metadata.get("ss_seed", ""),
        "time": _time(run, metadata),
        "progress": _progress(run, metadata),
        "file": _file(run),
        "result": _verdict(run),
    }
    return {what: how for what, how in rows.items() if how and how != "None"}


def _data(metadata: dict[str, str]) -> str:
    folders = _json(metadata.get("ss_dataset_dirs", ""))
    words = []
    for name, about in list(folders.items())[:6]:
        numbers = about if isinstance(about, dict) else {}
        count, repeats = numbers.get("img_count"), numbers.get("n_repeats")
        words.append(" ".join(filter(None, (str(name), f"{count} images" if count else "",
                                            f"x {repeats}" if repeats not in (None, 1) else ""))))  # fmt: skip
    return ", ".join(words)


def _json(text: str) -> dict[str, object]:
    try:
        content = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _precision(metadata: dict[str, str]) -> str:
    full = [f"full_{kind}" for kind in ("fp16", "bf16") if metadata.get(f"ss_full_{kind}") == "True"]
    base = ["fp8 base"] if metadata.get("ss_fp8_base") == "True" else []
    mixed = metadata.get("ss_mixed_precision", "")
    return ", ".join([f"mixed_precision {mixed}" if mixed == "no" else mixed] * bool(mixed) + full + base)


def _held_out(metadata: dict[str, str]) -> str:
    count = number(metadata.get("ss_num_validation_images"))
    return f"{count:.0f} images" if count else ""


def _time(run: Run, metadata: dict[str, str]) -> str:
    start, end = (number(metadata.get(f"ss_training_{when}_at")) for when in ("started", "finished"))
    words = []
    if start and end and 0 < start < 4e9 and 0 <= end - start < 4e9:
        date = datetime.datetime.fromtimestamp(start).strftime("%Y-%m-%d %H:%M")
        words.append(f"{date}, {duration(end - start)}")
    loss = run.curves.get(LOSS)
    if loss is not None and len(loss) > 2:
        # A median: saving, validation and samples in between are no steps.
        pace = float(np.median(np.diff(loss.times) / np.diff(loss.steps)))
        words.append(f"{pace:.2f} s per step" if pace >= 1 else f"{1000 * pace:.0f} ms per step")
    return ", ".join(words)


def _progress(run: Run, metadata: dict[str, str]) -> str:
    """Where a run is that did not reach its last step, or not yet."""
    last = max((int(curve.steps[-1]) for tag, curve in run.curves.items() if tag in (LOSS, AVERAGE)), default=0)
    end = number(metadata.get("ss_max_train_steps") or run.settings.get("max_train_steps"))
    return f"step {last} of {end:.0f}: still running, or stopped" if last and end and last < end else ""


def duration(seconds: float) -> str:
    """In words with two units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _file(run: Run) -> str:
    if run.adapter is None:
        return ""
    ranks = sorted({module.rank for module in run.adapter.modules})
    kinds = ", ".join(dict.fromkeys(module.algorithm for module in run.adapter.modules))
    rank = f", rank {ranks[0]}{f' to {ranks[-1]}' if len(ranks) > 1 else ''}" if ranks else ""
    return (
        f"{run.adapter.path.name}: {run.adapter.bytes / 1e6:.2f} MB, {len(run.adapter.modules)} modules, {kinds}{rank}"
    )


def _verdict(run: Run) -> str:
    """The demo's judge reads what the model draws."""
    judged = run.demo.get("judged")
    words = []
    for group, text in (("taught", "taught digits"), ("kept", "digits known before")):
        try:
            before, after = (float(judged[group][when]["accuracy"]) for when in ("before", "after"))  # type: ignore[index]
        except (KeyError, TypeError, ValueError):
            continue
        words.append(f"{text}: {before:.0%} right before, {after:.0%} after")
    return "; ".join(words)
