"""What `profile` says against what real optimizers keep, launch and do."""

import gc
import gzip
import json
import logging

import numpy as np
import pytest
import torch

import hina_kohya
from benchmarks import shapes as benchmark_shapes
from benchmarks.fake_cuda.cases import states
from benchmarks.state_memory import alive, held, sizes
from hina_kohya.core import optimizer as core_optimizer
from hina_kohya.core.bucket import Bucket
from hina_kohya.core.chain import run
from hina_kohya.core.state.slab import Slab
from hina_kohya.optim import report
from hina_kohya.profile import profile, profiling
from hina_kohya.profile import shapes as sets
from hina_kohya.profile.owners import GATHER, MACHINE, PAIRS, REST, Meter, Owner, charged
from hina_kohya.profile.recorder import Recorder
from hina_kohya.profile.sources import Choice
from hina_kohya.profile.subjects import _clock
from hina_kohya.techniques.adam import Adam
from hina_kohya.trainers.errors import UserError
from tests.support.counting import Counter
from tests.support.stepping import make_params, set_grads, train

LIST = "lora4:24x40*3,16x4*2,5"
CLASSES = [(cls, state) for cls in hina_kohya.__all__ if cls != "__version__" for state in states(cls)]
FEW = {"steps": 2, "warmup": 1, "beside": False}


def as_at_the_start(text):
    params = make_params(shapes=dict(sets.parse(text)))
    for name, param in params.items():
        if "lora_up" in name:
            param.data.zero_()
    return params


def real(text, cls="HinaAdamW", **arguments):
    """Parameters and an optimizer on them, without anything of `hina_kohya.profile` but the names and shapes."""
    params = as_at_the_start(text)
    return params, getattr(hina_kohya, cls)(params.items(), lr=1e-4, **arguments)


def seen_from_outside(cls, state, before, steps=7):
    """Bytes of tensors and arrays that live because of an optimizer; after the looks for pairs, which keep some."""
    params = as_at_the_start(LIST)
    set_grads(params, 0)
    tensors_before, arrays_before = alive()
    optimizer = getattr(hina_kohya, cls)(params.items(), lr=1e-4, state=state)
    for _ in range(steps):
        optimizer.step()
    tensors, arrays = alive()
    old_tensors, old_arrays = before
    return sum(size for at, size in tensors.items() if at not in tensors_before and at not in old_tensors) + sum(
        size for key, size in arrays.items() if key not in arrays_before and key not in old_arrays
    )


@pytest.fixture(scope="module")
def before():
    """What was there before these tests, looked at once, as a process of pytest has millions of objects. It is kept, so
    that no address comes again."""
    old = held()
    gc.freeze()
    yield sizes(old)
    gc.unfreeze()


@pytest.mark.parametrize(("cls", "state"), CLASSES)
def test_state_bytes_are_those_of_the_real_optimizer(cls, state, before):
    seen_from_outside(cls, state, before)  # tables that are made once for all optimizers
    row = profile(LIST, f"{cls} state={state}", **FEW).rows[0]
    zeros = len(sets.parse(LIST)) if cls.startswith("Adaptive") else 0  # a flag each: which started at zero
    assert 0 <= seen_from_outside(cls, state, before) - row.state_bytes - zeros <= zeros / 8
    assert sum(part.state_bytes for part in row.parts) == row.state_bytes


def test_state_bytes_of_the_others():
    result = profile(LIST, **{**FEW, "beside": True})
    elements, tensors = result.parameters, result.tensors
    assert elements == sum(np.prod(shape) for _, shape in sets.parse(LIST))
    assert result.row("torch AdamW").state_bytes == 8 * elements + 4 * tensors  # and a step counter each
    from bitsandbytes.optim import AdamW8bit

    params = make_params(shapes=dict(sets.parse(LIST)))
    set_grads(params, 0)
    optimizer = AdamW8bit(params.values())
    optimizer.step()
    storages = {
        each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
        for entry in optimizer.state.values()
        for each in entry.values()
        if isinstance(each, torch.Tensor)
    }
    assert result.row("bitsandbytes AdamW8bit").state_bytes == sum(storages.values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "state"), CLASSES)
def test_launches_are_those_of_the_repositorys_own_counters(cls, state):
    row = profile(LIST, f"{cls} state={state}", steps=4, warmup=4, beside=False).rows[0]
    params, optimizer = real(LIST, cls, state=state)
    train(optimizer, params, 8)
    with Recorder(torch.device("cpu")) as recorder:
        optimizer.step()
    with Counter() as counter:
        optimizer.step()
    assert (row.counts.launches, row.counts.moved) == (recorder.launches, recorder.nbytes)
    assert row.counts.operations == recorder.operations.total() == counter.operations - 2  # torch's marks of a step
    for name in ("operations", "launches", "moved"):
        assert sum(getattr(part.counts, name) for part in row.parts) == getattr(row.counts, name)


@pytest.mark.slow
def test_times_of_the_parts_make_up_the_step():
    row = profile("lora8:320x320*30", **{**FEW, "steps": 9}).rows[0]
    assert 0.3 < sum(part.ms for part in row.parts) / row.ms < 3
    muon = next(part for part in row.parts if part.name == "lora_muon")
    assert 0 < muon.codec_ms < muon.ms < row.ms


def test_only_what_is_on_and_acts_has_a_row():
    rows = profile(
        "lora4:24x40*3", ["HinaAdamW", "HinaAdamW use_lora_muon=False use_cautious=False use_tam=True"], **FEW
    ).rows
    plain = {part.name for part in rows[0].parts} - set(MACHINE)
    other = {part.name: part for part in rows[1].parts if part.name not in MACHINE}
    assert plain == {"lora_muon", "weight_decay"}
    assert set(other) == {"adam", "tam", "weight_decay"}
    assert {part.tensors for part in other.values()} == {6}
    assert min(part.ms for part in other.values()) > 0, "TAM acts through enter and leave"
    assert other["tam"].counts.launches > 0
    _, optimizer = real("lora4:24x40*3")
    assert plain == set(report.features(optimizer))


@pytest.mark.slow
def test_a_profile_in_python_for_each_of_the_originals_profiles():
    names = [f"AutomagicCameAMP8bit profile={name}" for name in ("memory_optimized", "balanced", "quality_optimized")]
    result = profile("lora4:24x40*3", names, **FEW)
    assert [row.name for row in result.rows] == names
    assert result.row(names[0]).state_bytes < result.row(names[2]).state_bytes
    assert any(part.name == "dual_momentum" for part in result.row(names[2]).parts)


def test_a_modules_parameters_are_left_alone():
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(4, 5), "b": torch.nn.Linear(3, 2)})
    module.b.requires_grad_(False)
    before = {name: param.clone() for name, param in module.named_parameters()}
    result = profile(module.named_parameters(), **FEW)
    assert result.tensors == 2
    for name, param in module.named_parameters():
        assert param.grad is None
        assert torch.equal(param, before[name])
    with pytest.raises(UserError, match="none is trained"):
        profile(module.b.named_parameters())
    module.a.bias.data = module.a.bias.data.bfloat16()
    with pytest.raises(UserError, match="give one dtype"):
        profile(module.named_parameters())


def test_bf16_parameters_are_stepped_as_such():
    result = profile(LIST, dtype="bf16", **FEW)
    assert result.dtype == "bfloat16"
    assert any(part.name == "lora_muon" for part in result.rows[0].parts)


def test_nothing_stays_after_it_and_the_step_is_the_same():
    originals = Slab.read, Slab.write, Bucket.gather, Adam.apply
    params, optimizer = real(LIST, use_tam=True, use_lora_muon=False)
    others, plain = real(LIST, use_tam=True, use_lora_muon=False)
    train(plain, others, 3)
    meter = Meter(lambda: 0)
    with charged(optimizer, meter):
        assert Slab.read is not originals[0]
        train(optimizer, params, 3)
    assert (Slab.read, Slab.write, Bucket.gather, Adam.apply) == originals
    assert all(torch.equal(a, b) for a, b in zip(params.values(), others.values(), strict=True))
    with pytest.raises(ZeroDivisionError), charged(optimizer, meter):
        raise ZeroDivisionError
    assert (Slab.read, Slab.write, Bucket.gather, Adam.apply) == originals


def test_everything_is_charged_once_and_to_the_innermost():
    now = iter([0, 1, 3, 6, 10, 15])
    meter = Meter(lambda: next(now))
    meter.begin()
    meter.enter(Owner("moment"))  # 1: the rest
    meter.enter(Owner("torque"))  # 2: the moment
    meter.leave()  # 3: the torque
    meter.leave()  # 4: the moment
    assert meter.totals() == {REST: 1 + 5, Owner("moment"): 2 + 4, Owner("torque"): 3}


def test_what_is_gathered_to_be_published_is_the_techniques():
    params, optimizer = real("lora4:24x40*3", use_kronecker_rms=False)
    train(optimizer, params, 2)
    with Recorder(torch.device("cpu")) as recorder:
        meter = Meter(lambda: recorder.operations["stack"])
        with charged(optimizer, meter):
            meter.begin()
            optimizer.step()
            stacks = meter.totals()
    assert optimizer.plan().exchanges, "LoRA-Muon looks at partners"
    assert stacks[Owner("lora_muon")] == 2  # a stack for each shape of a factor
    assert stacks[GATHER] == 4  # parameters and gradients of both


def test_on_a_gpu_time_is_that_between_events(monkeypatch):
    class Event:
        clock = 0.0

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            Event.clock += 2.0
            self.at = Event.clock

        def synchronize(self):
            self.is_there = True

        def elapsed_time(self, later):
            assert later.is_there
            return later.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    meter = _clock(torch.device("cuda"))
    meter.begin()
    meter.enter(Owner("adam"))
    meter.leave()
    assert meter.totals() == {REST: pytest.approx(4e-3), Owner("adam"): pytest.approx(2e-3)}


def test_a_compiled_chain_is_one_row(monkeypatch):
    monkeypatch.setattr(core_optimizer, "_compiled", lambda: run)
    result = profile(LIST, "HinaAdamW compile=True", **FEW)
    row = result.rows[0]
    assert (row.parts, row.counts) == ((), None)
    assert row.ms > 0
    assert row.state_bytes > 0
    assert "whose it is" not in result.text()


def test_what_is_said_while_it_is_made_is_a_note(caplog):
    result = profile(LIST, "HinaAdamW use_kronecker_rms=True", **FEW)
    (note,) = result.notes
    assert "use_kronecker_rms=True acts on no parameter" in note
    assert f"note: {note}" in result.text()
    assert caplog.records == []


@pytest.mark.slow
def test_what_finds_its_learning_rate_gets_one(caplog):
    result = profile(LIST, ["HinaAuto", "HinaAdamW use_auto_lr=True"], **FEW)
    assert (result.notes, caplog.records) == ((), [])
    assert [Choice.of(name).lr for name in ("HinaAuto", "Prodigy", "HinaAdamW")] == [1.0, 1.0, 1e-4]


def test_what_is_seen_in_gradients_by_chance_is_not_said(caplog):
    params, optimizer = real("lora8:64x64*8", "AdaptiveHinaAdamW")
    train(optimizer, params, 5)
    assert "names and gradients disagree" in caplog.text
    caplog.clear()
    result = profile("lora8:64x64*8", "AdaptiveHinaAdamW", steps=5, warmup=1, beside=False)
    assert (result.notes, caplog.records) == ((), [])
    assert any(part.name == PAIRS.name for part in result.rows[0].parts)
    assert logging.getLogger("hina_kohya").isEnabledFor(logging.WARNING)


@pytest.mark.slow
def test_what_stands_beside_and_cannot_step_is_a_row_with_the_reason(monkeypatch):
    def broken(self, closure=None):
        raise RuntimeError("no kernel\nfor this machine")

    monkeypatch.setattr(torch.optim.AdamW, "step", broken)
    result = profile(LIST, **{**FEW, "beside": True})
    assert result.row("torch AdamW").error == "RuntimeError: no kernel for this machine"
    assert "torch AdamW: could not be stepped here: RuntimeError: no kernel" in result.text()
    with pytest.raises(UserError, match="AdamW cannot step here: RuntimeError: no kernel"):
        profile(LIST, "AdamW", **FEW)
    monkeypatch.setitem(profiling.BESIDE, "torch AdamW", Choice("no.such.Optimizer"))
    assert "needs a package that is not here" in profile(LIST, **{**FEW, "beside": True}).row("torch AdamW").error


def test_what_was_asked_for_does_not_stand_beside_itself():
    assert [row.name for row in profile(LIST, "AdamW", **{**FEW, "beside": True}).rows] == [
        "AdamW", "bitsandbytes AdamW8bit",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["steps.json", "steps.json.gz"])
def test_the_trace_is_json_with_the_techniques(name, tmp_path):
    file = tmp_path / "new" / name
    profile(LIST, **{**FEW, "beside": True}, trace_file=file)
    content = file.read_bytes()
    events = json.loads(gzip.decompress(content) if name.endswith("gz") else content)["traceEvents"]
    names = {event.get("name") for event in events}
    assert {"HinaAdamW", "torch AdamW", "lora_muon", "lora_muon: state", GATHER.name, "aten::stack"} <= names
    assert [path.name for path in file.parent.iterdir()] == [name]
    steps = [event for event in events if event.get("name") == "HinaAdamW" and event.get("ph") == "X"]
    muon = [event for event in events if event.get("name") == "lora_muon" and event.get("ph") == "X"]
    assert len(steps) == 2
    assert all(any(s["ts"] <= m["ts"] and m["ts"] + m["dur"] <= s["ts"] + s["dur"] for s in steps) for m in muon)


def test_progress_reaches_its_total():
    parts = []
    profile(LIST, steps=3, warmup=2, beside=True, tick=lambda what, total: parts.append((what, total)))
    assert parts == [("steps", 12)] * 12  # the first of the warm-up shows whether they can step at all


# Shapes


def test_a_list_of_shapes():
    assert sets.parse("640x8*2, 320 ,4x3x3x3") == [
        ("part0.0.weight", (640, 8)), ("part0.1.weight", (640, 8)), ("part1.0.weight", (320,)),
        ("part2.0.weight", (4, 3, 3, 3)),
    ]  # fmt: skip
    assert sets.parse("lora8:640x2048") == [
        ("lora_unet_part0_0.lora_down.weight", (8, 2048)), ("lora_unet_part0_0.lora_up.weight", (640, 8)),
    ]  # fmt: skip
    assert len(sets.parse("sdxl-lora-r8,640")) == 1401


@pytest.mark.parametrize("name", sets.SETS)
def test_the_sets_are_the_benchmarks(name):
    if name != "sdxl-lora-r64":  # 670 MB
        assert sets.parse(name) == [(each, tuple(x.shape)) for each, x in benchmark_shapes.SETS[name]()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("640y8", "'640y8' is neither a set nor a shape; write 640x8\\*200"),
        ("sdxl-lora-r9", "'sdxl-lora-r9' is neither .* did you mean sdxl-lora-r"),
        ("640x8*0", "'640x8\\*0' has a 0"),
        ("640x8,", "'' is neither"),
        ("lora8:640", "needs two sizes"),
        ("lora0:640x640", "has a 0"),
        ("99999x99999", "9,999,800,001 elements are more than 2,147,483,648"),
    ],
)
def test_what_is_no_list_of_shapes(text, message):
    with pytest.raises(UserError, match=message):
        sets.parse(text)
