"""What the optimizers of this family accept, said once: defaults, bounds, meaning, and the technique each one sets."""

import dataclasses as dc
import logging
from collections.abc import Mapping
from typing import Any

from hina_kohya.core import registry
from hina_kohya.core.hyper import check, did_you_mean, hyper
from hina_kohya.core.technique import Stage, Technique

logger = logging.getLogger("hina_kohya")

# flag -> the technique it turns on
FLAGS = {
    "use_agr": "agr",
    "use_orthogonal_grad": "orthograd",
    "use_tam": "tam",
    "use_adopt_stability": "adopt",
    "use_lora_rite": "lora_rite",
    "use_cautious": "cautious",
    "use_grams": "grams",
    "use_alora": "lora_plus",
    "use_allora_rows": "allora_rows",
    "use_kronecker_rms": "kronecker_rms",
    "dynamic_weight_decay": "dynamic_weight_decay",
    "use_cautious_weight_decay": "cautious_weight_decay",
    "use_spd": "spd",
}
# argument -> the technique's option it sets
OPTIONS = {
    "spd_lambda": "spd.lam",
    "tam_beta": "tam.beta",
    "alora_ratio": "lora_plus.ratio",
    "wd_transition_steps": "dynamic_weight_decay.transition_steps",
    "wd_decay_factor": "dynamic_weight_decay.decay_factor",
    "wd_min_ratio": "dynamic_weight_decay.min_ratio",
}
# winner -> losers, where both fit every parameter; `Technique.yields_to` carries it out
EXCLUSIVE = {
    "cautious": ("grams",),
    "adatam": ("adopt",),
    "spd": ("weight_decay", "cautious_weight_decay", "dynamic_weight_decay"),
}
# Of the bitsandbytes-based classes these names come from; nothing here corresponds to them.
WITHOUT_EFFECT = ("amsgrad", "optim_bits", "args", "min_8bit_size", "percentile_clipping", "block_wise", "is_paged")


@dc.dataclass(frozen=True)
class Settings:
    """Arguments that every optimizer of the family accepts."""

    lr: float = hyper(1e-3, "[0, inf)", doc="learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), doc="decay of the averages of gradient and squared gradient")
    eps: float = hyper(1e-8, "(0, inf)", doc="added to the root of the second moment")
    weight_decay: float = hyper(1e-2, "[0, inf)", doc="decoupled weight decay, for roles that decay")
    state: str = hyper("8bit", doc='how moments are kept: "8bit", "bf16" or "fp32"')
    decay_roles: tuple[str, ...] = hyper((), doc='roles that decay besides the factors, or "all"')
    use_spd: bool = hyper(False, doc="selective projection decay, instead of weight decay")
    spd_lambda: float = hyper(0.06, "[0, inf)", doc="strength of SPD")
    use_cautious: bool = hyper(True, doc="drop update entries that disagree with the gradient")
    use_orthogonal_grad: bool = hyper(False, doc="OrthoGrad: remove the gradient's part along the parameter")
    use_adopt_stability: bool = hyper(False, doc="ADOPT instead of Adam")
    use_grams: bool = hyper(False, doc="magnitude of the update, sign of the gradient")
    use_agr: bool = hyper(False, doc="adaptive gradient regularization")
    use_tam: bool = hyper(False, doc="torque-aware momentum")
    tam_beta: float = hyper(0.9, "[0, 1)", doc="decay of TAM's average of cosines")
    tam_paper_form: bool = hyper(False, doc="AdaTAM as in the paper: steps are 10 to 45 times larger at the same lr")
    use_lora_rite: bool = hyper(False, doc="LoRA-RITE for pairs, instead of Adam")
    use_cautious_weight_decay: bool = hyper(False, doc="decay only what the update does not move away from zero")
    dynamic_weight_decay: bool = hyper(False, doc="let weight decay fade")
    wd_transition_steps: float = hyper(1000, "(0, inf)", doc="steps, or fraction of the run, before it fades")
    wd_decay_factor: float = hyper(0.7, "(0, 1]", doc="what is left after each further transition")
    wd_min_ratio: float = hyper(0.1, "[0, 1]", doc="floor of the fade")
    preset: str | None = hyper(None, doc="name of a file in configs/presets, or a path; arguments given win over it")
    compile: bool = hyper(False, doc="compile the chain with torch.compile")
    override_hyperparameters: bool = hyper(False, doc="on resume, keep these settings instead of the checkpoint's")

    def __post_init__(self):
        check(self)
        beta1, beta2 = self._pair("betas", self.betas)
        registry.build("adam", beta1=beta1, beta2=beta2)

    @staticmethod
    def _pair(name: str, value: Any) -> tuple[float, float]:
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise ValueError(f"{name} = {value!r} must be two numbers, such as (0.9, 0.999)")
        return value[0], value[1]


@dc.dataclass(frozen=True)
class Resolved:
    """Settings after presets, conflicts and dotted options: the chain and what was decided on the way."""

    settings: Settings
    techniques: list[Technique]
    conflicts: list[str]


def resolve(cls: type[Settings], given: Mapping[str, Any], preset: Mapping[str, Any]) -> Resolved:
    """Turns arguments into a chain. Raises ValueError or TypeError for what is unknown or out of bounds."""
    given = _modern(given)
    known = {field.name for field in dc.fields(cls)}
    arguments = {**preset, **given}
    dotted = {name: value for name, value in arguments.items() if "." in name}
    plain = {name: value for name, value in arguments.items() if "." not in name}
    for name in plain:
        if name not in known:
            raise TypeError(f"unknown argument {name!r}; {did_you_mean(name, known)}")
    settings = cls(**plain)
    conflicts: list[str] = []
    on = _wanted(settings, plain, conflicts)
    options = _options(settings, plain, on)
    idle = [name for name in given if name in OPTIONS and OPTIONS[name].split(".")[0] not in on]
    if idle:
        logger.warning("without effect, since the technique is off: %s", ", ".join(idle))
    for name, value in dotted.items():
        technique, _, option = name.partition(".")
        registry.technique(technique)
        if technique not in on:
            flag = next((flag for flag, name in FLAGS.items() if name == technique), None)
            hint = f"add {flag}=True" if flag and flag in known else "this optimizer does not use it"
            raise ValueError(f"{name} was given, but {technique} is off; {hint}")
        options[technique][option] = value
    return Resolved(settings, [registry.build(name, **options[name]) for name in on], conflicts)


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
    on |= {"weight_decay"} if {"adopt", "adatam"} & on else {"weight_decay", "adam"}
    asked |= {"weight_decay"} if given.get("weight_decay") else set()
    for winner, losers in EXCLUSIVE.items():
        for loser in losers:
            if winner in on and loser in on:
                kept, dropped = (loser, winner) if loser in asked and winner not in asked else (winner, loser)
                on.discard(dropped)
                if dropped in asked:
                    conflicts.append(f"{dropped} is off: {kept} excludes it")
    if conflicts:
        logger.warning("settings that exclude each other: %s", "; ".join(conflicts))
    order = list(registry.techniques())
    return sorted(on, key=order.index)


def _options(settings: Settings, given: Mapping[str, Any], on: list[str]) -> dict[str, dict[str, Any]]:
    options: dict[str, dict[str, Any]] = {name: {} for name in on}
    for argument, target in OPTIONS.items():
        technique, option = target.split(".")
        if technique in on and hasattr(settings, argument):
            options[technique][option] = getattr(settings, argument)
    for name in on:
        if registry.technique(name).stage is Stage.MOMENT:
            # Each MOMENT technique has its paper's betas and epsilon unless the user asks for others.
            if "betas" in given or name == "adam":
                options[name].update(beta1=settings.betas[0], beta2=settings.betas[1])
            if "eps" in given or name == "adam":
                options[name].update(eps=settings.eps)
    return options
