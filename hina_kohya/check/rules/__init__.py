"""The registry of rules: functions from a `Run` to findings, one idea each, every claim with its evidence."""

import dataclasses as dc
from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib import import_module
from pkgutil import iter_modules

from hina_kohya.check.finding import Finding, Level
from hina_kohya.check.run import Run
from hina_kohya.trainers.trainer import Trainer

Rule = Callable[[Run], Iterable[Finding]]

_RULES: dict[str, Rule] = {}
_ONLY_FOR: dict[str, Trainer] = {}
_ABOUT_WHAT_IS_MISSING = ("missing", "missing_for_musubi", "model_missing", "rank_missing", "lr_left_out")


def rule(function: Rule) -> Rule:
    """Decorator: a rule for every trainer. A finding carries the function's name."""
    _RULES[function.__name__] = function
    return function


def rule_of(trainer: Trainer) -> Callable[[Rule], Rule]:
    """Decorator: a rule about what one trainer alone does."""

    def decorate(function: Rule) -> Rule:
        _ONLY_FOR[function.__name__] = trainer
        return rule(function)

    return decorate


def rules() -> dict[str, Rule]:
    _import_all()
    return _RULES


def _is_unseen(finding: Finding, run: Run) -> bool:
    """Whether it is about an option whose value, or whose absence, only running the shell would tell."""
    if finding.level is Level.NOT_LOOKED_AT:
        return False
    return finding.key in run.source.unseen_options or (
        finding.rule in _ABOUT_WHAT_IS_MISSING and run.source.has_unseen_words
    )


@lru_cache(maxsize=1)
def _import_all() -> None:
    for module in iter_modules(__path__, f"{__name__}."):
        import_module(module.name)


def findings(run: Run) -> list[Finding]:
    """The gravest first; of one level in the order of the rules."""
    about = [
        (name, check)
        for name, check in rules().items()
        if _ONLY_FOR.get(name, run.schema.trainer) is run.schema.trainer
    ]
    result = [dc.replace(each, rule=each.rule or name) for name, check in about for each in check(run)]
    result = [each for each in result if not _is_unseen(each, run)]
    return sorted(result, key=lambda each: each.level.rank)
