"""The network a training would get, on a skeleton: made, applied and asked for its param groups as sd-scripts does."""

import dataclasses as dc
import gc
import importlib
import sys
from collections.abc import Callable
from typing import Any

from hina_kohya.check.forecast.estimate import ESTIMATES, Estimate
from hina_kohya.check.forecast.weightless import Weightless
from hina_kohya.trainers import hooks, networks
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.facts import architectures
from hina_kohya.trainers.network_args import take

Tell = Callable[..., None]


@dc.dataclass(frozen=True)
class Request:
    """The arguments of `forecast.forecast`."""

    architecture: str
    network_module: str
    network_dim: int | None
    network_alpha: float | None
    network_args: dict[str, Any]
    learning_rate: float | None
    unet_lr: float | None
    text_encoder_lr: float | list[float] | None
    train_unet: bool
    train_text_encoder: bool
    optimizer_type: str
    optimizer_args: list[str]
    sd_scripts: str | None
    hooked: bool
    dtype: str
    resume: str | None = None

    @property
    def inner(self) -> str:
        """The module that makes the network."""
        shim = self.network_module == "hina_kohya.network"
        return str(self.network_args.get("inner")) if shim else self.network_module


@dc.dataclass(frozen=True)
class Made:
    """A network and its param groups, descriptions filled in.

    saved: elements in the adapter's file; estimated: why it is not the real network
    """

    network: Any
    groups: list[dict[str, Any]]
    descriptions: list[str]
    saved: int
    estimated: str


def make(request: Request, tell: Tell) -> Made:
    """Raises UserError or whatever the network raises; `tell` says how far it came."""
    architecture = architectures.get(request.architecture)
    tell(stage="network_module")
    if request.hooked:
        hooks.install()
    estimated = _unavailable(request)
    create = (
        _estimate(request, estimated) if estimated else importlib.import_module(request.network_module).create_network
    )
    tell(stage="network")
    with Weightless():
        unet = architectures.build(architecture.unet())
        encoders: Any = [architectures.build(node) for node in architecture.text_encoders()]
        if request.inner.startswith("networks.") and not estimated:
            _recognisable(unet)
        given = encoders[0] if architecture.lone_text_encoder else encoders
        gc.freeze()  # T-LoRA collects garbage once a module
        kwargs = {"dropout": None, **request.network_args}
        made = create(1.0, request.network_dim, request.network_alpha, None, given, unet, neuron_dropout=None, **kwargs)
        if made is None:
            raise UserError(f"{request.network_module} made no network")
        made.apply_to(given, unet, request.train_text_encoder, request.train_unet)
        made.to(_dtype(request.dtype))
        tell(stage="groups")
        groups, descriptions = _groups(made, request)
        # Without a dot it is the network's own, for --resume only. ADLRNS drops rows while it trains.
        tensors = sum(tensor.numel() for name, tensor in made.state_dict().items() if "." in name)
        saved = made.file_bytes() // 2 if hasattr(made, "file_bytes") else tensors
    return Made(made, groups, descriptions, saved, estimated)


def _unavailable(request: Request) -> str:
    """Why a network of sd-scripts cannot be had here. Raises ImportError for one that there is not."""
    if not request.inner.startswith("networks."):
        return ""
    if request.sd_scripts is None:
        return "since no checkout of sd-scripts is known; give --sd-scripts PATH"
    sys.path.insert(0, request.sd_scripts)
    try:
        importlib.import_module(request.inner)
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        if missing in ("networks", "library"):
            raise
        return f"since {missing} is not installed here; use the environment that sd-scripts runs in"
    return ""


def _estimate(request: Request, reason: str) -> Callable[..., Any]:
    if request.inner not in ESTIMATES:
        raise UserError(f"{request.inner} cannot be forecast, {reason}")

    def create(_multiplier: float, dim: Any, _alpha: Any, _vae: Any, encoders: Any, unet: Any, **kwargs: Any) -> Any:
        options, rest = take(kwargs)
        network = Estimate(ESTIMATES[request.inner], dim, encoders, unet, rest)
        if request.hooked:
            networks.adopt(network, options)
        return network

    return create


def _recognisable(unet: Any) -> None:
    """sd-scripts' networks tell SDXL by its class, which has the name of its skeleton."""
    name = type(unet).__name__
    if name == "SdxlUNet2DConditionModel":
        real = importlib.import_module("library.sdxl_original_unet")
        unet.__class__ = type(name, (getattr(real, name),), {})


def _dtype(name: str) -> Any:
    import torch  # noqa: PLC0415

    return getattr(torch, name)


def _groups(network: Any, request: Request) -> tuple[list[dict[str, Any]], list[str]]:
    """`train_network.py`, from `support_multiple_lrs` on, its swallowed TypeError included."""
    text_encoder_lr = request.text_encoder_lr
    several = getattr(network, "prepare_optimizer_params_with_multiple_te_lrs", None)
    if several is None and isinstance(text_encoder_lr, list):
        text_encoder_lr = text_encoder_lr[0] if text_encoder_lr else None
    rates = (text_encoder_lr, request.unet_lr, request.learning_rate)
    try:
        made = several(*rates) if several is not None else network.prepare_optimizer_params(*rates)
    except TypeError:
        made = network.prepare_optimizer_params(*rates[:2])
    groups, descriptions = made if isinstance(made, tuple) else (made, None)
    return groups, [*descriptions] if descriptions else [f"group{index}" for index in range(len(groups))]
