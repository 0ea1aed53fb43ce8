"""The optimizer and the schedule, made and stepped on two small matrices: what stops here stops the run later."""

import dataclasses as dc
import re
from collections.abc import Iterator
from typing import Any

from hina_kohya.check.edit import Edit, argument, drop, put
from hina_kohya.check.finding import Finding, error, missing, not_looked_at, warning
from hina_kohya.check.optimizer import OPTION, installed, strictly
from hina_kohya.check.rehearsal import Rehearsal, rehearse
from hina_kohya.check.rules import rule, rule_of
from hina_kohya.check.rules.optimizer_arguments import lr_in_arguments, tuple_by_comma
from hina_kohya.check.rules.optimizer_names import dadaptation_path, package_missing
from hina_kohya.check.run import Run
from hina_kohya.text import did_you_mean, nearest
from hina_kohya.trainers.facts import schedulers
from hina_kohya.trainers.facts.places import at
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS

_REMOVED = ("Simplified_AdEMAMix", "Lion_Prodigy_adv")
_RELOADED = "tried: accelerate reloads an optimizer's state before the first step"
_OF_THE_DEVICE = re.compile(r"cuda|gpu|triton|device|kernel|compil", re.IGNORECASE)
_SCHEDULE_ARGS = "lr_scheduler_args"


def rehearsed(run: Run) -> Rehearsal | None:
    """None where nothing has to be tried: a plain name that is known needs no torch."""
    optimizer = run.optimizer
    schedule = _schedule(run)
    if not (_is_inspected(run) or schedule) or any(lr_in_arguments(run)) or any(tuple_by_comma(run)):
        return None
    if optimizer.clash or optimizer.refused or any(dadaptation_path(run)) or any(package_missing(run)):
        return None
    if optimizer.registered and not run.hooks.active and "." not in optimizer.type:
        return None
    return rehearse(optimizer, run.args["learning_rate"], run.dtype, schedule)


def _schedule(run: Run) -> Any:
    """What makes the schedule, where that is not one that is known to work."""
    kind, words = run.args["lr_scheduler_type"], run.words(_SCHEDULE_ARGS)
    arguments, refusals, _ = strictly(words)
    if (
        run.optimizer.lower.endswith("schedulefree")
        or refusals
        or not (kind or words)
        or (not kind and str(run.args["lr_scheduler"]).lower() in schedulers.OF_MUSUBI)
    ):
        return None
    calling = schedulers.calling(run.args, arguments)
    return calling if "." in calling.path and not calling.refusal else None


def _is_inspected(run: Run) -> bool:
    """Not a plain name without arguments: that would import torch for nothing."""
    optimizer = run.optimizer
    if optimizer.is_own:
        return bool(optimizer.arguments) and installed(optimizer.path.partition(".")[0])
    return not optimizer.registered or run.hooks.active or "." in optimizer.type


@rule
def optimizer_unknown(run: Run) -> Iterator[Finding]:
    trial, optimizer = rehearsed(run), run.optimizer
    if trial is None or trial.stage not in ("import", "class"):
        return
    evidence = "tried; the trainer imports it after the model is loaded"
    top = optimizer.path.partition(".")[0]
    if trial.stage == "class":
        what = f"{optimizer.type} is {trial.message}, and no class of torch.optim.Optimizer"
        yield error("optimizer_type", what, "looked; the scheduler refuses it. It was not called")
    elif trial.error in ("ModuleNotFoundError", "ImportError") and top and not installed(top):
        yield missing("optimizer_type", f"{top} is not installed here", "tried: ImportError", f"pip install {top}")
    else:
        removed = "; adv_optm 2.5 removed it" * (optimizer.last in _REMOVED)
        what = f"there is no {optimizer.path}{removed}" if trial.error == "AttributeError" else trial.message
        prefix = optimizer.type.rpartition(".")[0]
        edit = put(optimizer_type=f"{prefix}.{trial.near[0]}" if prefix else trial.near[0]) if trial.near else None
        yield error("optimizer_type", what, evidence, edit)


@rule
def optimizer_refuses(run: Run) -> Iterator[Finding]:
    trial, optimizer = rehearsed(run), run.optimizer
    if trial is None:
        return
    if trial.died:
        why = f"{optimizer.type} ended the process in which it was tried ({trial.died})"
        yield not_looked_at("optimizer_type", why)
    elif trial.error and trial.stage in ("make", "reload"):
        yield _refusal(run, trial)
    elif trial.closure:
        what = f"{optimizer.last} needs a closure, which the trainer does not give"
        yield error("optimizer_type", what, "measured: TypeError at the first step", put(optimizer_type="AdamW"))
    elif trial.error and trial.stage == "step":
        if _OF_THE_DEVICE.search(trial.message) or trial.error == "NotImplementedError":
            yield not_looked_at(
                "optimizer_type", f"its steps: {optimizer.type} takes none on this machine ({trial.message})"
            )
        else:
            what = f"{optimizer.type} stops at its first steps: {trial.error}: {trial.message}"
            yield error("optimizer_type", what, "tried: two steps on 8x8 matrices, the first with zero gradients")
    for line in trial.lines:
        yield dc.replace(warning(OPTION, line, "said by the optimizer itself"), rule="argument_idle")


@rule
def optimizer_stands_still(run: Run) -> Iterator[Finding]:
    trial, optimizer = rehearsed(run), run.optimizer
    if trial is None or trial.stage not in ("schedule", "schedule class", "done"):
        return
    evidence = f"tried: two steps in {run.dtype}, the first with zero gradients"
    if not trial.finite:
        yield error("optimizer_type", f"{optimizer.type} makes parameters that are no numbers", evidence)
    elif not trial.moved and run.args["learning_rate"]:
        flags = [name for name in ("fused_back_pass", "fused_backward_pass") if optimizer.arguments.get(name) is True]
        edit = argument(OPTION, optimizer.words, flags[0]) if flags else None
        why = f" with {flags[0]}=True" if flags else ""
        yield error(OPTION if flags else "optimizer_type", f"{optimizer.type}{why} moves no parameter", evidence, edit)


@rule
def schedule_refuses(run: Run) -> Iterator[Finding]:
    trial = rehearsed(run)
    kind, words = run.args["lr_scheduler_type"], run.words(_SCHEDULE_ARGS)
    if trial is not None and trial.stage == "schedule class":
        what = f"{kind} is {trial.message}, and no class of torch's LRScheduler; it was not called"
        yield not_looked_at("lr_scheduler_type", what)
    if trial is None or trial.stage != "schedule" or not trial.error:
        return
    keyword = re.search(r"unexpected keyword argument '(\w+)'", trial.message)
    evidence = f"tried on the optimizer ({run.at('get_scheduler_fix')})"
    if not kind and trial.error == "ModuleNotFoundError":
        yield not_looked_at(_SCHEDULE_ARGS, f"the schedule: {trial.message}")
    elif keyword:
        what = f"{kind or run.args['lr_scheduler']} takes no {keyword[1]}"
        yield error(_SCHEDULE_ARGS, what, evidence, argument(_SCHEDULE_ARGS, words, keyword[1]))
    elif trial.error in ("AttributeError", "ModuleNotFoundError", "ImportError") and kind:
        edit = drop("lr_scheduler_type")
        yield error("lr_scheduler_type", f"there is no scheduler {kind}", evidence, edit)
    else:
        key = "lr_scheduler_type" if kind else _SCHEDULE_ARGS
        yield error(key, f"{kind or run.args['lr_scheduler']} cannot be made: {trial.error}: {trial.message}", evidence)


@rule_of(SD_SCRIPTS)
def never_in_eval_mode(run: Run) -> Iterator[Finding]:
    """Schedule-free optimizers train at one point and are meant to be saved at another."""
    trial, optimizer = rehearsed(run), run.optimizer
    if trial is not None and trial.modes and not optimizer.lower.endswith("schedulefree"):
        yield warning(
            "optimizer_type",
            f"{optimizer.last} has an eval mode, and sd-scripts uses it only where the name ends in ScheduleFree: "
            "samples and files are made in training mode",
            f"read ({at('is_schedulefree_optimizer')}), and run",
            put(optimizer_type="AdamWScheduleFree"),
        )


def _refusal(run: Run, trial: Rehearsal) -> Finding:
    optimizer = run.optimizer
    keyword = re.search(r"unexpected keyword argument '(\w+)'", trial.message)
    if keyword and keyword[1] in optimizer.arguments:
        name = keyword[1]
        near = [each for each in nearest(name, trial.accepts) if each not in optimizer.arguments]
        edit = argument(OPTION, optimizer.words, name)
        if near:
            edit = edit + argument(OPTION, optimizer.words, near[0], repr(optimizer.arguments[name]))
        what = f"{optimizer.last} has no argument {name}; {did_you_mean(name, trial.accepts)}"
        return error(OPTION, what, "tried: TypeError", edit)
    words = trial.message or "nothing said"
    if trial.error == "KeyError":
        return error("optimizer_type", f"{optimizer.type} stops with KeyError {words}", _RELOADED)
    names = [name for name in optimizer.arguments if name in words]
    evidence = f"tried: made on 8x8 matrices as the trainer makes it ({run.at('get_optimizer')})"
    edit = _without(run, names) if names else None
    return error(OPTION if names else "optimizer_type", f"{optimizer.type} stops: {words}", evidence, edit)


def _without(run: Run, names: list[str]) -> Edit:
    return argument(OPTION, run.optimizer.words, names[0])
