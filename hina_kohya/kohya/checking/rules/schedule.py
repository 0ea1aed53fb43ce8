"""Learning-rate schedules that the trainer refuses after the model is loaded, or ignores."""

from collections.abc import Iterator

from hina_kohya.core.hyper import nearest
from hina_kohya.kohya.checking.context import Context
from hina_kohya.kohya.checking.finding import Finding, error, warning
from hina_kohya.kohya.checking.reading import toml_line, toml_value
from hina_kohya.kohya.checking.rules import rule
from hina_kohya.trainers.musubi import MUSUBI

# What transformers and diffusers name; the last three cannot be made from sd-scripts' options.
_KNOWN = (
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
    "cosine_with_min_lr", "warmup_stable_decay",
)  # fmt: skip
_UNUSABLE = ("reduce_lr_on_plateau", "cosine_warmup_with_min_lr")


@rule
def scheduler_unknown(context: Context) -> Iterator[Finding]:
    name = context.args["lr_scheduler"]
    if (
        context.given("lr_scheduler") is None
        or context.args["lr_scheduler_type"]
        or name in (*_KNOWN, "piecewise_constant")
        or (context.schema.trainer is MUSUBI and name.lower() == "rex")
    ):
        return
    if name.startswith("adafactor"):
        if context.optimizer.lower != "adafactor":
            yield error(
                "lr_scheduler",
                f"{name} is for Adafactor alone",
                f"measured ({context.at('get_scheduler_fix')})",
                'lr_scheduler = "constant"',
            )
        return
    near = nearest(name, _KNOWN)[:1] or ["cosine"]
    what = (
        f"{name} cannot be made from these options" if name in _UNUSABLE else f"there is no schedule {toml_value(name)}"
    )
    yield error(
        "lr_scheduler",
        what,
        f"measured ({context.at('get_scheduler_fix')})",
        toml_line("lr_scheduler", near[0]),
    )


@rule
def warmup_refused(context: Context) -> Iterator[Finding]:
    """Schedules without a warm-up raise where one is given."""
    if not context.args["lr_warmup_steps"] or _is_schedule_free(context):
        return
    optimizer = context.optimizer
    if optimizer.lower == "adafactor" and optimizer.arguments.get("relative_step", True) is not False:
        who, fix = (
            "Adafactor with relative_step=True",
            'optimizer_args = ["relative_step=False", "scale_parameter=False"]',
        )
    elif context.args["lr_scheduler_type"] and context.schema.trainer is MUSUBI:
        return
    elif context.args["lr_scheduler_type"]:
        who, fix = f"lr_scheduler_type {context.args['lr_scheduler_type']}", "lr_warmup_steps = 0"
    elif context.args["lr_scheduler"] == "constant":
        who, fix = 'lr_scheduler "constant"', 'lr_scheduler = "constant_with_warmup"'
    else:
        return
    yield error(
        "lr_warmup_steps",
        f"{who} takes no warm-up, and the run stops",
        f"measured: ValueError ({context.at('get_scheduler_fix')})",
        fix,
    )


@rule
def lowest_lr_missing(context: Context) -> Iterator[Finding]:
    args = context.args
    if (
        args["lr_scheduler"] == "cosine_with_min_lr"
        and args["lr_scheduler_min_lr_ratio"] is None
        and not args["lr_scheduler_args"]
    ):
        yield error(
            "lr_scheduler_min_lr_ratio",
            "cosine_with_min_lr needs it",
            "measured: ValueError from transformers",
            "lr_scheduler_min_lr_ratio = 0.1",
        )


@rule
def warmup_longer_than_run(context: Context) -> Iterator[Finding]:
    warmup, steps = context.given("lr_warmup_steps"), context.args["max_train_steps"]
    if isinstance(warmup, int) and warmup >= steps and context.args["max_train_epochs"] is None:
        yield warning(
            "lr_warmup_steps",
            f"{warmup} steps of warm-up in a run of {steps}: the learning rate is never reached",
            f"both count optimizer steps ({context.at('get_scheduler_fix')})",
            toml_line("lr_warmup_steps", steps // 10),
        )


@rule
def schedule_ignored(context: Context) -> Iterator[Finding]:
    """Trainers give every optimizer whose name ends so a scheduler that does nothing."""
    given = [
        key for key in ("lr_scheduler", "lr_scheduler_type", "lr_warmup_steps", "lr_decay_steps") if context.given(key)
    ]
    if _is_schedule_free(context) and given and context.args["lr_scheduler"] != "constant":
        yield warning(
            given[-1],
            f"{context.optimizer.type} gets no schedule and no warm-up: its name ends in ScheduleFree",
            f"measured: the learning rate stays as it is ({context.at('get_scheduler_fix')})",
            'optimizer_args = ["warmup_steps=100"]' if "lr_warmup_steps" in given else 'lr_scheduler = "constant"',
        )


def _is_schedule_free(context: Context) -> bool:
    return context.optimizer.lower.endswith("schedulefree")
