"""What the first line of the log says of ranks and alphas: what they multiply the learning rate by."""

import dataclasses as dc
from collections.abc import Sequence

from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.parameters.roles import Member


def words(optimizer: HinaOptimizer) -> list[str]:
    """Empty where ranks and alphas are as good as not there."""
    free: list[Member] = []
    with_root: list[Member] = []
    for each in optimizer.parameters():
        options = {technique.name: dc.asdict(technique) for technique in each.chain}
        of_pairs = options.get("lora_muon", {})
        if "rank_free" in options or of_pairs.get("rank_free"):
            free.append(each.member)
        elif of_pairs.get("alpha_root"):
            with_root.append(each.member)
    return _free(free) + _with_root(with_root)


def _free(members: Sequence[Member]) -> list[str]:
    """With rank_free_lr."""
    if not members:
        return []
    ranks = sorted({member.rank for member in members if member.rank})
    facts = [f"rank {_range(list(map(str, ranks)))}"] if ranks else []
    if scales := _known(members):
        facts.append(f"alpha / rank {_range([f'{scale:.3g}' for scale in scales])}")
    return [f"rank_free_lr for {', '.join(facts + _unknown(members))}"]


def _with_root(members: Sequence[Member]) -> list[str]:
    """With LoRA-Muon's own way with a small alpha."""
    small = [scale for scale in _known(members) if scale < 1]
    factors = _range([f"{scale**-0.5:.3g}" for scale in reversed(small)]) if small else ""
    facts = [f"learning rate of pairs times {factors} for alpha / rank of {small[0]:.3g}"] if small else []
    return facts + _unknown(members)


def _known(members: Sequence[Member]) -> list[float]:
    return sorted({member.scale for member in members if member.scale is not None})


def _unknown(members: Sequence[Member]) -> list[str]:
    count = sum(member.scale is None for member in members)
    if not count:
        return []
    return [f"alpha / rank of {count} of {len(members)} tensors not known and taken for 1: set lora_scale"]


def _range(values: list[str]) -> str:
    """The first and the last, if they differ."""
    return " to ".join(dict.fromkeys((values[0], values[-1])))
