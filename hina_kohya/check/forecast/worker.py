"""What `forecast` asks of its process: a network and its groups, told in steps, each saying how far it came."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hina_kohya.check.forecast import layers
from hina_kohya.check.forecast.network import Made, Request, Tell, make
from hina_kohya.check.forecast.optimizer import Chosen, Pairs, choose, measured, samples
from hina_kohya.check.forecast.resume import differences
from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.core.technique import Stage
from hina_kohya.optim import report
from hina_kohya.parameters import names, roles
from hina_kohya.patch import targets
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.groups import named_groups
from hina_kohya.trainers.network_args import OURS, RATIOS

_PLAIN = (bool, int, float, str)  # what goes through JSON as it is


def run(request: Request, tell: Tell) -> None:
    tell(stage="optimizer")
    chosen = choose(request.optimizer_type, request.optimizer_args, request.learning_rate, request.hooked)
    made = make(request, tell)
    tell(stage="optimizer")
    pairs = _pairs(made)
    if not any(pairs):
        raise UserError(_nothing(request, made))
    optimizer = None
    if chosen.cls is not None:
        optimizer = chosen.build(made.groups if chosen.ours else samples(made.groups, pairs))
    tell(
        groups=_groups(made, pairs, optimizer, chosen),
        optimizer=chosen.name or request.optimizer_type,
        file_bytes=2 * made.saved,
        estimated=bool(made.estimated),
        warnings=_warnings(request, made, pairs, chosen),
        faults=[*_faults(request, made, optimizer)],
        faster=_faster(request, made),
    )
    tell(stage="state")
    if optimizer is None:
        tell(stage="done")
    elif chosen.ours:
        tell(state_bytes=report.memory(optimizer)["state_bytes"], techniques=_techniques(optimizer))
    else:
        state_bytes, warnings = measured(chosen, made.groups, pairs)
        tell(state_bytes=state_bytes, warnings=warnings)


def parameters(request: Request, tell: Tell) -> None:
    """What `forecast.parameters` returns."""
    made = make(request, tell)
    groups = []
    for group in made.groups:
        params, own = names.named(group["params"], group.get("param_names"))
        pairs = zip(own or [None] * len(params), params, strict=True)
        settings = {key: value for key, value in group.items() if key != "param_names" and isinstance(value, _PLAIN)}
        rows = [[name, list(param.shape), _marks(param)] for name, param in pairs]
        groups.append({**settings, "params": rows})
    if not any(group["params"] for group in groups):
        raise UserError(_nothing(request, made))
    tell(groups=groups, warnings=_estimate_warning(request, made))


def _marks(param: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(param).items() if isinstance(value, _PLAIN)}


def _estimate_warning(request: Request, made: Made) -> list[str]:
    if not made.estimated:
        return []
    ignored = f"; it does not follow {', '.join(made.network.ignored)}" if made.network.ignored else ""
    return [f"an estimate of {request.inner}, {made.estimated}{ignored}"]


def _faster(request: Request, made: Made) -> str:
    """Before LyCORIS 4, LoKr forgot alpha where outputs are added. Who gives bypass_mode has decided."""
    target = None if "bypass_mode" in request.network_args else targets.find_lycoris()
    keeps_alpha = target is not None and int((target.version or "0").partition(".")[0]) >= 4
    return layers.faster(made.network) if keeps_alpha and not made.estimated else ""


def _faults(request: Request, made: Made, optimizer: Any) -> Iterator[str]:
    if request.resume:
        yield from differences(Path(request.resume), made.network, made.groups, optimizer)
    if not made.estimated:
        yield from layers.faults(made.network)


def _pairs(made: Made) -> list[Pairs]:
    """Parameters of each group with their names, None where a network gives none."""
    found = named_groups(made.groups, made.network.named_parameters())
    if found is not None:
        return [list(named) for named in found]
    return [[(None, param) for param in group["params"]] for group in made.groups]


def _groups(made: Made, pairs: list[Pairs], optimizer: Any, chosen: Chosen) -> list[dict[str, Any]]:
    flat = [pair for named in pairs for pair in named]
    found = iter(roles.resolve([name for name, _ in flat], [tuple(param.shape) for _, param in flat]))
    decaying = iter(_decaying(optimizer) if chosen.ours else [True] * len(flat))
    rows = []
    for number, (group, named) in enumerate(zip(made.groups, pairs, strict=True)):
        settings = group if optimizer is None else optimizer.param_groups[number]
        own = [(next(found).role.name, next(decaying)) for _ in named]
        decays = any(each for _, each in own)
        rows.append(
            {
                "description": made.descriptions[number].strip(),
                "lr": settings.get("lr", chosen.lr),
                "weight_decay": settings.get("weight_decay") if decays else 0.0,
                "tensors": len(named),
                "parameters": sum(param.numel() for _, param in named),
                "roles": dict(sorted(Counter(role for role, _ in own).items())),
                "still_roles": sorted({role for role, each in own if not each}) if decays else [],
            }
        )
    return rows


def _decaying(optimizer: HinaOptimizer) -> list[bool]:
    """Which parameters weight decay acts on: SPD, for one, takes its place."""
    return [
        each.member.role.decays and any(technique.stage is Stage.DECAY for technique in each.chain)
        for each in optimizer.parameters()
    ]


def _techniques(optimizer: Any) -> list[str]:
    rows = []
    for name, values in report.features(optimizer).items():
        ratio = f" (ratio {values['ratio']:g})" if "ratio" in values else ""
        rows.append(f"{name}{ratio} on {values['parameters']:,}")
    return rows


def _warnings(request: Request, made: Made, pairs: list[Pairs], chosen: Chosen) -> list[str]:
    warnings = _estimate_warning(request, made)
    if chosen.missing:
        warnings.append(f"decay and state unknown: {chosen.missing}")
    if not request.hooked and (ours := sorted(set(OURS) & set(request.network_args))):
        warnings.append(f"network_args {', '.join(ours)} do nothing here: hina_kohya's hooks are not active")
    if set(RATIOS) & set(request.network_args) and not any("plus" in each for each in made.descriptions):
        warnings.append("the LoRA+ ratio does nothing here" + "; hina_kohya.lycoris follows it" * (not request.hooked))
    return [*warnings, *_idle(request, made, pairs)]


def _idle(request: Request, made: Made, pairs: list[Pairs]) -> list[str]:
    """Parts of the model that were to be trained, and are not."""
    trained = {id(param) for named in pairs for _, param in named}
    warnings = []
    for part, text, wanted in (
        ("text encoder", True, request.train_text_encoder),
        ("U-Net or transformer", False, request.train_unet),
    ):
        own = [param for name, param in made.network.named_parameters() if name.startswith("lora_te") is text]
        idle = sum(id(param) not in trained for param in own)
        if idle:
            warnings.append(f"{idle:,} tensors of the {part} are in no group (learning rate 0 or none, or frozen)")
        elif wanted and not own:
            warnings.append(f"nothing is trained in the {part}: this network has no targets there")
    return warnings


def _nothing(request: Request, made: Made) -> str:
    if any(True for _ in made.network.parameters()):
        return (
            "every learning rate is 0 or missing, so nothing is trained; set learning_rate, unet_lr or text_encoder_lr"
        )
    return (
        f"{request.network_module} finds nothing to train in {request.architecture}; "
        "is it the network for this model, and does the preset name its classes?"
    )
