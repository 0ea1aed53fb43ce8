"""From arguments to a chain: presets, profiles, conflicts and dotted options."""

import dataclasses as dc
import logging
from collections.abc import Mapping
from typing import Any

from hina_kohya.core import registry
from hina_kohya.core.hyper import did_you_mean
from hina_kohya.core.technique import Stage, Technique
from hina_kohya.optim.settings import Settings

logger = logging.getLogger("hina_kohya")

# flag -> the technique it turns on
FLAGS = {
    "use_auto_lr": "auto_rate",
    "edge_suppression": "edge_suppression",
    "spatial_awareness": "spatial_frequency",
    "use_agr": "agr",
    "use_orthogonal_grad": "orthograd",
    "use_tam": "tam",
    "background_regularization": "temporal_frequency",
    "enable_dual_momentum": "dual_momentum",
    "use_adopt_stability": "adopt",
    "came": "came",
    "use_muon": "muon",
    "use_lora_muon": "lora_muon",
    "use_lora_rite": "lora_rite",
    "use_cautious": "cautious",
    "use_context": "contextual_cautious",
    "use_grams": "grams",
    "rank_free_lr": "rank_free",
    "use_alora": "lora_plus",
    "use_allora_rows": "allora_rows",
    "use_kronecker_rms": "kronecker_rms",
    "use_lr_mask": "automagic_mask",
    "use_dynamic_adaptation": "importance",
    "dynamic_weight_decay": "dynamic_weight_decay",
    "use_cautious_weight_decay": "cautious_weight_decay",
    "use_spd": "spd",
    "lora_rank_penalty": "rank_penalty",
}
# argument -> the techniques' options it sets
OPTIONS: dict[str, tuple[str, ...]] = {
    "d0": ("auto_rate.d0",),
    "d_coef": ("auto_rate.coef",),
    "use_normuon": ("muon.normuon",),
    "rank_free_lr": ("lora_muon.rank_free",),
    "spd_lambda": ("spd.lam",),
    "tam_beta": ("tam.beta",),
    "alora_ratio": ("lora_plus.ratio",),
    "wd_transition_steps": ("dynamic_weight_decay.transition_steps",),
    "wd_decay_factor": ("dynamic_weight_decay.decay_factor",),
    "wd_min_ratio": ("dynamic_weight_decay.min_ratio",),
    "adaptation_strength": ("importance.strength",),
    "importance_decay": ("importance.beta",),
    "warmup_steps": ("automagic_mask.until",),
    "min_lr": ("automagic_mask.low",),
    "max_lr": ("automagic_mask.high",),
    "lr_bump": ("automagic_mask.bump",),
    "clip_threshold": ("came.clip_threshold",),
    "beta1_decay": ("came.beta1_decay",),
    "bias_correct_confidence": ("came.bias_correct_confidence",),
    "eta": ("allora_rows.eta",),
    "edge_threshold": ("edge_suppression.threshold",),
    "edge_penalty": ("edge_suppression.penalty",),
    "frequency_penalty": ("spatial_frequency.penalty", "temporal_frequency.penalty"),
    "detail_preservation": ("spatial_frequency.preserve", "temporal_frequency.preserve"),
    "rank_penalty_strength": ("rank_penalty.strength",),
    "low_rank_emphasis": ("rank_penalty.emphasis",),
    "long_term_beta": ("dual_momentum.long_beta",),
    "alpha_mix_ratio": ("dual_momentum.alpha",),
    "momentum_scales": ("contextual_cautious.scales",),
    "context_window": ("contextual_cautious.window",),
    "adaptation_rate": ("contextual_cautious.rate",),
}
_SET_ELSEWHERE = ("min_lr", "max_lr", "lr_bump")  # by `Settings.technique_options`
# winner -> losers, where both fit every parameter; `Technique.yields_to` carries it out
EXCLUSIVE = {
    "contextual_cautious": ("cautious", "grams"),
    "cautious": ("grams",),
    "adatam": ("adopt", "came"),
    "came": ("adopt",),
    "lora_rite": ("lora_muon",),
    "spd": ("weight_decay", "cautious_weight_decay", "dynamic_weight_decay"),
}
# What else yields to LoRA-Muon says that it is not wanted; these are for the parameters that it leaves.
BESIDE_LORA_MUON = {"cautious", "rank_free"}
OWN_ADAM = {"adopt", "adatam", "came"}  # instead of Adam, for every parameter
ADAPTERS_ONLY = ("lora_plus", "allora_rows", "kronecker_rms", "lora_muon", "lora_rite", "rank_free", "rank_penalty")
# Of the bitsandbytes-based classes these names come from; nothing here corresponds to them.
WITHOUT_EFFECT = ("amsgrad", "optim_bits", "args", "min_8bit_size", "percentile_clipping", "block_wise", "is_paged")


@dc.dataclass(frozen=True)
class Resolved:
    """Settings after presets, conflicts and dotted options: the chain and what was decided on the way."""

    settings: Settings
    techniques: list[Technique]
    conflicts: list[str]
    asked: dict[str, str]  # technique -> the argument that asks for it, which is more than being on by default


def resolve(
    cls: type[Settings],
    given: Mapping[str, Any],
    preset: Mapping[str, Any],
    profiles: Mapping[str, Mapping[str, Any]] | None = None,
) -> Resolved:
    """Turns arguments into a chain. Raises ValueError or TypeError for what is unknown or out of bounds."""
    given = _modern(given)
    known = {field.name for field in dc.fields(cls)}
    arguments = {**preset, **given}
    arguments = {**_profile(arguments.get("profile"), profiles or {}), **arguments}
    dotted = {name: value for name, value in arguments.items() if "." in name}
    plain = {name: value for name, value in arguments.items() if "." not in name}
    for name in plain:
        if name not in known:
            raise TypeError(f"unknown argument {name!r}; {did_you_mean(name, known)}")
    settings = cls(**plain)
    conflicts: list[str] = []
    on = _wanted(settings, plain, conflicts)
    options = _options(settings, plain, on)
    targets = {**OPTIONS, **settings.targets}
    idle = [
        name
        for name in given
        if name in targets and not {FLAGS.get(name), *(target.split(".")[0] for target in targets[name])} & set(on)
    ]
    if idle:
        logger.warning("without effect, since the technique is off: %s", ", ".join(idle))
    for name, value in dotted.items():
        technique, _, option = name.partition(".")
        registry.technique(technique)
        if technique in on:
            options[technique][option] = value
        elif name in given:
            flag = next((flag for flag, name in FLAGS.items() if name == technique), None)
            hint = f"add {flag}=True" if flag and flag in known else "this optimizer does not use it"
            raise ValueError(f"{name} was given, but {technique} is off; {hint}")
    choices = {**preset, **given}  # a profile turns much on that need not fit
    flags = {name: flag for flag, name in FLAGS.items() if choices.get(flag) and name in on}
    return Resolved(settings, [registry.build(name, **options[name]) for name in on], conflicts, flags)


def _profile(name: str | None, profiles: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    if name is None:
        return {}
    if name not in profiles:
        raise ValueError(f"profile = {name!r} does not exist; {did_you_mean(str(name), profiles)}")
    return profiles[name]


def _modern(given: Mapping[str, Any]) -> dict[str, Any]:
    """Old configs: bits become `state`; the rest of what has no meaning here is dropped, and said once."""
    given = dict(given)
    dropped = [name for name in WITHOUT_EFFECT if name in given]
    bits = given.get("optim_bits")
    for name in dropped:
        del given[name]
    if bits == 32:
        given.setdefault("state", "fp32")
        dropped.remove("optim_bits")
    if dropped:
        logger.warning("accepted for old configs, without effect: %s", ", ".join(dropped))
    return given


def _wanted(settings: Settings, given: Mapping[str, Any], conflicts: list[str]) -> list[str]:
    """Names of the techniques that are on, after conflicts: what was asked for beats a default, then `EXCLUSIVE`."""
    on = {name for flag, name in FLAGS.items() if getattr(settings, flag, False)}
    asked = {name for flag, name in FLAGS.items() if given.get(flag)}
    if settings.tam_paper_form and "tam" in on:
        on = on - {"tam"} | {"adatam"}
        asked |= {"adatam"}
    on |= {"weight_decay"}
    asked |= {"weight_decay"} if given.get("weight_decay") else set()

    def drop(name: str, because: str) -> None:
        on.discard(name)
        if name in asked:
            conflicts.append(f"{name} is off: {because} excludes it")

    for name in sorted(on & set(ADAPTERS_ONLY)) if getattr(settings, "full_finetune", False) else ():
        drop(name, "full_finetune")
    if asked & OWN_ADAM and "muon" not in asked:  # both are fine: Muon for matrices, the other for the rest
        on.discard("muon")
    displaced = {name for name in asked if {"lora_muon"} & set(registry.technique(name).yields_to)}
    if "lora_muon" not in asked and displaced - BESIDE_LORA_MUON:
        on.discard("lora_muon")
    for winner, losers in EXCLUSIVE.items():
        for loser in losers:
            if {winner, loser} <= on:
                loser_first = loser in asked and winner not in asked
                drop(*((winner, loser) if loser_first else (loser, winner)))
    if not on & OWN_ADAM:
        on |= {"adam"}
    if conflicts:
        logger.warning("settings that exclude each other: %s", "; ".join(conflicts))
    order = list(registry.techniques())
    return sorted(on, key=order.index)


def _options(settings: Settings, given: Mapping[str, Any], on: list[str]) -> dict[str, dict[str, Any]]:
    options: dict[str, dict[str, Any]] = {name: {} for name in on}
    for argument, targets in {**OPTIONS, **settings.targets}.items():
        value = getattr(settings, argument, None)
        for technique, _, option in (target.partition(".") for target in targets):
            if technique in on and value is not None and argument not in _SET_ELSEWHERE:
                options[technique][option] = value
    for name, more in settings.technique_options(given).items():
        if name in on:
            options[name].update(more)
    for name in on:
        if registry.technique(name).stage is Stage.MOMENT:
            options[name].update(settings.moment_options(name, given))
    return options
