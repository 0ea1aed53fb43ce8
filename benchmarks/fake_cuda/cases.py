"""What is stepped: every class, codec and dtype, every switch, every option of every technique, one at a time."""

import dataclasses as dc
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

import hina_kohya
from benchmarks.shapes import Named
from hina_kohya.core import registry
from hina_kohya.core.hyper import Interval
from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.core.state.codec import CODECS
from hina_kohya.core.technique import Technique
from hina_kohya.optim import arguments, presets
from hina_kohya.optim.kinds import Argument, Switch

# Every kind of parameter and of shape that a chain tells apart, two of most, so that there are buckets.
SHAPES: dict[str, tuple[int, ...]] = {
    **{f"lora_unet_{m}.lora_down.weight": (4, 320) for m in "abc"},
    **{f"lora_unet_{m}.lora_up.weight": (320, 4) for m in "abc"},
    "lora_unet_conv.lora_down.weight": (4, 8, 3, 3),
    "lora_unet_conv.lora_up.weight": (16, 4, 1, 1),
    **{f"lora_unet_kron{m}.lokr_w1": (8, 8) for m in "ab"},
    **{f"lora_unet_kron{m}.lokr_w2_a": (40, 4) for m in "ab"},
    **{f"lora_unet_kron{m}.lokr_w2_b": (4, 40) for m in "ab"},
    "lora_unet_full.lokr_w1": (8, 8),
    "lora_unet_full.lokr_w2": (24, 24),
    **{f"lora_unet_hada.hada_w{k}_{side}": shape for k in (1, 2) for side, shape in (("a", (40, 4)), ("b", (4, 40)))},
    **{f"lora_unet_{m}.dora_scale": (320, 1) for m in "ab"},
    "lora_unet_a.scalar": (),
    "lora_unet_rot.oft_blocks": (4, 8, 8),
    "lora_unet_norm.w_norm": (64,),
    "head.weight": (12, 10),
    "head.bias": (12,),
    "embedding.weight": (100, 16),
    "gain": (1,),
}
_NOT_OPTIONS = ("compile", "override_hyperparameters", "verbose")  # nothing that a step on a fake device shows


@dc.dataclass(frozen=True)
class Case:
    """An optimizer to be stepped; ``whole_life``: also in what happens to one in training (`life`)."""

    cls: str
    state: str
    option: str = "defaults"
    arguments: tuple[tuple[str, Any], ...] = ()
    dtype: torch.dtype = torch.float32
    whole_life: bool = False

    def build(self, named: Named) -> HinaOptimizer:
        return getattr(hina_kohya, self.cls)(named, lr=1e-3, state=self.state, **dict(self.arguments))

    def __str__(self) -> str:
        return f"{self.cls}, {self.state}, {self.option}, {str(self.dtype).removeprefix('torch.')}"


def parameters(dtype: torch.dtype, device: torch.device) -> Named:
    place = {"dtype": dtype, "device": device}
    params = [(name, torch.nn.Parameter(torch.empty(shape, **place))) for name, shape in SHAPES.items()]
    weight = torch.empty(64, dtype=torch.uint8, device=device)  # a frozen weight of 4 bits
    return [*params, ("frozen.weight", torch.nn.Parameter(weight, requires_grad=False))]


def gradients(named: Named, missing: int = 0) -> None:
    """One for each parameter; with ``missing``, none for every ``missing``-th."""
    for number, (_, param) in enumerate(named):
        is_left_out = not param.requires_grad or (missing and number % missing == 0)
        param.grad = None if is_left_out else torch.empty_like(param, requires_grad=False)


def states(cls: str) -> list[str]:
    return ["8bit"] if cls.endswith("8bit") else list(CODECS)


def cases() -> Iterator[Case]:
    for cls in hina_kohya.__all__:
        if cls == "__version__":
            continue
        for state in states(cls):
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                yield Case(cls, state, dtype=dtype, whole_life=dtype is torch.float32)
            for option, given in _switches(cls):
                row = _rows(cls)[given[-1][0]]
                coupled = isinstance(row, Switch) and bool(registry.technique(row.target).couples)
                yield Case(cls, state, option, given, whole_life=coupled and state == "8bit")
        for name in presets.names(cls):
            yield Case(cls, states(cls)[0], f"preset={name}", (("preset", name),))
        for name in getattr(hina_kohya, cls).profiles:
            yield Case(cls, states(cls)[0], f"profile={name}", (("profile", name),))
    for name in registry.techniques():
        cls, switch = home(name)
        for option, value in _options(registry.technique(name)):
            dotted = f"{name}.{option}"
            yield Case(cls, "8bit", f"{dotted}={value}", (*switch, (dotted, value)))


def _rows(cls: str) -> dict[str, Argument]:
    return arguments.of(getattr(hina_kohya, cls))


def _switches(cls: str) -> Iterator[tuple[str, tuple[tuple[str, Any], ...]]]:
    for name, row in _rows(cls).items():
        if isinstance(row.start, bool) and name not in _NOT_OPTIONS:
            more = (("use_tam", True),) if name == "tam_paper_form" else ()
            yield f"{name}={not row.start}", (*more, (name, not row.start))


@cache
def home(technique: str) -> tuple[str, tuple[tuple[str, Any], ...]]:
    """A class and the arguments that put a technique into its chain. Raises LookupError where nothing does."""
    switches = (row for row in arguments.ROWS if isinstance(row, Switch) and not row.instead_of)
    flag = next((row.name for row in switches if row.target == technique), None)
    tries: list[dict[str, Any]] = [{}, {flag: True}, {flag: True, "use_cautious": False, "use_context": False}]
    tries += [{"use_muon": False}, {"came": False, "use_muon": False}, {"use_tam": True, "tam_paper_form": True}]
    for cls in ("HinaAdamW", "AutomagicCameAMP", "COptim", "AdaptiveHinaAdamW"):
        for given in tries:
            own = {name: value for name, value in given.items() if name in _rows(cls)}
            case = Case(cls, "8bit", technique, tuple(own.items()))
            names = {t.name for each in case.build(_real()).parameters() for t in each.chain}
            if technique in names:
                return cls, case.arguments
    raise LookupError(f"no class and switch puts the technique {technique} into a chain of the small set")


@cache
def _real() -> list[tuple[str, Tensor]]:
    return [(name, torch.nn.Parameter(torch.empty(shape, device="meta"))) for name, shape in SHAPES.items()]


def _options(technique: type[Technique]) -> Iterator[tuple[str, Any]]:
    """Each option with a value that is not its default."""
    for field in dc.fields(technique):
        if "by itself" in field.metadata["doc"]:
            continue
        for value in _others(field.default, field.metadata["interval"]):
            try:
                technique(**{field.name: value})
            except ValueError:
                continue
            yield field.name, value
            break
        else:
            raise LookupError(f"no second value for {technique.name}.{field.name}")


def _others(default: Any, interval: Interval | None) -> list[Any]:
    if isinstance(default, bool):
        return [not default]
    if isinstance(default, tuple):
        return [default[:-1]]
    kind = type(default)
    numbers = [kind(default * 0.5) if abs(default) < float("inf") else 10, kind(default * 2) if default else 1, 5, 0.5]
    return [x for x in numbers if x != default and (interval is None or x in interval)]
