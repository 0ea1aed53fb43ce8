"""Learning-rate schedules that the trainer refuses after the model is loaded, or ignores."""

from collections.abc import Iterator

from hina_kohya.check.edit import Edit, argument, drop, put, toml_value
from hina_kohya.check.finding import Finding, error, warning
from hina_kohya.check.rules import rule
from hina_kohya.check.run import Run
from hina_kohya.text import nearest
from hina_kohya.trainers.facts import schedulers
from hina_kohya.trainers.facts.schedulers import ADAFACTOR, PIECEWISE, ROWS, UNUSABLE
from hina_kohya.trainers.musubi import MUSUBI


@rule
def scheduler_unknown(run: Run) -> Iterator[Finding]:
    name = run.args["lr_scheduler"]
    if (
        run.given("lr_scheduler") is None
        or run.args["lr_scheduler_type"]
        or _is_schedule_free(run)
        or name in (*ROWS, PIECEWISE)
        or (run.schema.trainer is MUSUBI and name.lower() in schedulers.OF_MUSUBI)
    ):
        return
    if name.startswith(ADAFACTOR):
        if run.optimizer.lower != ADAFACTOR:
            yield error(
                "lr_scheduler",
                f"{name} is for Adafactor alone",
                f"measured ({run.at('get_scheduler_fix')})",
                put(lr_scheduler="constant"),
            )
        return
    near = nearest(name, ROWS)[:1] or ["cosine"]
    what = (
        f"{name} cannot be made from these options" if name in UNUSABLE else f"there is no schedule {toml_value(name)}"
    )
    yield error(
        "lr_scheduler",
        what,
        f"measured ({run.at('get_scheduler_fix')})",
        put(lr_scheduler=near[0]),
    )


@rule
def warmup_refused(run: Run) -> Iterator[Finding]:
    """Schedules without a warm-up raise where one is given."""
    if not run.args["lr_warmup_steps"] or _is_schedule_free(run):
        return
    optimizer = run.optimizer
    if optimizer.lower == ADAFACTOR and optimizer.sets_lr:
        subject, edit = "Adafactor with relative_step=True", put(lr_warmup_steps=0)
    elif run.args["lr_scheduler_type"] and run.schema.trainer is MUSUBI:
        return
    elif run.args["lr_scheduler_type"]:
        subject, edit = f"lr_scheduler_type {run.args['lr_scheduler_type']}", put(lr_warmup_steps=0)
    elif run.args["lr_scheduler"] in ROWS and not ROWS[run.args["lr_scheduler"]].warms_up:
        subject, edit = 'lr_scheduler "constant"', put(lr_scheduler="constant_with_warmup")
    else:
        return
    yield error(
        "lr_warmup_steps",
        f"{subject} takes no warm-up, and the run stops",
        f"measured: ValueError ({run.at('get_scheduler_fix')})",
        edit,
    )


@rule
def lowest_lr_missing(run: Run) -> Iterator[Finding]:
    args = run.args
    if (
        args["lr_scheduler"] == "cosine_with_min_lr"
        and args["lr_scheduler_min_lr_ratio"] is None
        and not args["lr_scheduler_args"]
    ):
        yield error(
            "lr_scheduler_min_lr_ratio",
            "cosine_with_min_lr needs it",
            "measured: ValueError from transformers",
            put(lr_scheduler_min_lr_ratio=0.1),
        )


@rule
def warmup_longer_than_run(run: Run) -> Iterator[Finding]:
    warmup, steps = run.given("lr_warmup_steps"), run.args["max_train_steps"]
    if isinstance(warmup, int) and warmup >= steps and run.args["max_train_epochs"] is None:
        yield warning(
            "lr_warmup_steps",
            f"{warmup} steps of warm-up in a run of {steps}: the learning rate is never reached",
            f"both count optimizer steps ({run.at('get_scheduler_fix')})",
            put(lr_warmup_steps=steps // 10),
        )


@rule
def schedule_ignored(run: Run) -> Iterator[Finding]:
    """Trainers give every optimizer whose name ends so a scheduler that does nothing."""
    keys = [
        key
        for key in ("lr_scheduler", "lr_scheduler_type", "lr_warmup_steps", "lr_decay_steps")
        if run.given(key) and (key != "lr_scheduler" or run.args[key] != "constant")
    ]
    if _is_schedule_free(run) and keys:
        yield warning(
            keys[-1],
            f"{run.optimizer.type} gets no schedule and no warm-up: its name ends in ScheduleFree",
            f"measured: the learning rate stays as it is ({run.at('get_scheduler_fix')})",
            _constant(run, keys),
        )


@rule
def schedule_option_unread(run: Run) -> Iterator[Finding]:
    """Most schedules read a warm-up and nothing else."""
    name, kind = run.args["lr_scheduler"], run.args["lr_scheduler_type"]
    if _is_schedule_free(run) or (name not in (*ROWS, PIECEWISE) and not kind):
        return
    for key in schedulers.OPTIONS:
        value = run.given(key)
        default = run.options[key].unset if key in run.options else None
        if value and value != default and key != schedulers.WARMUP and key not in schedulers.reads(name, kind):
            what = f"{kind or name} does not read it"
            yield warning(key, what, f"read ({run.at('get_scheduler_fix')})", drop(key))


@rule
def warmup_negative(run: Run) -> Iterator[Finding]:
    value = run.given("lr_warmup_steps")
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value < 0:
        yield error("lr_warmup_steps", f"{value} is below 0", "read: steps are counted from 0", put(lr_warmup_steps=0))


def _constant(run: Run, keys: list[str]) -> Edit:
    """Without its schedule; a warm-up becomes the optimizer's own."""
    edit = drop(*keys)
    warmup = run.args["lr_warmup_steps"]
    if isinstance(warmup, int) and warmup:
        return edit + argument("optimizer_args", run.words("optimizer_args"), "warmup_steps", str(warmup))
    return edit


def _is_schedule_free(run: Run) -> bool:
    return run.optimizer.lower.endswith("schedulefree")
