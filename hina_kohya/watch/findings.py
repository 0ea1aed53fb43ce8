"""What the numbers say, in words, and only where they say it beyond their own noise."""

import dataclasses as dc
import re

import numpy as np

from hina_kohya.loras.summary import ModuleSummary
from hina_kohya.watch.events import LOSS, Curve
from hina_kohya.watch.folder import number
from hina_kohya.watch.run import Run

BAD, WARN, GOOD, INFO = "bad", "warn", "good", "info"
_HELD_OUT = "loss/held_out"  # of our hooks: each validation by itself
_VALIDATION = ("loss/validation/step_average", "loss/validation/epoch_average")
_LEAST = 6  # held-out values, below which nothing is said of their course
# Of the held-out loss: a change counts from so many standard errors of what it is measured against.
_SIGMAS = 4.0
_RELEVANT = 0.005  # of the held-out loss: a smaller change is real at most for the statistics
# Of the training loss, whose errors follow the drawn timesteps and are wider than they look.
_SIGMAS_TRAINING = 4.0
# A text encoder whose modules changed by less than this share of the others' is called at rest.
_AT_REST = 0.02


@dc.dataclass(frozen=True)
class Finding:
    """level: bad, warn, good or info."""

    level: str
    text: str


def findings(run: Run) -> list[Finding]:
    """The worst first."""
    found = [*_broken(run), *_leaks(run), *_held_out(run), *_training(run), *_at_rest(run)]
    order = (BAD, WARN, GOOD, INFO)
    return sorted(found, key=lambda finding: order.index(finding.level))


def validation(run: Run) -> Curve | None:
    """The held-out loss: ours where there is one, else that with the most values."""
    if _HELD_OUT in run.curves and len(run.curves[_HELD_OUT].finite()):
        return run.curves[_HELD_OUT].finite()
    names = [
        *_VALIDATION,
        *(tag for tag in run.curves if tag.startswith("loss/validation") and "divergence" not in tag),
    ]
    curves = [run.curves[tag].finite() for tag in names if tag in run.curves]
    return max(curves, key=len, default=None) if any(map(len, curves)) else None


def best(curve: Curve) -> int:
    """The place of the lowest value."""
    return int(np.argmin(curve.values))


def _broken(run: Run) -> list[Finding]:
    found = []
    loss = run.curves.get(LOSS)
    if loss is not None and not np.isfinite(loss.values).all():
        bad = ~np.isfinite(loss.values)
        first, count = int(loss.steps[bad.argmax()]), int(bad.sum())
        rate = run.metadata.get("ss_learning_rate") or run.settings.get("learning_rate")
        if bad[bad.argmax() :].all():
            lower = f"a lower learning_rate than {rate}" if rate else "a lower learning_rate"
            found.append(Finding(BAD, f"The loss is NaN or infinite since step {first}: what was saved later is of no "
                                      f"use. Try {lower}, a longer warm-up, or bf16 in place of fp16."))  # fmt: skip
        else:
            found.append(Finding(WARN, f"The loss was NaN or infinite at {count} steps, first at step {first}, and "
                                       "came back: look at the images and captions of those steps."))  # fmt: skip
    return found


def _leaks(run: Run) -> list[Finding]:
    """sd-scripts shuffles either part of its split by itself, unless they share a seed."""
    share, seed = number(run.metadata.get("ss_validation_split")), run.metadata.get("ss_validation_seed")
    if validation(run) is None or not share or seed != "None":
        return []
    text = (
        "Most of the held-out images were trained on, too, and their loss says little: sd-scripts draws the two parts "
    )
    return [
        Finding(
            WARN, f"{text}apart from each other unless `--validation_seed 42` is given, or the dataset file has one."
        )
    ]


def _held_out(run: Run) -> list[Finding]:
    curve = validation(run)
    if curve is None:
        return []
    place = best(curve)
    value, step = float(curve.values[place]), int(curve.steps[place])
    found = [Finding(INFO, f"The held-out loss is lowest at step {step}: {value:.4g}.{_nearest(run, step)}")]
    if len(curve) < _LEAST:
        return found
    # Three values each, so that one lucky one is no minimum: the error of a difference of two such means.
    error = _noise(curve.values) * np.sqrt(2 / 3)
    bar = max(_SIGMAS * error, _RELEVANT * abs(value))
    around = curve.values[max(0, place - 1) : place + 2].mean()
    end, start = curve.values[-3:].mean(), curve.values[:3].mean()
    if end - around > bar and len(curve) - place > 3:
        rises = f"The held-out loss rises since step {step}, from {around:.4g} to {end:.4g}"
        if _trend(run, step) <= 0:
            text = f"{rises}, while the training loss does not: it overfits since then."
        else:
            text = f"{rises}, and so does the training loss: it diverges, and a lower learning_rate is due."
        found.append(Finding(WARN, text))
    elif start - end > bar:
        third = curve.values[len(curve) - max(3, len(curve) // 3) :]
        falls = np.polyfit(np.arange(len(third)), third, 1)[0] * (len(third) - 1) if len(third) > 2 else 0.0
        still = falls < -bar
        text = f"The held-out loss fell from {start:.4g} to {end:.4g}"
        found.append(Finding(GOOD, f"{text} and still falls: more steps may help." if still else f"{text}."))
    elif abs(end - start) <= bar:
        text = f"The held-out loss did not change by more than its noise, {start:.4g} to {end:.4g}"
        found.append(Finding(WARN, f"{text}: the rate may be too low, or the run too short."))
    return found


def _noise(values: np.ndarray) -> float:
    """Standard deviation of a value around a smooth course: by its second differences, of which none is an outlier."""
    second = np.abs(values[2:] - 2 * values[1:-1] + values[:-2])
    return float(np.median(second)) / (0.6745 * 6**0.5)


def _nearest(run: Run, step: int) -> str:
    """The saved file to take."""
    saved = [each for each in run.saved if each.step is not None]
    if len(saved) < 2:
        return ""
    nearest = min(saved, key=lambda each: abs((each.step or 0) - step))
    return f" The nearest saved file is {nearest.path.name} of step {nearest.step}."


def _trend(run: Run, since: int) -> float:
    """Standard errors by which the training loss rose since a step; 0 where nothing says it."""
    loss = run.curves.get(LOSS)
    if loss is None:
        return 0.0
    values = loss.finite().at(loss.finite().steps >= since).values
    rise, error = _change(values)
    return rise / error if rise > _SIGMAS_TRAINING * error > 0 else 0.0


def _change(values: np.ndarray) -> tuple[float, float]:
    """The mean of the last quarter less that of the second one, and its standard error. 0, 0 of too few values."""
    quarter = len(values) // 4
    if quarter < 10:
        return 0.0, 0.0
    early, late = values[quarter : 2 * quarter], values[-quarter:]
    return float(late.mean() - early.mean()), float(np.sqrt((early.var(ddof=1) + late.var(ddof=1)) / quarter))


def _training(run: Run) -> list[Finding]:
    loss = run.curves.get(LOSS)
    if loss is None:
        return []
    values = loss.finite().values
    change, error = _change(values)
    if change > _SIGMAS_TRAINING * error > 0:
        text = (
            f"The training loss rose by {change:.3g} from the run's second quarter to its last one; "
            "a learning_rate that is too high is the usual reason."
        )
        return [Finding(WARN, text)]
    return []


def _at_rest(run: Run) -> list[Finding]:
    if run.adapter is None or not run.adapter.modules:
        return []
    modules = run.adapter.modules
    still = [module for module in modules if not module.energy]
    found = []
    if len(still) == len(modules):
        found.append(
            Finding(BAD, f"Nothing in {run.adapter.path.name} differs from zero: the adapter changes nothing.")
        )
        return found
    text = [module for module in modules if _is_text(module)]
    others = [module for module in modules if not _is_text(module)]
    if text and others:
        inner, outer = (float(np.median([module.energy**0.5 for module in each])) for each in (text, others))
        if inner == 0.0:
            why = "Check text_encoder_lr, or leave them out: network_train_unet_only."
            found.append(Finding(WARN, f"The text encoder does not move at all: its modules are all zero. {why}"))
        elif inner < _AT_REST * outer:
            found.append(Finding(WARN, f"The text encoder hardly moves: its modules changed by {inner / outer:.1%} of "
                                       "what the others changed by (medians of norms)."))  # fmt: skip
    zeros = [module for module in still if not _is_text(module)]
    if zeros:
        blocks = list(dict.fromkeys(module.block for module in zeros))
        names = ", ".join(blocks[:4]) + (f" and {len(blocks) - 4} more" if len(blocks) > 4 else "")
        found.append(Finding(WARN, f"{len(zeros)} of {len(modules)} modules are still zero, in {names}."))
    return found


def _is_text(module: ModuleSummary) -> bool:
    """Of a text encoder, by the names that the trainers and peft have."""
    return bool(re.match(r"te\d?( |$)", module.block)) or module.name.startswith(("lora_te", "text_encoder"))
