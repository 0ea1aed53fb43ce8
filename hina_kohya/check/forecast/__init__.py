"""What a training will be made of, before any model is loaded: groups, roles, learning rates, decay, state and file.

The network is the real one, made by its own code on a skeleton of the model (`architectures`) in a process of its own:
LyCORIS keeps presets in class attributes, and sd-scripts' `networks` and `library` are generic names. So a network that
would refuse its arguments does so here.
"""

import dataclasses as dc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hina_kohya.check.process import Listener, Process
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.facts import architectures

_SHIMS = ("hina_kohya.lycoris", "hina_kohya.network", "hina_kohya.adlrns")
_STAGES = {"network_module": "cannot be imported", "network": "refuses these arguments", "groups": "makes no groups"}


@dc.dataclass(frozen=True)
class Group:
    """One param group of the optimizer.

    lr           : None where the optimizer sets it itself (Adafactor with relative_step)
    weight_decay : None where the optimizer is not installed, or has none
    still_roles  : roles in the group that do not decay all the same; our optimizers decide by role
    roles        : how many tensors of each role
    """

    description: str
    lr: float | None
    weight_decay: float | None
    tensors: int
    parameters: int
    roles: dict[str, int]
    still_roles: tuple[str, ...] = ()


@dc.dataclass(frozen=True)
class Forecast:
    """What will be trained.

    file_bytes : size of the adapter saved in fp16, without its metadata
    state_bytes: what the optimizer keeps between steps; None where it could not be measured (a warning says why)
    techniques : of our optimizers, what acts on how many tensors
    estimated  : the network was not the real one; a warning says what is missing
    faster     : what would save time, "" for nothing
    faults     : of its layers, and of the state that is resumed from, each beginning with `error: ` or `warning: `
    """

    architecture: str
    network: str
    optimizer: str
    groups: tuple[Group, ...]
    file_bytes: int
    state_bytes: int | None = None
    techniques: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    estimated: bool = False
    faults: tuple[str, ...] = ()
    faster: str = ""

    @property
    def tensors(self) -> int:
        return sum(group.tensors for group in self.groups)

    @property
    def parameters(self) -> int:
        return sum(group.parameters for group in self.groups)


def forecast(
    architecture: str,
    network_module: str,
    *,
    network_dim: int | None = None,
    network_alpha: float | None = 1.0,
    network_args: Mapping[str, Any] | None = None,
    learning_rate: float | None = 2e-6,
    unet_lr: float | None = None,
    text_encoder_lr: float | Sequence[float] | None = None,
    train_unet: bool = True,
    train_text_encoder: bool = True,
    optimizer_type: str = "AdamW",
    optimizer_args: Sequence[str] | str = (),
    sd_scripts: Path | None = None,
    hooked: bool = False,
    dtype: str = "float32",
    resume: Path | None = None,
    timeout: float = 300,
    process: Process | None = None,
    listener: Listener | None = None,
) -> Forecast:
    """Makes the network and the optimizer as sd-scripts would; the defaults are sd-scripts'.

    sd_scripts: a checkout; without it `networks.lora*` is estimated, and the forecast says so
    hooked    : hina_kohya's hooks are active by a launcher or a patch; with our network modules they always are
    dtype     : "bfloat16" for --full_bf16
    resume    : a folder of --save_state, to be compared
    process   : one that has torch already, and is given up; a network may leave its presets in it
    listener  : is told how far it came

    Raises UserError for what sd-scripts, the network or the optimizer would refuse.
    """
    arguments = dict(locals())
    how = {name: arguments.pop(name) for name in ("timeout", "process", "listener")}
    request = _request(**arguments)
    content, fault = _asked("forecast", request, **how)
    return _read(request, content, fault)


def parameters(
    *, timeout: float = 300, process: Process | None = None, listener: Listener | None = None, **arguments: Any
) -> tuple[list[dict[str, Any]], list[str]]:
    """The param groups that an optimizer would get, and what there is to say of them; the arguments are `forecast`'s.

    A group has its settings (lr and the like) and under "params" for each parameter its name (None where an optimizer
    would see none), its shape, and the marks that the network or the hooks put on it.
    """
    request = _request(**arguments)
    content, fault = _asked("parameters", request, timeout, process, listener)
    if "groups" not in content:
        raise UserError(_refusal(request, content, fault))
    return content["groups"], content["warnings"]


def _request(
    *, architecture: str, text_encoder_lr: Any, optimizer_type: str, optimizer_args: Any, network_args: Any,
    sd_scripts: Path | None, hooked: bool, resume: Path | None, **rest: Any,
) -> dict[str, Any]:  # fmt: skip
    return {
        **rest,
        "architecture": architectures.get(architecture).name,
        "network_args": dict(network_args or {}),
        "text_encoder_lr": text_encoder_lr if text_encoder_lr is None else _list_or_number(text_encoder_lr),
        "optimizer_type": optimizer_type or "AdamW",
        "optimizer_args": optimizer_args.split() if isinstance(optimizer_args, str) else list(optimizer_args),
        "sd_scripts": None if sd_scripts is None else str(sd_scripts),
        "hooked": hooked or rest["network_module"] in _SHIMS,
        "resume": None if resume is None else str(resume),
    }


def _asked(
    what: str, request: Mapping[str, Any], timeout: float, process: Process | None, listener: Listener | None
) -> tuple[dict[str, Any], str]:
    """Everything that the process says, and the error that ended it. Raises UserError for what it refuses."""
    process = process or Process()
    try:
        answer = process.ask({"what": what, **request}, timeout, listener)
    finally:
        process.close()
    if error := answer.content.get("error"):
        raise UserError(error)
    return answer.content, answer.fault


def _refusal(request: Mapping[str, Any], content: Mapping[str, Any], fault: str) -> str:
    stage = content.get("stage", "")
    what = (
        f"{request['network_module']} {_STAGES[stage]}"
        if stage in _STAGES
        else f"{request['optimizer_type']} cannot be made"
    )
    return f"{what}: {fault}"


def _list_or_number(value: float | Sequence[float]) -> float | list[float]:
    return float(value) if isinstance(value, (int, float)) else [float(each) for each in value]


def _read(request: Mapping[str, Any], content: dict[str, Any], fault: str) -> Forecast:
    if "groups" not in content:
        raise UserError(_refusal(request, content, fault))
    if content["stage"] == "state" and "state_bytes" not in content:
        content["warnings"].append(f"state unknown: {request['optimizer_type']} cannot step on this machine ({fault})")
    groups = [Group(**{**group, "still_roles": tuple(group["still_roles"])}) for group in content["groups"]]
    return Forecast(
        architecture=request["architecture"],
        network=request["network_module"],
        optimizer=content["optimizer"],
        groups=tuple(groups),
        file_bytes=content["file_bytes"],
        state_bytes=content.get("state_bytes"),
        techniques=tuple(content.get("techniques", ())),
        warnings=tuple(content["warnings"]),
        estimated=content["estimated"],
        faults=tuple(content.get("faults", ())),
        faster=content.get("faster", ""),
    )


def table(forecast: Forecast) -> str:
    """A forecast as a few lines of plain text."""
    rows = [("group", "lr", "decay", "tensors", "parameters", "roles")]
    rows += [_row(group) for group in forecast.groups]
    rows.append(("total", "", "", f"{forecast.tensors:,}", f"{forecast.parameters:,}", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    numbers = (1, 2, 3, 4)
    lines = [
        "  ".join(
            [*(cell.rjust(width) if column in numbers else cell.ljust(width)
               for column, (cell, width) in enumerate(zip(row, widths, strict=False))), row[-1]]
        ).rstrip()
        for row in rows
    ]  # fmt: skip
    title = f"{forecast.network} on {architectures.get(forecast.architecture).title}, {forecast.optimizer}"
    state = "unknown" if forecast.state_bytes is None else _size(forecast.state_bytes, forecast.parameters)
    sizes = f"optimizer state {state}; adapter file {_size(forecast.file_bytes)} in fp16"
    techniques = [f"techniques: {'; '.join(forecast.techniques)}"] if forecast.techniques else []
    return "\n".join(
        [
            title,
            *lines,
            sizes,
            *techniques,
            *(f"note: {each}" for each in forecast.warnings),
            *filter(None, [forecast.faster]),
            *forecast.faults,
        ]
    )


def _row(group: Group) -> tuple[str, ...]:
    roles = ", ".join(f"{name} {count}" for name, count in group.roles.items())
    still = f" (no decay: {', '.join(group.still_roles)})" if group.still_roles and group.weight_decay else ""
    return (
        group.description,
        "own" if group.lr is None else f"{group.lr:g}",
        "?" if group.weight_decay is None else f"{group.weight_decay:g}",
        f"{group.tensors:,}",
        f"{group.parameters:,}",
        roles + still,
    )


def _size(count: int, parameters: int = 0) -> str:
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    each = f" ({count / parameters:.2f} bytes a parameter)" if parameters else ""
    return f"{value:.0f} {unit}{each}" if unit == "B" else f"{value:.1f} {unit}{each}"
