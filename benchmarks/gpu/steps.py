"""Time, memory and kernels of a step, beside the other libraries, on the real parameter sets."""

import dataclasses as dc
from collections.abc import Iterator

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import measure, shapes
from benchmarks.gpu.rows import Figures, Plan, Row, attempt, short
from benchmarks.step_cost import Subject, room
from hina_kohya.profile.subjects import kept_bytes

SETS = ("sdxl-lora-r8", "sdxl-lora-r16", "sdxl-lokr-f8-d8")
ANCHORS = {"torch-fused": "torch fused", "bnb-adamw8bit": "bitsandbytes"}
OTHERS = ("torch-foreach", "po-adamw", "po-normuon", "adv-adamw")
OURS = (
    "hina-off-fp32",
    "hina-off-8bit",
    "hina-default-fp32",
    "hina-default-bf16",
    "hina-default-8bit",
    "hina-adam-8bit",
    "adaptive-default-8bit",
    "camp8bit-default",
    "coptim8bit-default",
)


@dc.dataclass
class Slot:
    """One candidate on one set; it is dropped at its first error."""

    name: str
    subject: Subject | None = None
    together: float = 0.0
    error: str = ""

    def guard(self, act) -> None:
        if self.error:
            return
        try:
            act()
        except Exception as error:  # as in `attempt`
            self.error, self.subject = short(error), None


def run(plan: Plan) -> Iterator[Row]:
    for set_name in plan.of(SETS, SETS[:1]):
        named = shapes.make(set_name, plan.device)[: plan.of(None, 12)]
        gradients = [torch.empty_like(param, requires_grad=False) for _, param in named]
        others = [*OTHERS, *OURS]
        size = max(1, room(named, plan.device) - len(ANCHORS))
        labels: set[str] = set()
        for start in range(0, len(others), size):
            for row in _batch(plan, set_name, named, gradients, [*ANCHORS, *others[start : start + size]]):
                if row.what not in labels:
                    labels.add(row.what)
                    yield row


def _batch(
    plan: Plan, set_name: str, named: shapes.Named, gradients: list[torch.Tensor], names: list[str]
) -> Iterator[Row]:
    """All step in turn, so that a change of clock rate hits all of them."""
    slots = [Slot(name) for name in names]
    for slot in slots:
        slot.guard(lambda slot=slot: setattr(slot, "subject", Subject(slot.name, named, gradients)))
    for number in range(plan.of(5 + 30, 3)):
        for gradient in gradients:
            gradient.normal_(std=1e-3)
        for slot in slots:
            early = number < plan.of(5, 1)
            slot.guard(
                lambda slot=slot, early=early: slot.subject.optimizer.step() if early else slot.subject.time_step()
            )
    for slot in slots:
        slot.guard(lambda slot=slot: setattr(slot, "together", _together(slot.subject, plan)))
    medians = {slot.name: measure.spread(slot.subject.wall)["median"] for slot in slots if slot.subject}
    for slot in slots:
        what = f"{set_name}: {slot.name}"
        if slot.subject is None:
            yield Row("step", what, error=slot.error)
        else:
            yield attempt("step", what, lambda slot=slot: _figures(slot, plan, medians))


def _step(subject: Subject, timed: bool) -> None:
    if timed:
        subject.time_step()
    else:
        subject.optimizer.step()


def _together(subject: Subject, plan: Plan) -> float:
    """Milliseconds a step when the host does not wait between steps, as in training."""
    count = plan.of(10, 2)

    def steps() -> None:
        for _ in range(count):
            subject.optimizer.step()

    return 1e3 * measure.timed(steps, subject.device)[0] / count


def _figures(slot: Slot, plan: Plan, medians: dict[str, float]) -> tuple[str, Figures]:
    subject = slot.subject
    assert subject is not None
    parameters = sum(p.numel() for group in subject.optimizer.param_groups for p in group["params"])
    wall = measure.spread(subject.wall)
    figures: Figures = {
        "wall_ms": wall["median"],
        "wall_iqr": wall["iqr"],
        "together_ms": round(slot.together, 3),
        "kernels": _kernels(subject, plan.device),
        "launches_by_rule": subject.count().launches,
        "peak_mib": round(measure.peak_bytes(subject.optimizer.step, plan.device) / 2**20, 1),
        "bytes_per_parameter": round(kept_bytes(subject.optimizer) / parameters, 2),
        **{f"to_{name}": round(wall["median"] / medians[name], 3) for name in ANCHORS if name in medians},
    }
    beside = "".join(f", {figures[f'to_{n}']:.3g} x {word}" for n, word in ANCHORS.items() if f"to_{n}" in figures)
    text = (
        f"{wall['median']:.3g} ms (IQR {wall['iqr']:.2g}){beside}; {slot.together:.3g} ms in a row; "
        f"{figures['kernels']} kernels ({figures['launches_by_rule']} by rule); {figures['peak_mib']} MiB at its peak; "
        f"{figures['bytes_per_parameter']} bytes of state per parameter"
    )
    return text, figures


def _kernels(subject: Subject, device: torch.device) -> int:
    """What the device ran, counted by the profiler; copies and fills are none. On a CPU torch's operations."""
    gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * gpu]) as profiler:
        subject.optimizer.step()
        if gpu:
            torch.cuda.synchronize(device)
    assert profiler.profiler is not None
    kind = torch.autograd.DeviceType.CUDA if gpu else torch.autograd.DeviceType.CPU
    events = profiler.profiler.kineto_results.events()
    return sum(e.device_type() == kind and not e.name().startswith(("Mem", "[memory]")) for e in events)
