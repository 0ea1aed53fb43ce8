"""`hina-kohya train` from settings to pictures: set up, train, draw with and without the adapter, judge, report."""

import dataclasses as dc
import json
import logging
import time
from pathlib import Path
from typing import Any

import transformers
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError  # pyright: ignore[reportAttributeAccessIssue]

from . import report
from .errors import UserError
from .files import writable
from .judge import Judge
from .loop import Trainer, smooth
from .model import DigitModel
from .sample import GUIDANCE, STEPS
from .settings import BASE_MODEL, Settings, resume_command

INTERRUPTED = 130  # what a shell reports after Ctrl-C


class Stopwatch:
    """Seconds by phase; a phase lasts until the next one is named."""

    def __init__(self, start: float):
        self.seconds: dict[str, float] = {}
        self._last = start

    def lap(self, phase: str) -> float:
        now = time.perf_counter()
        self.seconds[phase] = round(self.seconds.get(phase, 0.0) + now - self._last, 2)
        self._last = now
        return self.seconds[phase]


def load_base(settings: Settings) -> tuple[DigitModel, list[int]]:
    """The base model and the digits it knows."""
    folder = Path(settings.pretrained_model_name_or_path or BASE_MODEL)
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        return DigitModel.load(folder), metrics["known_digits"]
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, SafetensorError) as exc:
        raise UserError(f"{folder} is no base model as scripts/make_base_model.py writes it: {exc}") from exc


def run(settings: Settings, start: float) -> int:
    """Exit code. `start` is when the program began: importing torch is part of what the user waits for."""
    # Both libraries warn about features that a folder of this size does not have.
    transformers.logging.set_verbosity_error()
    diffusers_logging.set_verbosity_error()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    clock = Stopwatch(start)
    for name in ("output_dir", "logging_dir"):
        folder = getattr(settings, name)
        if folder and (why := writable(Path(folder))):
            raise UserError(f"{name} {folder} cannot be written: {why}; name another folder")
    model, known = load_base(settings)
    trainer = Trainer(settings, model)
    describe(trainer)
    clock.lap("set_up")

    first_step = trainer.step
    finished = trainer.run()
    trained = clock.lap("training")
    steps = trainer.step - first_step
    weights = trainer.save_weights()
    if settings.save_state or not finished:
        state = trainer.save_state()
        if not finished:
            print(f"stopped after step {trainer.step}; nothing is lost. Go on with:\n{resume_command(settings, state)}")
    summary: dict[str, Any] = {
        "settings": dc.asdict(settings),
        "finished": finished,
        "steps": trainer.step,
        "loss": {"first": trainer.losses[0], "last_average": smooth(trainer.losses)} if steps else None,
        "ms_per_step": round(1000 * trained / max(steps, 1), 2),
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
        "optimizer": trainer.optimizer_name,
        "optimizer_report": report.optimizer_report(trainer.raw_optimizer),
        "versions": report.versions(),
    }
    folder = weights.parent
    if trainer.validation is not None and trainer.validation.best.step:
        best, file = trainer.validation.best, trainer.validation.best_file
        summary["held_out"] = {"images": len(trainer.validation), "lowest_loss": best.loss, "step": best.step}
        summary["held_out"]["file"] = None if file is None else str(file)
    if trainer.losses:
        report.save_loss(folder / "loss.png", {settings.optimizer_type: trainer.losses}, settings.output_name)
    if finished and settings.judge:
        print(f"drawing {2 * settings.judge} images without and {2 * settings.judge} with the adapter ...", flush=True)
        summary["judged"] = draw_and_judge(trainer, known, folder / "samples.png", clock)
    report.save_json(folder / "summary.json", summary | {"seconds": clock.seconds})
    if finished:
        conclude(summary, weights, settings)
    return 0 if finished else INTERRUPTED


def describe(trainer: Trainer) -> None:
    s, network = trainer.settings, trainer.network
    parameters = [p for group in trainer.raw_optimizer.param_groups for p in group["params"]]
    held_out = f", {len(trainer.validation)} more held out" if trainer.validation is not None else ""
    print(
        f"{len(trainer.data)} images of {', '.join(map(str, s.digits))}{held_out}; "
        f"{s.network_module} {' '.join(s.network_args)}: "
        f"{len(getattr(network, 'loras', []))} modules, {sum(p.numel() for p in parameters):,} parameters in "
        f"{len(parameters)} tensors; {trainer.optimizer_name}; on {trainer.accelerator.device}",
        flush=True,
    )
    if s.resume:
        print(f"resumed at step {trainer.step} of {s.max_train_steps}", flush=True)


def draw_and_judge(trainer: Trainer, known: list[int], picture: Path, clock: Stopwatch) -> dict[str, Any]:
    """Judge the taught digits and those the base model knew, before and after, from the same noise."""
    settings, judge = trainer.settings, Judge()
    base_model, _ = load_base(settings)
    clock.lap("judging")
    trainer.network.eval()
    trainer.set_optimizer_mode(training=False)
    models = {"before": base_model.freeze().to(trainer.accelerator.device), "after": trainer.model}
    taught, kept = settings.digits, [d for d in known if d not in settings.digits]
    before, after = (draw_groups(model, judge, (taught, kept), settings) for model in models.values())
    clock.lap("sampling")
    drawn = {"base model": report.join(before), f"with {settings.optimizer_type}": report.join(after)}
    report.save_samples(picture, taught, drawn)
    result: dict[str, Any] = {
        "images": settings.judge,
        "sampling": {"steps": STEPS, "guidance": GUIDANCE, "seed": settings.seed},
        "judge_held_out_accuracy": judge.held_out_accuracy,
    }
    for i, group in enumerate(("taught", "kept")[: len(before)]):
        result[group] = {
            "digits": (taught, kept)[i],
            "before": dc.asdict(before[i].verdict()),
            "after": dc.asdict(after[i].verdict()),
        }
    clock.lap("judging")
    return result


def draw_groups(
    model: DigitModel, judge: Judge, groups: tuple[list[int], ...], settings: Settings
) -> list[report.Drawn]:
    """What a model draws, by group of digits; from the same noise for every model."""
    return [report.draw(model, judge, digits, settings.judge, settings.seed) for digits in groups if digits]


def conclude(summary: dict[str, Any], weights: Path, settings: Settings) -> None:
    """The last lines: what came out and what to look at next."""
    print()
    for group, word in {"taught": "taught", "kept": "known before"}.items():
        verdict = summary.get("judged", {}).get(group)
        if verdict:
            digits = ", ".join(map(str, verdict["digits"]))
            before, after = verdict["before"]["accuracy"], verdict["after"]["accuracy"]
            print(
                f"{word:13s} {digits}: {report.percent(before)} right before the adapter, {report.percent(after)} after"
            )
    print(f"adapter       {weights}")
    if held_out := summary.get("held_out"):
        print(f"held-out loss {held_out['lowest_loss']:.4f} at step {held_out['step']} is the lowest")
        if held_out["file"]:
            print(f"its adapter   {held_out['file']}")
    print(f"look at       {weights.parent / ('samples.png' if settings.judge else 'loss.png')}")
    print(f"also          {weights.parent / 'loss.png'}, {weights.parent / 'summary.json'}")
    if settings.logging_dir:
        print(f"curves        tensorboard --logdir {settings.logging_dir}")
