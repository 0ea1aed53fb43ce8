"""A chain: techniques in the order of the step, run over one chunk of a bucket as one pure function."""

from __future__ import annotations  # evaluated, those of the functions made in a step would break torch 2.6's graph

from collections.abc import Iterable, Mapping

from torch import Tensor

from hina_kohya.core.signal import Enter, Leave, Signal
from hina_kohya.core.technique import Stage, State, Technique

Chain = tuple[Technique, ...]
_NONE: Mapping[str, Tensor] = {}


def ordered(techniques: Iterable[Technique]) -> Chain:
    """Techniques by stage. Raises unless names are unique, MOMENT is there once and DECAY at most once."""
    chain = tuple(sorted(techniques, key=lambda technique: technique.stage))
    names = [technique.name for technique in chain]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"techniques given twice: {', '.join(sorted(twice))}")
    for stage, least in ((Stage.MOMENT, 1), (Stage.DECAY, 0)):
        found = [technique.name for technique in chain if technique.stage is stage]
        if not least <= len(found) <= 1:
            raise ValueError(f"a chain needs {'one' if least else 'at most one'} {stage.name} technique, not {found}")
    return chain


def run(
    chain: Chain,
    s: Signal,
    states: Mapping[str, State],
    others: Mapping[str, Tensor] = _NONE,
) -> tuple[Tensor, dict[str, State]]:
    """One step of N matrices: the new parameters [N, m, n] and the new state by technique and slot.

    ``others`` holds, by technique, what becomes its `Signal.others`. Nothing that is passed in is written to.
    """
    states = {technique.name: dict(states.get(technique.name, {})) for technique in chain}
    subtracted = False
    last = _last_update(chain)
    for technique in chain:
        state = states[technique.name]
        if technique.stage is Stage.TORQUE:
            s = s.but(enter=_entering(technique, s, state), leave=_leaving(technique, s, state))
            continue
        if technique.stage is Stage.PARAMETER and not subtracted:
            s, subtracted = s.but(param=_subtracted(s)), True
        s = technique.apply(s.but(others=others.get(technique.name)), state)
        if technique.stage is Stage.MOMENT:
            s = s.but(direction=s.update)
        if technique is last:
            s = _held(s, chain)
    for technique in chain:
        if technique.follows:
            technique.follow(s.but(others=others.get(technique.name)), states[technique.name])
    return (s.param if subtracted else _subtracted(s)), states


def rates(chain: Chain, s: Signal, states: Mapping[str, State], others: Mapping[str, Tensor] = _NONE) -> Tensor:
    """[N, m, n] the learning rate that each entry has in the end: what RATE, MOMENT and STEP_SIZE multiply it by."""
    for technique in chain:
        if technique.stage is Stage.MOMENT:
            s = s.but(update=s.scalar(s.lr * technique.rate_factor(s)).expand_as(s.before))
        elif technique.stage in (Stage.RATE, Stage.STEP_SIZE):
            s = technique.apply(s.but(others=others.get(technique.name)), dict(states.get(technique.name, {})))
    return s.update


def _subtracted(s: Signal) -> Tensor:
    # What decay made is nobody else's, and may be written over: a large matrix feels one more pass over memory.
    return s.param - s.update if s.param is s.before else s.param.sub_(s.update)


def _last_update(chain: Chain) -> Technique | None:
    """After which the update is held to the chain's reach; None where nothing can go beyond it."""
    made = [technique for technique in chain if technique.stage in (Stage.MOMENT, Stage.UPDATE)]
    return made[-1] if any(technique.stretches for technique in made) else None


def _held(s: Signal, chain: Chain) -> Signal:
    reach = next(technique for technique in chain if technique.stage is Stage.MOMENT).reach(s.step)
    if reach is None:
        return s
    limit = s.scalar(s.lr * reach)
    if s.update is not s.direction:  # what UPDATE techniques made is nobody else's
        return s.but(update=s.update.clamp_(-limit, limit))
    return s.but(update=s.update.clamp(-limit, limit))


def _entering(technique: Technique, s: Signal, state: State) -> Enter:
    def enter(momentum: Tensor, incoming: Tensor) -> Tensor:
        return technique.enter(s, momentum, s.enter(momentum, incoming), state)

    return enter


def _leaving(technique: Technique, s: Signal, state: State) -> Leave:
    def leave(momentum: Tensor, incoming: Tensor, weight: Tensor | float) -> Tensor:
        return technique.leave(s, s.leave(momentum, incoming, weight), incoming, weight, state)

    return leave
