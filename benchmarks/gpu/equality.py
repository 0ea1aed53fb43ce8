"""Whether the device does what the CPU does: 8-bit codes, steps, resume; and whether a step makes the host wait."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

import hina_kohya
from benchmarks.fake_cuda.cases import SHAPES, states
from benchmarks.gpu.rows import Figures, Plan, Row, attempt
from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.core.state.codec import codec
from hina_kohya.core.technique import Slot
from hina_kohya.profile.recorder import Recorder

CLASSES = [name for name in hina_kohya.__all__ if name != "__version__"]
# What torch checks on the host, so that a step waits.
CHECKED = {"use_lora_rite": "HinaAdamW", "lora_rank_penalty": "AutomagicCameAMP"}


def codes(plan: Plan) -> Iterator[Row]:
    """The same numbers encoded on both; matrices of one block each, of the sizes that blocks have."""
    for slot in (Slot.SIGNED, Slot.UNSIGNED, Slot.FACTOR):
        for size in (1, 16, 64, 150, 256):
            what = f"{slot.name.lower()}, blocks of {size}"
            yield attempt("8-bit codes", what, lambda slot=slot, size=size: _codes(plan, slot, size))


def _codes(plan: Plan, slot: Slot, size: int) -> tuple[str, Figures]:
    eight, generator = codec("8bit"), torch.Generator().manual_seed(size)
    count = plan.of(20_000, 200)
    x = torch.randn(count, 1, size, generator=generator)
    x *= 10 ** (-3 * torch.rand(count, 1, size, generator=generator))  # over three decades, as moments are
    x = x if slot is Slot.SIGNED else x.square()
    x[0] = 0.0
    seed = torch.arange(count, dtype=torch.int32).view(-1, 1, 1)
    here = eight.encode(x, slot, seed)
    there = eight.encode(x.to(plan.device), slot, seed.to(plan.device))
    distance = (here[""].int() - there[""].cpu().int()).abs()[1:]  # any code of a block of zeros is zero
    values = eight.decode(there, 1, size, slot).cpu()
    by_cpu = eight.decode({name: part.cpu() for name, part in there.items()}, 1, size, slot)
    figures = {
        "equal": (distance == 0).double().mean().item(),
        "largest": int(distance.max()),
        "scales_equal": torch.equal(here["scale"], there["scale"].cpu()),
        "decoded": ((values - by_cpu).abs() / by_cpu.abs().clamp(min=1e-30)).max().item(),
        "zeros": not values[0].any().item(),
    }
    text = (
        f"{figures['equal']:.2%} of the codes equal the CPU's, the others by {figures['largest']} at most; scales "
        f"{'equal' if figures['scales_equal'] else 'differ'}; read back within {figures['decoded']:.1g}; zeros "
        f"{'stay' if figures['zeros'] else 'do not stay'} zero"
    )
    return text, figures


def _params(device: torch.device) -> list[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    values = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in SHAPES.items()}
    return [(name, torch.nn.Parameter(value.to(device))) for name, value in values.items()]


def _step(optimizer: torch.optim.Optimizer, named: list[tuple[str, Tensor]], step: int) -> None:
    generator = torch.Generator().manual_seed(step + 1)
    for _, param in named:
        param.grad = torch.randn(param.shape, generator=generator).to(param.device)
    optimizer.step()


def _build(cls: str, named: list[tuple[str, Tensor]], **arguments) -> HinaOptimizer:
    return getattr(hina_kohya, cls)(named, lr=1e-3, **arguments)


def _all(row: Callable[[Plan, str, str], tuple[str, Figures]], part: str, plan: Plan) -> Iterator[Row]:
    for cls in plan.of(CLASSES, CLASSES[:1]):
        for state in plan.of(states(cls), ["8bit"]):
            yield attempt(part, f"{cls}, {state}", lambda cls=cls, state=state: row(plan, cls, state))


def steps(plan: Plan) -> Iterator[Row]:
    yield from _all(_steps, "steps", plan)
    yield from _all(_resume, "resume", plan)


def _steps(plan: Plan, cls: str, state: str) -> tuple[str, Figures]:
    """Ten steps by the same gradients."""
    ends = []
    for device in (torch.device("cpu"), plan.device):
        named = _params(device)
        start = torch.cat([param.detach().cpu().flatten() for _, param in named])
        optimizer = _build(cls, named, state=state)
        for step in range(plan.of(10, 2)):
            _step(optimizer, named, step)
        ends.append(torch.cat([param.detach().cpu().flatten() for _, param in named]) - start)
    here, there = (end.double() for end in ends)
    figures = {
        "off": ((there - here).norm() / here.norm()).item(),
        "finite": bool(there.isfinite().all()),
    }
    return f"off the CPU's way by {figures['off']:.1g} of its length", figures


def _resume(plan: Plan, cls: str, state: str) -> tuple[str, Figures]:
    """Saved to a file, read to the CPU, loaded into a new optimizer: equal to going on?"""
    named = _params(plan.device)
    optimizer = _build(cls, named, state=state)
    for step in range(3):
        _step(optimizer, named, step)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    copies = [(name, torch.nn.Parameter(param.detach().clone())) for name, param in named]
    twin = _build(cls, copies, state=state)
    twin.load_state_dict(torch.load(io.BytesIO(file.getvalue()), map_location="cpu", weights_only=False))
    for step in (3, 4):
        _step(optimizer, named, step)
        _step(twin, copies, step)
    off = max((a - b).abs().max().item() for (_, a), (_, b) in zip(named, copies, strict=True))
    return ("equal by the bit" if off == 0 else f"off by {off:.1g}"), {"off": off}


def waits(plan: Plan) -> Iterator[Row]:
    """A first and a later step, with torch set to raise where the host would wait."""
    yield from _all(_waits, "waits", plan)
    for flag, cls in CHECKED.items():
        what = f"{cls}, {flag} (torch checks its decompositions)"
        yield attempt("waits", what, lambda cls=cls, flag=flag: _waits(plan, cls, "8bit", **{flag: True}))


def _waits(plan: Plan, cls: str, state: str, **arguments) -> tuple[str, Figures]:
    named = _params(plan.device)
    gradients = [torch.randn_like(param, requires_grad=False) for _, param in named]
    optimizer = _build(cls, named, state=state, **arguments)
    figures: Figures = {}
    for when, before in {"first step": 0, "later step": 5}.items():
        for (_, param), gradient in zip(named, gradients, strict=True):
            param.grad = gradient
        for _ in range(before):  # behind the early looks of AdaptiveHinaAdamW
            optimizer.step()
        with Recorder(plan.device) as recorder:
            figures[when] = _raised(optimizer.step, plan.device)
        figures[f"{when}, seen below autograd"] = recorder.waits
    text = "; ".join(
        f"{when}: {figures[when] or 'none'} ({figures[f'{when}, seen below autograd']} seen below autograd)"
        for when in ("first step", "later step")
    )
    return text, figures


def _raised(step: Callable[[], object], device: torch.device) -> str:
    """What torch says of the first wait; empty where there is none. A step that was stopped is stepped again."""
    try:
        with _no_waits(device):
            step()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        step()
        return str(error).splitlines()[0]
    return ""


@contextmanager
def _no_waits(device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
