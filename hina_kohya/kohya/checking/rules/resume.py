"""Resuming from a state that is not there, or that has nothing left to train."""

import json
from collections.abc import Iterator
from pathlib import Path

from hina_kohya.kohya.checking import placeholders
from hina_kohya.kohya.checking.context import Context
from hina_kohya.kohya.checking.finding import Finding, error
from hina_kohya.kohya.checking.reading import toml_line
from hina_kohya.kohya.checking.rules import rule, rule_of
from hina_kohya.trainers.facts.places import at
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS


@rule
def resume_missing(context: Context) -> Iterator[Finding]:
    folder = _folder(context)
    if folder and not (folder / "optimizer.bin").is_file():
        what = f"{folder} is no saved state: there is no optimizer.bin in it"
        yield error("resume", what, "looked; accelerate writes it with --save_state", 'resume = ".../NAME-state"')


@rule_of(SD_SCRIPTS)
def resume_has_nothing_left(context: Context) -> Iterator[Finding]:
    """`--max_train_steps` has to exceed the saved step, although so many more steps are run."""
    folder, steps = _folder(context), context.args["max_train_steps"]
    starts_elsewhere = context.args["initial_step"] is not None or context.args["initial_epoch"] is not None
    if not folder or starts_elsewhere or context.args["max_train_epochs"] is not None:
        return
    done = _step(folder / "train_state.json")
    if done and done >= steps:
        yield error(
            "max_train_steps",
            f"{steps} steps are asked for, and the state of {folder} is at {done}",
            f"assertion after everything is loaded ({at('NetworkTrainer.train')})",
            toml_line("max_train_steps", done + steps),
        )


def _folder(context: Context) -> Path | None:
    value = context.given("resume")
    return None if not value or placeholders.is_one(value) or context.on("resume_from_huggingface") else Path(value)


def _step(file: Path) -> int | None:
    try:
        return json.loads(file.read_text(encoding="utf-8"))["current_step"]
    except (OSError, ValueError, KeyError):  # an older sd-scripts wrote none; then its check is not made either
        return None
