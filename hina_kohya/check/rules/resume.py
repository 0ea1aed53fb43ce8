"""Resuming from a state that is not there, or that has nothing left to train."""

from collections.abc import Iterator

from hina_kohya.check.edit import put
from hina_kohya.check.finding import Finding, error
from hina_kohya.check.rules import rule, rule_of
from hina_kohya.check.run import Run
from hina_kohya.trainers.facts.places import at
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS


@rule
def resume_missing(run: Run) -> Iterator[Finding]:
    state = run.state
    if state and not state.is_one:
        what = f"{state.folder} is no saved state: there is no optimizer.bin in it"
        advice = "name a folder NAME-state"
        yield error("resume", what, "looked; accelerate writes it with --save_state", advice=advice)
    elif state and state.damage:
        yield error("resume", state.damage, "looked")


@rule_of(SD_SCRIPTS)
def resume_has_nothing_left(run: Run) -> Iterator[Finding]:
    """`--max_train_steps` has to exceed the saved step, although so many more steps are run."""
    state, steps = run.state, run.args["max_train_steps"]
    starts_elsewhere = run.args["initial_step"] is not None or run.args["initial_epoch"] is not None
    if state is None or starts_elsewhere or run.args["max_train_epochs"] is not None:
        return
    if (position := state.step) and position >= steps:
        yield error(
            "max_train_steps",
            f"{steps} steps are asked for, and the state of {state.folder} is at {position}",
            f"assertion after everything is loaded ({at('NetworkTrainer.train')})",
            put(max_train_steps=position + steps),
        )
