"""AdaptiveHinaAdamW: HinaAdamW that finds out by itself which parameters belong together and which matter."""

import logging
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch

from hina_kohya.core.parameter import Ties
from hina_kohya.discovery.relationships import EARLY, Relationships
from hina_kohya.optim import report
from hina_kohya.optim.family import Family
from hina_kohya.parameters.roles import Member
from hina_kohya.techniques.automagic_mask import AutomagicMask
from hina_kohya.techniques.importance import Importance

logger = logging.getLogger("hina_kohya")

TOP = 10  # parameters that `get_importance_analysis` lists
HIGH, LOW = 2.0, 0.5  # relative importance that counts as high or low
ROUNDING = 1e-6


class AdaptiveHinaAdamW(Family):
    """HinaAdamW that finds pairs without names, by an identity of their gradients, and measures what matters.

    What it finds has the effect that a name has: LoRA+ for the factor that started at zero, and each other pair rule
    that is on. Names, where there are any, win. Importance moves learning rate with ``adaptation_strength``; at 0 it is
    only measured. With every technique off it is torch.optim.AdamW, bit for bit.

    Example::

        AdaptiveHinaAdamW(network.parameters(), lr=1e-3, adaptation_strength=0.5)
        # sd-scripts: --optimizer_type hina_kohya.AdaptiveHinaAdamW --optimizer_args "importance_decay=0.98"
    """

    overrides = {"use_lora_muon": True}

    @classmethod
    def check_settings(cls, settings: SimpleNamespace) -> None:
        steps = settings.relationship_discovery_interval
        if not float(steps).is_integer():
            raise ValueError(f"relationship_discovery_interval = {steps} is no whole number of steps")

    @cached_property
    def _relations(self) -> Relationships | None:
        return self._fresh_relations()

    def _fresh_relations(self) -> Relationships | None:
        settings = self.settings
        if not settings.use_dynamic_adaptation:
            return None
        return Relationships(int(settings.relationship_discovery_interval), settings.compatibility_threshold)

    def _resolved(self) -> list[Member]:
        members = super()._resolved()
        return members if self._relations is None else self._relations.joined(members)

    def _ties(self) -> Ties:
        named = super()._ties()
        if self._relations is None:
            return named
        return [tuple({*a, *b}) for a, b in zip(named, self._relations.ties(len(named)), strict=True)]

    def _before_step(self) -> None:
        if self._relations is None:
            return
        if self._relations.before_step(self.params(), super()._resolved):
            self.replan()
        if self._relations.steps == EARLY[-1] + 1:
            report.say_idle(self)

    def _announce(self) -> None:
        if self._relations is None or self._relations.steps > EARLY[-1]:
            super()._announce()
        else:  # what acts on no parameter is said once pairs without names could have been found
            logger.info(self.summary())

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        saved = super().state_dict()
        return saved if self._relations is None else {**saved, "relationships": self._relations.state_dict()}

    def _after_load(self, saved: Mapping[str, Any], places: Sequence[int]) -> None:
        self._relations = self._fresh_relations()
        if self._relations is not None and "relationships" in saved and places:
            self._relations.load(saved["relationships"], places, self.params()[0].device)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_relations": self._relations}

    # What it says of itself

    def get_relationship_summary(self) -> dict[str, Any]:
        """What was found, what the names said, and where the two disagree."""
        relations = self._relations or Relationships(1, 0.5)
        found, members, relative = relations.relationships(), self.members, self._importance()[0]
        name = self.member_name
        return {
            "total_relationships": len(found),
            "relationships": [
                {
                    "param": name(r.param),
                    "partner": name(r.partner),
                    "shape": list(members[r.param].shape),
                    "partner_shape": list(members[r.partner].shape),
                    "compatibility": r.compatibility,
                    "joint_importance": math.sqrt(relative[r.param] * relative[r.partner]),
                    "interaction_type": r.interaction_type,
                }
                for r in found
            ],
            "by_type": dict(sorted(Counter(r.interaction_type for r in found).items())),
            "named_pairs": sum(m.partner is not None and m.role.side == "B" for m in super()._resolved()),
            "confirmed": relations.confirmed,
            "disagreements": [
                {"param": name(b), "partner": name(a), "kind": kind}
                for kind, pairs in (("named, not found", relations.denied), ("found, not named", relations.unexpected))
                for b, a in pairs
            ],
        }

    def get_importance_analysis(self) -> dict[str, Any]:
        """Importance relative to the param group's geometric mean, and the multipliers of the next step."""
        relative, multipliers = self._importance()
        ranked = sorted(range(len(relative)), key=lambda index: -relative[index])
        return {
            "total_parameters": len(relative),
            "importance_statistics": _statistics(relative),
            "high_importance_params": sum(value > HIGH for value in relative),
            "low_importance_params": sum(value < LOW for value in relative),
            "top": [
                {"name": self.member_name(i), "importance": relative[i], "multiplier": multipliers[i]}
                for i in ranked[:TOP]
            ],
        }

    def get_lr_mask_analysis(self) -> dict[str, Any]:
        """Multipliers of the automagic mask, over elements: of all, and by param group."""
        rows: dict[int, list[list[float]]] = {number: [] for number in range(len(self.param_groups))}
        for bucket in self.plan().buckets:
            for mask in (technique for technique in bucket.chain if isinstance(technique, AutomagicMask)):
                level = bucket.slabs[mask.name, "level"].read(slice(None), torch.float64)
                factor = mask.multiplier(level).flatten(1)
                low = (factor < mask.low * (1 + mask.bump) * (1 - ROUNDING)).double().mean(dim=1)
                high = (factor * (1 + mask.bump) > mask.high * (1 + ROUNDING)).double().mean(dim=1)
                columns = torch.stack([factor.mean(dim=1), factor.amax(dim=1), factor.amin(dim=1), low, high], dim=1)
                for group, row in zip(bucket.groups.tolist(), columns.tolist(), strict=True):
                    rows[group].append([bucket.key.shape.numel(), *row])
        every = [row for own in rows.values() for row in own]
        by_group = {f"group_{number}": _mask(own) for number, own in rows.items()}
        return {"enabled": bool(every), **_mask(every), "by_group": by_group}

    def _importance(self) -> tuple[list[float], list[float]]:
        """Of each parameter, importance relative to its group's and multiplier; 1 where there is no signal."""
        relative, multipliers = ([1.0] * len(self.members) for _ in range(2))
        for pooling in self.plan().poolings():
            if isinstance(pooling.technique, Importance):
                table = pooling.table()
                logs, _ = pooling.technique.relative(table)
                both = torch.stack([logs.exp(), pooling.technique.pool(table)]).flatten(1).tolist()
                for index, place in pooling.places.items():
                    relative[index], multipliers[index] = both[0][place], both[1][place]
        return relative, multipliers


def _statistics(values: Sequence[float]) -> dict[str, float]:
    values = values or [1.0]
    return {
        "mean": statistics.fmean(values),
        "max": max(values),
        "min": min(values),
        "std": statistics.pstdev(values),
    }


def _mask(rows: Sequence[Sequence[float]]) -> dict[str, Any]:
    """From rows of elements, mean, max, min, share at low and at high."""
    count = sum(row[0] for row in rows)
    mean, low, high = (sum(row[0] * row[k] for row in rows) / max(count, 1) for k in (1, 4, 5))
    extremes = (max(row[2] for row in rows), min(row[3] for row in rows)) if rows else (1.0, 1.0)
    return {
        "elements": int(count),
        "statistics": {"mean": mean if rows else 1.0, "max": extremes[0], "min": extremes[1]},
        "share_at_low": low,
        "share_at_high": high,
    }
