"""The table of constructor arguments: what each one sets, and which classes have it.

From it follow the signatures of the classes, what is refused and why, `hina-kohya optimizers`, docs/arguments.md, the
stub `hina_kohya/__init__.pyi` and the cases of the tests. Its order is theirs: usual ones, then by stage of the step.
"""

import dataclasses as dc
import inspect
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from hina_kohya.core.hyper import hyper
from hina_kohya.optim import mask
from hina_kohya.optim.kinds import Argument, Betas, Joint, Numbers, Option, Own, Switch
from hina_kohya.text import did_you_mean

AUTO, ADAPTIVE, CONTEXT = ("HinaAuto",), ("AdaptiveHinaAdamW",), ("COptim",)
CAME = ("AutomagicCameAMP", "COptim")
MASKED = (*ADAPTIVE, *CAME)
_MASK: dict[str, Any] = {"kind": float | None, "technique": "automagic_mask", "become": mask.options}
_WEIGHT_DECAYS = ("weight_decay", "cautious_weight_decay", "dynamic_weight_decay")

ROWS: tuple[Argument, ...] = (
    # As torch's optimizers have them
    Own("lr", hyper(1e-3, "[0, inf)", doc="learning rate"), kind=float | Tensor),
    Own("lr", hyper(1.0, "[0, inf)", doc="multiplies the learning rate that is found"), AUTO, kind=float | Tensor),
    Betas("betas", ("adam.beta1", "adam.beta2")),
    Betas("betas", ("adam.beta1", "adam.beta2", "came.beta3"), CAME),
    Option("eps", ("adam.eps", "adopt.eps", "adatam.eps", "lora_rite.eps"), warns=False),
    Numbers("eps", ("came.eps1", "came.eps2", "adam.eps"), CAME),
    Own("weight_decay", hyper(1e-2, "[0, inf)", doc="decoupled weight decay, for roles that decay")),
    # About the whole optimizer
    Own(
        "state",
        hyper("8bit", doc='how moments are kept: "8bit", "bf16" or "fp32"'),
        kind=Literal["8bit", "bf16", "fp32"],
    ),
    Own(
        "preset",
        hyper(None, doc="name of a file in configs/presets, or a path; arguments given win over it"),
        kind=str | None,
    ),
    Own(
        "profile",
        hyper(None, doc='"memory_optimized", "balanced" or "quality_optimized"; arguments win'),
        CAME,
        kind=str | None,
    ),
    Own("decay_roles", hyper((), doc='roles that decay besides the factors, or "all"'), kind=tuple[str, ...] | str),
    Own("lora_scale", hyper(None, "(0, inf)", doc="alpha / rank, where no trainer's hook says it"), kind=float | None),
    Own("full_finetune", hyper(False, doc="whole weights are trained: no rule that is for adapters"), CAME, kind=bool),
    Own(
        "override_hyperparameters",
        hyper(False, doc="on resume, keep these settings instead of the checkpoint's"),
        kind=bool,
    ),
    Own("compile", hyper(False, doc="compile the chain with torch.compile"), kind=bool),
    Own("verbose", hyper(False, doc="log every technique in effect with its options"), CAME, kind=bool),
    Own(
        "relationship_discovery_interval",
        hyper(100, "[1, inf)", doc="steps between two looks for relationships"),
        ADAPTIVE,
        kind=int,
    ),
    Own(
        "compatibility_threshold",
        hyper(0.3, "(0, 1)", doc="largest residual of a relationship, relative to that of the next best candidate"),
        ADAPTIVE,
    ),
    # The learning rate
    Switch("use_auto_lr", "auto_rate"),
    Option("d0", "auto_rate.d0"),
    Option("d_coef", "auto_rate.coef"),
    # The gradient
    Switch("use_agr", "agr"),
    Switch("edge_suppression", "edge_suppression", CAME),
    Option("edge_threshold", "edge_suppression.threshold", ("AutomagicCameAMP",)),
    Option("edge_penalty", "edge_suppression.penalty", CAME),
    Switch("use_orthogonal_grad", "orthograd"),
    Switch("spatial_awareness", "spatial_frequency", CAME),
    # The momentum
    Switch("use_tam", "tam"),
    Option("tam_beta", "tam.beta"),
    Switch("background_regularization", "temporal_frequency", CAME),
    Option("frequency_penalty", ("spatial_frequency.penalty", "temporal_frequency.penalty"), CAME),
    Option("detail_preservation", ("spatial_frequency.preserve", "temporal_frequency.preserve"), CAME),
    Switch("enable_dual_momentum", "dual_momentum", CAME),
    Option("long_term_beta", "dual_momentum.long_beta", CAME),
    Option("alpha_mix_ratio", "dual_momentum.alpha", CAME, default=None),
    # The step
    Switch("tam_paper_form", "adatam", instead_of="tam", excludes=("adopt", "came", "adam")),
    Switch("use_adopt_stability", "adopt", excludes=("adam",)),
    Switch("came", "came", CAME, excludes=("adopt", "adam")),
    Option("clip_threshold", "came.clip_threshold", CAME),
    Option("beta1_decay", "came.beta1_decay", CAME),
    Option("bias_correct_confidence", "came.bias_correct_confidence", CAME, default=True),
    Switch("use_muon", "muon"),
    Option("use_normuon", "muon.normuon", default=True),
    Switch("use_lora_muon", "lora_muon", sets=("lora_muon.alpha_root",), for_adapter=True),
    Switch("use_lora_rite", "lora_rite", excludes=("lora_muon",), for_adapter=True),
    # The update
    Switch("use_context", "contextual_cautious", CONTEXT, default=True, excludes=("cautious", "grams")),
    Option("momentum_scales", "contextual_cautious.scales", CONTEXT),
    Option("context_window", "contextual_cautious.window", CONTEXT),
    Option("edge_threshold", "contextual_cautious.edge_threshold", CONTEXT),
    Option("adaptation_rate", "contextual_cautious.rate", CONTEXT),
    Switch("use_cautious", "cautious", default=True, excludes=("grams",), beside=("lora_muon",)),
    Switch("use_grams", "grams"),
    # Its size
    Switch(
        "rank_free_lr", "rank_free", sets=("lora_muon.rank_free",), warns=True, beside=("lora_muon",), for_adapter=True
    ),
    Switch("use_alora", "lora_plus", for_adapter=True),
    Option("alora_ratio", "lora_plus.ratio"),
    Switch("use_allora_rows", "allora_rows", for_adapter=True),
    Option("eta", "allora_rows.eta", CAME),
    Switch("use_kronecker_rms", "kronecker_rms", for_adapter=True),
    Switch("use_lr_mask", "automagic_mask", MASKED),
    Joint(
        "min_lr",
        hyper(None, "(0, inf)", doc="least lr the mask gives where the group has lr; None: lr / 10"),
        MASKED,
        **_MASK,
    ),
    Joint("max_lr", hyper(None, "(0, inf)", doc="largest lr it gives there; None: 10 lr"), MASKED, **_MASK),
    Joint(
        "lr_bump",
        hyper(
            None,
            "(0, inf)",
            doc=f"(max_lr - min_lr) / lr_bump steps, at most {mask.LEVELS}, cross the range; None: 5 % a step",
        ),
        MASKED,
        **_MASK,
    ),
    Option("warmup_steps", "automagic_mask.until", MASKED),
    Switch("use_dynamic_adaptation", "importance", ADAPTIVE, default=True),
    Option("adaptation_strength", "importance.strength", ADAPTIVE, default=0.0),
    Option("importance_decay", "importance.beta", ADAPTIVE),
    # Decay
    Switch("dynamic_weight_decay", "dynamic_weight_decay"),
    Option("wd_transition_steps", "dynamic_weight_decay.transition_steps"),
    Option("wd_decay_factor", "dynamic_weight_decay.decay_factor"),
    Option("wd_min_ratio", "dynamic_weight_decay.min_ratio"),
    Switch("use_cautious_weight_decay", "cautious_weight_decay"),
    # The parameter
    Switch("use_spd", "spd", excludes=_WEIGHT_DECAYS),
    Option("spd_lambda", "spd.lam"),
    Switch("lora_rank_penalty", "rank_penalty", CAME, for_adapter=True),
    Option("rank_penalty_strength", "rank_penalty.strength", CAME),
    Option("low_rank_emphasis", "rank_penalty.emphasis", CAME),
)
POSITIONAL = ("lr", "betas", "eps", "weight_decay")  # in torch's order


def of(cls: type) -> dict[str, Argument]:
    """The arguments of a class by name, each with the default that it has there.

    Where two rows have one name, the one whose class is nearer counts. ``cls.overrides`` has defaults of a class and
    those below it; what it says once for all (`fixed`) is no argument of it.
    """
    names = [each.__name__ for each in cls.__mro__]
    nearest: dict[str, tuple[int, Argument]] = {}
    for row in ROWS:
        distances = [names.index(each) for each in row.classes if each in names]
        if distances and (row.name not in nearest or min(distances) < nearest[row.name][0]):
            nearest[row.name] = min(distances), row
    overrides = _merged(cls, "overrides")
    if unknown := {*overrides, *fixed(cls)} - nearest.keys():
        raise ValueError(f"{cls.__name__} sets {unknown.pop()!r}, which is no argument of it")
    return {
        name: dc.replace(row, default=overrides[name]) if name in overrides else row
        for name, (_, row) in nearest.items()
        if name not in fixed(cls)
    }


def fixed(cls: type) -> dict[str, Any]:
    """What a class says once for all, from ``cls.fixed`` and the classes above."""
    return _merged(cls, "fixed")


def _merged(cls: type, name: str) -> dict[str, Any]:
    return {key: value for each in reversed(cls.__mro__) for key, value in vars(each).get(name, {}).items()}


def checked(arguments: Mapping[str, Argument], given: Mapping[str, Any]) -> dict[str, Any]:
    """The value of every argument, given or not.

    Raises TypeError for an unknown name, ValueError for a value out of bounds.
    """
    for name in given:
        if name not in arguments:
            raise TypeError(f"unknown argument {name!r}; {did_you_mean(name, arguments)}")
    values = {name: given.get(name, row.start) for name, row in arguments.items()}
    for name, row in arguments.items():
        row.check(values[name], row.start)
    return values


def signature(cls: type) -> inspect.Signature:
    """Of the constructor: what an editor and `help` show. Options of techniques by dotted name are the ``options``."""
    kinds = inspect.Parameter
    params = [kinds("params", kinds.POSITIONAL_OR_KEYWORD, annotation=Any)]
    for name, row in of(cls).items():
        kind = kinds.POSITIONAL_OR_KEYWORD if name in POSITIONAL else kinds.KEYWORD_ONLY
        params.append(kinds(name, kind, default=row.start, annotation=row.annotation()))
    return inspect.Signature([*params, kinds("options", kinds.VAR_KEYWORD, annotation=Any)])
