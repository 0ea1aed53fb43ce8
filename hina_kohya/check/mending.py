"""The lines that mend findings: tried one by one, and printed only where each removes its finding and adds none."""

import dataclasses as dc
import functools
import operator
from collections import Counter
from collections.abc import Callable, Sequence

from hina_kohya.check.edit import Edit
from hina_kohya.check.finding import Finding, Level
from hina_kohya.check.reading.source import Source
from hina_kohya.trainers.errors import UserError

# A trial reads the configuration again: of long ones fewer are made.
_MOST_TRIALS, _MOST_WORK = 60, 100_000
Check = Callable[[Source], list[Finding]]


@dc.dataclass(frozen=True)
class Remedy:
    """One change that takes away all of `findings`. steps: pairs of a verb and a line"""

    findings: tuple[Finding, ...]
    edit: Edit
    steps: tuple[tuple[str, str], ...]


def remedies(source: Source, findings: Sequence[Finding], check: Check) -> list[Remedy]:
    """In the order of the findings. Changes of one option become one line."""
    budget = max(4, min(_MOST_TRIALS, _MOST_WORK // (len(source.values) + 1)))
    trials = _Trials(source, findings, check, budget)
    edits = [(each, trials.mending(each)) for each in findings]
    candidates = [Remedy((each,), edit, ()) for each, edit in edits if edit]
    result: list[Remedy] = []
    for remedy in candidates:
        place = next((place for place, other in enumerate(result) if _share(remedy.edit, other.edit)), None)
        if place is None:
            result.append(remedy)
            continue
        union = Remedy((*result[place].findings, *remedy.findings), result[place].edit + remedy.edit, ())
        if trials.mends(union.findings, union.edit):
            result[place] = union  # else one line would undo the other: the first is printed
    return [dc.replace(each, steps=tuple(each.edit.steps(source))) for each in result]


class _Trials:
    def __init__(self, source: Source, findings: Sequence[Finding], check: Check, budget: int):
        self.source, self.before, self.check, self.budget = source, findings, check, budget

    def mending(self, finding: Finding) -> Edit | None:
        """Its change; where that brings findings that have changes too, all of these as one."""
        if not finding.edit or self.mends((finding,), finding.edit):
            return finding.edit
        effects = self._brought(finding.edit)
        if not effects or not all(each.edit for each in effects):
            return None
        union = functools.reduce(operator.add, (each.edit for each in effects if each.edit), finding.edit)
        return union if self.mends((finding,), union) else None

    def mends(self, findings: Sequence[Finding], edit: Edit) -> bool:
        """Whether all of these are gone with it, and nothing else has come."""
        after = self._after(edit)
        if after is None:
            return False
        identities = {each.identity for each in findings}
        return not any(each.identity in identities for each in after) and not self._new(after)

    def _brought(self, edit: Edit) -> list[Finding]:
        return self._new(self._after(edit) or [])

    def _new(self, after: Sequence[Finding]) -> list[Finding]:
        counts = Counter(each.identity for each in self.before)
        new = []
        for each in after:
            if counts[each.identity] <= 0:
                new.append(each)
            counts[each.identity] -= 1
        return new

    def _after(self, edit: Edit) -> list[Finding] | None:
        """What is wrong then; None for a change that nothing can be read after, or when too many have been tried."""
        if self.budget <= 0:
            return None
        self.budget -= 1
        try:
            return [each for each in self.check(edit.applied(self.source)) if _is_wrong(each)]
        except UserError:
            return None


def _is_wrong(finding: Finding) -> bool:
    """What cannot be looked at is no mistake that a line may not bring."""
    return finding.level is not Level.NOT_LOOKED_AT


def _share(edit: Edit, other: Edit) -> bool:
    """Whether both change one option, which can have one line only."""
    return bool({*edit.keys} & {*other.keys})
