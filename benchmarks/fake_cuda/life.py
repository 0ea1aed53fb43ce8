"""The life of an optimizer on a pretended device, and what it may not do in it."""

import dataclasses as dc
import logging
import traceback
import warnings
from collections.abc import Callable
from unittest import mock

import torch

from benchmarks.fake_cuda.cases import Case, gradients, parameters
from benchmarks.fake_cuda.device import CPU, CUDA, SECOND, move, pretended
from benchmarks.shapes import Named
from hina_kohya.core import plan
from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.profile.recorder import Fault, Recorder

SCALER, MOVED, SWAPPED = "step by a GradScaler", "moved", "swapped"  # the last two begin their phases' names


@dc.dataclass(frozen=True)
class Known:
    """Faults that are there on purpose: listed in the report instead of failing."""

    where: str  # "file.py" or "file.py function" of any frame; empty: outside of the package
    operations: tuple[str, ...]  # empty: all
    why: str
    phase: str = ""  # how its name begins; empty: all

    def covers(self, phase: str, fault: Fault) -> bool:
        if not phase.startswith(self.phase) or (self.operations and fault.operation not in self.operations):
            return False
        if not self.where:
            return not any(frame.startswith("hina_kohya") for frame in fault.frames)
        file, _, function = self.where.partition(" ")
        return any(f"/{file}:" in f and f.endswith(f" {function}" if function else "") for f in fault.frames)


_COPIES = ("copy_", "_to_copy", "_foreach_copy_")
KNOWN = (
    Known(
        "lora_rite.py",
        ("_linalg_eigh", "linalg_pinv"),
        "LoRA-RITE: torch checks eigenvalues and singular values on the host",
    ),
    Known("rank_penalty.py", ("_linalg_eigh",), "rank penalty: torch checks eigenvalues there"),
    Known(
        "relationships.py _look",
        (),
        "AdaptiveHinaAdamW looks for pairs, at steps 2, 4 and every `relationship_discovery_interval`",
    ),
    Known("relationships.py load", ("_to_copy", "index"), "AdaptiveHinaAdamW loads what it found from a checkpoint"),
    Known(
        "plan.py adopt",
        ("copy_", "_to_copy"),
        "state that lies elsewhere is fetched, once: after a checkpoint read to the host, or when parameters moved",
    ),
    Known("counters.py skipped", ("_to_copy",), "a checkpoint says how many steps were left out"),
    Known("coupling.py publish", ("_to_copy",), "partners on two devices are copied at every step", MOVED),
    Known("pooling.py", ("_to_copy",), "importance is compared over devices at every step", MOVED),
    *(
        Known(
            f"bucket.py {function}", _COPIES, "what was moved is stepped where its state is, until that follows", phase
        )
        for function in ("_here", "scatter")
        for phase in (MOVED, SWAPPED)
    ),
    Known("", ("_local_scalar_dense",), "GradScaler reads `found_inf`, with any optimizer", SCALER),
)


@dc.dataclass
class Verdict:
    """What one case did: faults as (phase, fault), known ones apart as (phase, reason, fault)."""

    case: Case
    faults: list[tuple[str, Fault]] = dc.field(default_factory=list)
    known: list[tuple[str, Known, Fault]] = dc.field(default_factory=list)
    phases: list[str] = dc.field(default_factory=list)
    techniques: set[str] = dc.field(default_factory=set)


def quiet() -> None:
    """For processes that do nothing else: values are not real, so what optimizers say about them is not either."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)


def live(case: Case) -> Verdict:
    """Steps a case through its life; an exception ends it and is its last fault."""
    verdict = Verdict(case)
    life = _Life(case, verdict)
    with pretended():
        life.short()
    if case.whole_life and not verdict.faults:
        with pretended(0.0):  # a found_inf of 0: the scaler lets the step happen
            life.rest()
    return verdict


class _Life:
    def __init__(self, case: Case, verdict: Verdict):
        self.case, self.verdict = case, verdict
        self.named: Named = []
        self.optimizer: HinaOptimizer | None = None

    def short(self) -> None:
        def first() -> None:
            self.named = parameters(self.case.dtype, CUDA)
            gradients(self.named)
            self.optimizer = self.case.build(self.named)
            self.optimizer.step()
            self.verdict.techniques |= {t.name for each in self.optimizer.parameters() for t in each.chain}

        self._phase("first step", first)
        looks = self.case.cls == "AdaptiveHinaAdamW"  # at steps 2 and 4
        for number in ("second", "third", "fourth") if looks else ("second",):
            self._phase(f"{number} step", self._step)
        self._phase("step with gradients missing", lambda: self._step(missing=3))
        self._phase("resume", self._resume)

    def rest(self) -> None:
        self._phase("resume from the host", lambda: self._resume(CPU))
        self._phase("step with one more param group", self._grow)
        if self.case.dtype is torch.float32:  # GradScaler refuses others
            self._phase(SCALER, self._scaled)
        self._phase(f"{SWAPPED} out to the host", lambda: self._moved(self.named[::2], CPU, steps=1))
        self._phase(f"{SWAPPED} in again", lambda: self._moved(self.named, CUDA, steps=1))
        shapes = sorted({tuple(param.shape) for _, param in self.named})
        some, every = [(name, param) for name, param in self.named if tuple(param.shape) in shapes[::2]], self.named
        for which, named, where, device in (("some", some, "the host", CPU), ("some", some, "another GPU", SECOND),
                                            ("all", every, "the host", CPU)):  # fmt: skip
            self._phase(f"{MOVED} {which} to {where}", lambda named=named, device=device: self._moved(named, device))
            self._phase(f"{MOVED} {which} back from {where}", lambda named=named: self._moved(named, CUDA))

    def _phase(self, name: str, act: Callable[[], None]) -> None:
        if self.verdict.faults:
            return
        recorder = Recorder(CUDA)
        try:
            with recorder:
                act()
        except Exception as error:  # whatever a step raises on this device is the finding
            place = traceback.extract_tb(error.__traceback__)[-1]
            if not recorder.explained:
                message = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                recorder.faults.append(Fault("error", message, "ends the step", (f"{place.filename}:{place.lineno}",)))
        self.verdict.phases.append(name)
        strays = [] if name.startswith(SWAPPED) else self._misplaced()
        for fault in [*recorder.faults, *strays]:
            # What lies on the host is stepped there.
            if name.startswith(MOVED) and "the host" in name and fault.kind == "stray":
                continue
            reason = next((entry for entry in KNOWN if entry.covers(name, fault)), None)
            if reason is None:
                self.verdict.faults.append((name, fault))
            else:
                self.verdict.known.append((name, reason, fault))

    def _misplaced(self) -> list[Fault]:
        """State that does not lie where its parameter does."""
        state = {} if self.optimizer is None else self.optimizer.state
        return [
            Fault("mix-up", key, f"lies on {value.device}, its parameter on {param.device}", ())
            for param, entry in state.items()
            for key, value in entry.items()
            if isinstance(value, torch.Tensor) and value.device != param.device
        ]

    def _step(self, missing: int = 0) -> None:
        assert self.optimizer is not None
        gradients(self.named, missing)
        self.optimizer.step()

    def _resume(self, device: torch.device | None = None) -> None:
        """Into a new optimizer over the same parameters; ``device`` is where the checkpoint was read to."""
        assert self.optimizer is not None
        state = self.optimizer.state_dict()
        if device is not None:
            state = {**state, "state": {k: _read_to(entry, device) for k, entry in state["state"].items()}}
        self.optimizer = self.case.build(self.named)
        self.optimizer.load_state_dict(state)
        self._step()

    def _grow(self) -> None:
        assert self.optimizer is not None
        more = [("lora_unet_new.lora_down.weight", torch.nn.Parameter(torch.empty(4, 320, device=CUDA)))]
        self.named += more
        self.optimizer.add_param_group({"params": more})
        self._step()

    def _scaled(self) -> None:
        assert self.optimizer is not None
        with mock.patch("torch.amp.grad_scaler.torch.cuda.amp.common.amp_definitely_not_available", return_value=False):
            scaler = torch.amp.GradScaler("cuda")  # type: ignore[attr-defined]
        scaler.scale(torch.empty((), device=CUDA))
        gradients(self.named)
        scaler.step(self.optimizer)
        scaler.update()

    def _moved(self, named: Named, device: torch.device, steps: int = plan.SWAPPED) -> None:
        for _, param in named:
            move(param, device)
        for _ in range(steps):
            self._step()


def _read_to(entry: dict, device: torch.device) -> dict:
    with mock.patch.object(Recorder, "_note"):  # reading a file is no part of a step
        return {key: x.to(device) if isinstance(x, torch.Tensor) else x for key, x in entry.items()}
