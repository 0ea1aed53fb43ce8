"""The pretended GPU: planted faults are found and named, honest steps have none, and counting is torch's own."""

import dataclasses as dc

import pytest
import torch

from benchmarks import candidates
from benchmarks.fake_cuda import cases, life
from benchmarks.fake_cuda.cases import Case
from benchmarks.fake_cuda.costs import Subject, cost, subjects
from benchmarks.fake_cuda.device import CPU, CUDA, move, pretended
from hina_kohya.core import registry
from hina_kohya.core.technique import Slot, Stage, Technique
from hina_kohya.profile.recorder import Recorder
from tests.support.classes import CLASSES

FEW = {
    **{f"lora_unet_{m}.lora_down.weight": (4, 320) for m in "ab"},
    **{f"lora_unet_{m}.lora_up.weight": (320, 4) for m in "ab"},
    "lora_unet_kron.lokr_w1": (8, 8),
    "lora_unet_kron.lokr_w2": (40, 40),
    "head.bias": (12,),
}


@pytest.fixture(autouse=True)
def _few_parameters(monkeypatch):
    monkeypatch.setattr(cases, "SHAPES", FEW)


@dc.dataclass(frozen=True)
class Planted(Technique):
    """A technique that does to the update what a test says."""

    name, stage = "planted", Stage.UPDATE
    slots = {"count": Slot.EXACT}

    def apply(self, s, state):
        return s.but(update=self.spoil(s, state))


def _item(s, state):
    return s.update * s.update.abs().amax().item()


def _branch(s, state):
    return s.update if (s.update > 0).any() else -s.update


def _mask(s, state):
    return s.update * s.update[s.update > 0].numel()


def _fills_by_mask(s, state):
    update = s.update.clone()
    update[update > 0] = 0.0  # a masked fill: nothing waits
    return update


def _vector_of_the_host(s, state):
    return s.update * torch.arange(s.update.shape[-1], dtype=torch.float32)


def _number_of_the_host(s, state):
    return s.update * torch.ones(())


def _list(s, state):
    return s.update * torch.tensor([2.0], device=s.update.device)


def _to_the_host(s, state):
    state["count"] = state["count"].cpu()
    return s.update


def _honest(s, state):
    state["count"] = state["count"] + 1
    return s.update * 2


@pytest.fixture
def planted(monkeypatch):
    """Runs HinaAdamW with a technique that does one thing; returns the faults of its life."""

    def run(spoil):
        monkeypatch.setattr(Planted, "spoil", staticmethod(spoil), raising=False)
        monkeypatch.setitem(registry._TECHNIQUES, "planted", Planted)

        class Spoilt(Case):
            def build(self, named):
                from hina_kohya.core.optimizer import HinaOptimizer

                chain = [registry.build(name) for name in ("adam", "planted", "weight_decay")]
                return HinaOptimizer(named, chain, lr=1e-3, weight_decay=0.0)

        return life.live(Spoilt("HinaAdamW", "8bit", "planted")).faults

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "kind", "operation"),
    [
        (_item, "wait", "_local_scalar_dense"),
        (_branch, "wait", "_local_scalar_dense"),
        (_mask, "wait", "index"),
        (_vector_of_the_host, "mix-up", "mul"),
        (_number_of_the_host, "stray", "ones"),
        (_list, "wait", "_to_copy"),
        (_to_the_host, "wait", "_to_copy"),
    ],
)
def test_a_planted_fault_is_found_and_named(planted, spoil, kind, operation):
    faults = planted(spoil)
    assert (kind, operation) in {(fault.kind, fault.operation) for _, fault in faults}
    found = next(fault for _, fault in faults if fault.operation == operation)
    assert f"test_fake_cuda.py:{spoil.__code__.co_firstlineno + 1} {spoil.__name__}" in found.frames[0]
    assert {phase for phase, _ in faults} == {"first step"}, "one phase is enough to know"


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [_honest, _fills_by_mask])
def test_what_only_looks_alike_is_no_fault(planted, spoil):
    assert planted(spoil) == []


@pytest.mark.slow
def test_a_whole_life_has_no_fault():
    """First steps, missing gradients, resume, another group, a GradScaler, another device and back; with partners."""
    coupled = (("use_allora_rows", True), ("use_kronecker_rms", True))
    verdict = life.live(Case("HinaAdamW", "8bit", "coupled", coupled, whole_life=True))
    assert verdict.faults == []
    assert "moved all back from the host" in verdict.phases
    assert life.SCALER in verdict.phases
    whys = {known.why for _, known, _ in verdict.known}
    assert any("GradScaler" in why for why in whys)
    assert any("state that lies elsewhere" in why for why in whys)
    assert not any("eigenvalues" in why for why in whys)


@pytest.mark.slow
def test_decompositions_and_looks_are_known_and_listed():
    for case, place in (
        (Case("HinaAdamW", "8bit", "rite", (("use_lora_rite", True),)), "lora_rite.py"),
        (Case("AdaptiveHinaAdamW", "8bit"), "relationships.py _look"),
    ):
        verdict = life.live(case)
        assert verdict.faults == []
        assert place in {known.where for _, known, _ in verdict.known}


@pytest.mark.slow
def test_an_unlisted_decomposition_is_a_fault(monkeypatch):
    monkeypatch.setattr(life, "KNOWN", tuple(k for k in life.KNOWN if k.where != "lora_rite.py"))
    faults = life.live(Case("HinaAdamW", "8bit", "rite", (("use_lora_rite", True),))).faults
    assert {fault.operation for _, fault in faults} == {"_linalg_eigh", "linalg_pinv"}
    assert "is checked on the host, at hina_kohya/" in str(faults[0][1])


@pytest.mark.slow
def test_state_left_behind_by_a_parameter_that_moved_is_found(monkeypatch):
    monkeypatch.setattr("hina_kohya.core.plan.Plan.follows", lambda plan: True)
    faults = life.live(Case("HinaAdamW", "fp32", whole_life=True)).faults
    assert {(phase, fault.kind) for phase, fault in faults} == {("moved some to the host", "mix-up")}


@pytest.mark.slow
def test_every_class_codec_switch_and_technique_is_a_case(monkeypatch):
    monkeypatch.undo()  # all the shapes: a technique that fits none of the few would not be found
    every = list(cases.cases())
    assert len(set(map(str, every))) == len(every)
    assert {case.cls for case in every} == set(CLASSES)
    assert {case.state for case in every if case.cls == "COptim"} == {"8bit", "bf16", "fp32"}
    dotted = {case.option.split("=")[0] for case in every if "." in case.option}
    for name, technique in registry.techniques().items():
        own = {f"{name}.{f.name}" for f in dc.fields(technique) if "by itself" not in f.metadata["doc"]}
        assert own <= dotted


# Counting


def _record(act, *tensors):
    with pretended():
        inputs = [torch.empty(shape, device=CUDA) for shape in tensors]
        with Recorder(CUDA) as recorder:
            act(*inputs)
    return recorder


def test_views_and_empty_tensors_launch_nothing():
    recorder = _record(lambda x: (x.mT, x[0], x.view(-1), torch.empty_like(x), x.detach()), (4, 8))
    assert recorder.launches == recorder.nbytes == 0
    assert recorder.views == 4


def test_bytes_are_read_once_and_written_once():
    assert _record(lambda x, y: x + y, (4, 8), (8,)).nbytes == 4 * (32 + 8 + 32)
    assert _record(lambda x, y: x + y.expand(4, 8), (4, 8), (8,)).nbytes == 4 * (32 + 8 + 32)
    assert _record(lambda x: x.mul_(2), (4, 8)).nbytes == 4 * 64
    assert _record(lambda x, y: x.copy_(y), (4, 8), (4, 8)).nbytes == 4 * 64
    assert _record(lambda x: x.zero_(), (4, 8)).nbytes == 4 * 32


def test_lists_are_launched_as_torch_packs_them():
    many = [(5, 7)] * 130
    assert _record(lambda *x: torch.stack(x), *many).launches == 2  # 128 to a launch
    assert _record(lambda *x: torch._foreach_mul_(list(x), 2.0), *many).launches == 2  # 110
    assert _record(lambda *x: torch._foreach_copy_(list(x[:65]), list(x[65:])), *many).launches == 2  # 64
    assert _record(lambda x: torch._foreach_mul_([x], 2.0), (320 << 16,)).launches == 1  # 320 blocks of 2^16
    assert _record(lambda x: torch._foreach_mul_([x], 2.0), ((320 << 16) + 1,)).launches == 2


def test_fused_adamw_moves_28_bytes_a_parameter():
    with pretended():
        params = [torch.nn.Parameter(torch.empty(100, device=CUDA)) for _ in range(40)]
        for param in params:
            param.grad = torch.empty_like(param, requires_grad=False)
        optimizer = torch.optim.AdamW(params, fused=True)
        optimizer.step()
        with Recorder(CUDA) as recorder:
            optimizer.step()
    assert 28 <= recorder.nbytes / 4000 < 28.2  # and the step counters
    assert recorder.launches == 2 + 1  # 36 tensors to a launch of four lists; the counters
    assert recorder.faults == []


@pytest.mark.slow
def test_a_row_of_the_table_and_one_that_does_not_run(monkeypatch):
    assert {"HinaAdamW, 8bit", "COptim8bit, 8bit", "torch-fused"} <= {subject.name for subject in subjects()}
    small = {name: torch.empty(shape) for name, shape in FEW.items()}
    monkeypatch.setitem(__import__("benchmarks.shapes").shapes.SETS, "few", lambda: list(small.items()))
    row = cost("HinaAdamW, 8bit", "few")
    assert row["launches"] > 0
    assert row["waits"] == row["to_host"] == row["strays"] == 0
    assert row["to_device"] > 0

    def broken(named):
        raise OSError("no such library")

    monkeypatch.setattr("benchmarks.fake_cuda.costs.subjects", lambda: [Subject("broken", broken)])
    assert cost("broken", "few")["error"].startswith("OSError: no such library")


def test_other_libraries_wait_where_they_wait():
    """bitsandbytes waits for the device after every parameter."""
    pytest.importorskip("bitsandbytes")
    with pretended():
        params = [(f"p{i}", torch.nn.Parameter(torch.empty(80, 80, device=CUDA))) for i in range(3)]
        for _, param in params:
            param.grad = torch.empty_like(param, requires_grad=False)
        optimizer = candidates.CANDIDATES["bnb-adamw8bit"](params)
        optimizer.step()
        with Recorder(CUDA) as recorder:
            optimizer.step()
    assert [fault.operation for fault in recorder.faults] == ["torch.cuda.synchronize"] * 3


def test_moving_keeps_the_object():
    with pretended():
        param = torch.nn.Parameter(torch.empty(3, device=CUDA))
        move(param, CPU)
        assert (param + 1).device == CPU
