"""Optimizers that the trainer would not find by their name."""

import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase

from hina_kohya.check.edit import put
from hina_kohya.check.finding import Finding, error, missing
from hina_kohya.check.optimizer import installed
from hina_kohya.check.rules import rule, rule_of
from hina_kohya.check.run import Run
from hina_kohya.text import nearest
from hina_kohya.trainers.facts.places import at
from hina_kohya.trainers.musubi import MUSUBI
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS

# pattern of the lower-case name -> what get_optimizer imports before anything else, and how it is installed
_NEEDS = {
    "*8bit": ("bitsandbytes", "bitsandbytes"),
    "pagedadamw*": ("bitsandbytes", "bitsandbytes"),
    "lion": ("lion_pytorch", "lion-pytorch"),
    "prodigy": ("prodigyopt", "prodigyopt"),
    "dadapt*": ("dadaptation", "dadaptation"),
    "*schedulefree": ("schedulefree", "schedulefree"),
}


@rule
def optimizer_clash(run: Run) -> Iterator[Finding]:
    if run.optimizer.clash and run.hooks.active:
        yield error("optimizer_type", run.optimizer.clash, "the entry points installed here")


@rule
def hooks_needed(run: Run) -> Iterator[Finding]:
    """Short names of the entry points are found through the hooks only."""
    optimizer = run.optimizer
    if optimizer.registered and "." not in optimizer.type and not run.hooks.active:
        yield error(
            "optimizer_type",
            f"the short name {optimizer.type} needs the hooks, which are not active ({run.hooks.why})",
            f"measured: module 'torch.optim' has no attribute ({run.at('get_optimizer')})",
            put(optimizer_type=optimizer.path),
        )


@rule
def package_missing(run: Run) -> Iterator[Finding]:
    optimizer = run.optimizer
    if optimizer.registered and optimizer.hooked:
        return
    for pattern, (module, package) in _NEEDS.items():
        if run.schema.trainer is MUSUBI and pattern != "*8bit":
            continue
        if fnmatchcase(optimizer.lower, pattern) and not installed(module):
            yield missing(
                "optimizer_type",
                f"{run.schema.trainer.name} imports {module} for every name like {pattern}, which "
                f"{sys.executable} lacks",
                f"measured: ImportError ({run.at('get_optimizer')})",
                f"pip install {package}",
            )


@rule_of(SD_SCRIPTS)
def dadaptation_path(run: Run) -> Iterator[Finding]:
    optimizer = run.optimizer
    if optimizer.lower.startswith("dadapt") and not optimizer.is_own:
        near = nearest(optimizer.last, [name for name in SD_SCRIPTS.optimizers.names if name.startswith("DAdapt")])
        what = f"names that begin with dadapt are looked up in a list, and {optimizer.type} is not in it"
        yield error(
            "optimizer_type",
            what,
            f"measured: ValueError ({at('get_optimizer')})",
            put(optimizer_type=(near or ["DAdaptAdam"])[0]),
        )
