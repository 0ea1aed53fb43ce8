"""The GPU benchmark, tried on the CPU: every part gives rows, and whatever fails is a row."""

import json
import stat
import sys

import pytest
import torch

from benchmarks import candidates, measure
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import equality, steps, training
from benchmarks.gpu.rows import Part, Plan, Row, append, attempt, read
from tests.support.stepping import make_params, set_grads

CPU = Plan(torch.device("cpu"), quick=True)


@pytest.mark.slow
def test_steps_of_all_candidates_and_one_that_breaks(monkeypatch):
    monkeypatch.setattr(steps, "OTHERS", ("not-there", "breaks-later"))
    monkeypatch.setattr(steps, "OURS", ("hina-default-8bit",))

    def not_there(named):
        raise ModuleNotFoundError("No module named 'not_there'")

    class Breaks(torch.optim.SGD):
        steps = 0

        def step(self, closure=None):
            self.steps += 1
            if self.steps == 3:
                raise RuntimeError("CUDA error: an illegal memory access\nmore lines")

    monkeypatch.setitem(candidates.CANDIDATES, "not-there", not_there)
    monkeypatch.setitem(candidates.CANDIDATES, "breaks-later", lambda named: Breaks([p for _, p in named]))
    rows = {row.what.split(": ")[1]: row for row in steps.run(CPU)}
    assert list(rows) == ["torch-fused", "bnb-adamw8bit", "not-there", "breaks-later", "hina-default-8bit"]
    assert rows["not-there"].error == "ModuleNotFoundError: No module named 'not_there'"
    assert rows["breaks-later"].error == "RuntimeError: CUDA error: an illegal memory access"
    ours = rows["hina-default-8bit"].figures
    assert rows["hina-default-8bit"].error == ""
    assert ours["bytes_per_parameter"] < 1.2
    assert rows["torch-fused"].figures["bytes_per_parameter"] == 8
    assert rows["torch-fused"].figures["to_torch-fused"] == 1
    assert ours["kernels"] > rows["torch-fused"].figures["kernels"] > 0
    assert min(ours["wall_ms"], ours["together_ms"], ours["peak_mib"], ours["launches_by_rule"]) > 0


@pytest.mark.slow
def test_batches_give_each_candidate_one_row(monkeypatch):
    """Where memory holds few at a time, the anchors step again in every batch, and are reported once."""
    monkeypatch.setattr(steps, "room", lambda named, device: 3)
    monkeypatch.setattr(steps, "OTHERS", ("torch-foreach", "po-adamw"))
    monkeypatch.setattr(steps, "OURS", ())
    names = [row.what.split(": ")[1] for row in steps.run(CPU)]
    assert names == ["torch-fused", "bnb-adamw8bit", "torch-foreach", "po-adamw"]


def test_codes_of_every_slot_and_block():
    rows = list(equality.codes(CPU))
    assert len(rows) == 15
    assert all(row.error == "" and row.figures["equal"] == 1 and row.figures["zeros"] for row in rows)


def test_codes_that_differ_are_seen(monkeypatch):
    encode = equality.codec("8bit").encode

    class Other:
        decode = equality.codec("8bit").decode
        calls = 0

        def encode(self, x, slot, seed):
            parts = encode(x, slot, seed)
            self.calls += 1
            return {**parts, "": parts[""] ^ 3} if self.calls == 2 else parts

    monkeypatch.setattr(equality, "codec", lambda name: Other())
    row = next(equality.codes(CPU))
    assert row.figures["equal"] < 0.5
    assert row.figures["largest"] >= 1


@pytest.mark.slow
def test_steps_and_resume_equal_the_cpu_and_a_lost_state_does_not(monkeypatch):
    rows = list(equality.steps(CPU))
    assert [row.part for row in rows] == ["steps", "resume"]
    assert rows[0].figures == {"off": 0.0, "finite": True}
    assert rows[1].figures == {"off": 0.0}
    monkeypatch.setattr("hina_kohya.core.plan.Plan.adopt", lambda plan, state: None)
    assert list(equality.steps(CPU))[1].figures["off"] > 0


@pytest.mark.slow
def test_waits_are_rows_and_decompositions_are_seen():
    rows = {row.what.split(", ")[1].split(" ")[0]: row for row in equality.waits(CPU)}
    assert rows["8bit"].figures["later step, seen below autograd"] == 0
    for flag in ("use_lora_rite", "lora_rank_penalty"):
        assert rows[flag].figures["later step, seen below autograd"] > 0


def test_a_wait_that_torch_reports_is_the_figure_and_the_step_is_taken(monkeypatch):
    modes, stepped = [], []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def step():
        stepped.append(modes[-1])
        if modes[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")

    assert equality._raised(step, torch.device("cuda")) == "called a synchronizing CUDA operation"
    assert stepped == modes == ["error", "default"]

    def broken():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        equality._raised(broken, torch.device("cuda"))
    assert modes[-1] == "default"


def test_lycoris_with_and_without_bypass_is_the_same_layer():
    rows = list(training.forwards(CPU))
    assert len(rows) == 2 * len(training.ADAPTERS)
    for row in rows:
        assert row.error == ""
        assert row.figures["off"] < (0.02 if "bf16" in row.what else 1e-5)
        assert set(row.figures["ms"]) == {"bare", "rebuilt", "bypass"}


@pytest.mark.slow
def test_the_real_run_trains(monkeypatch):
    (row,) = training.runs(CPU)
    assert row.error == ""
    assert row.figures["device"] == "cpu"
    assert 0 < row.figures["loss_last"] < 1
    monkeypatch.setattr(training, "RUNS", {"wrong": ["--optimiser_type", "AdamW"]})
    (row,) = training.runs(CPU)
    assert row.error.startswith("RuntimeError: hina-kohya train: error: unknown option --optimiser_type")


PLANTED = """
import json, os, sys, time
with open(sys.argv[sys.argv.index("--rows") + 1], "a") as rows:
    print(json.dumps({{"part": "planted", "what": "before"}}), file=rows, flush=True)
    {act}
    print(json.dumps({{"part": "planted", "what": "after"}}), file=rows)
"""


@pytest.mark.parametrize(
    ("act", "seconds", "error"),
    [
        ("os._exit(7)", 60, "exit code 7: "),
        ("raise OSError('the driver is gone')", 60, "exit code 1: OSError: the driver is gone"),
        ("time.sleep(600)", 4, "stopped after 4 s"),
        ("pass", 60, ""),
    ],
)
def test_a_part_that_dies_or_hangs_keeps_its_rows(tmp_path, monkeypatch, act, seconds, error):
    planted, python = tmp_path / "planted.py", tmp_path / "python"
    planted.write_text(PLANTED.format(act=act))
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{planted}" "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setattr(sys, "executable", str(python))
    rows = gpu.apart(Part("planted", "", seconds, lambda plan: iter(())), CPU, tmp_path / "rows.jsonl")
    last = Row("planted", "the rest", error=error) if error else Row("planted", "after")
    assert rows == [Row("planted", "before"), last]


def test_the_process_of_a_part_writes_its_rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    assert gpu.main(["--rows", str(file), "--only", "codes", "--device", "cpu", "--quick"]) == 0
    assert len(read(file)) == 15


def test_half_a_line_is_no_row(tmp_path):
    file = tmp_path / "rows.jsonl"
    append(file, Row("a", "b", figures={"x": 1}))
    with file.open("a") as lines:
        lines.write('{"part": "a", "wh')
    assert read(file) == [Row("a", "b", figures={"x": 1})]
    assert read(tmp_path / "none") == []


def test_the_table_has_every_row_with_its_error(tmp_path, monkeypatch, capsys):
    rows = {"codes": [Row("8-bit codes", "one", "100 % equal")], "waits": [Row("waits", "two", error="OSError: gone")]}
    monkeypatch.setattr(gpu, "apart", lambda part, plan, file: rows[part.name])
    words = ["--device", "cpu", "--quick", "--only", "codes", "waits", "--output", str(tmp_path / "gpu")]
    assert gpu.main(words) == 1
    table = (tmp_path / "gpu.md").read_text()
    assert "| 8-bit codes | one | 100 % equal |" in table
    assert "| waits | two | **error** OSError: gone |" in table
    assert "2 rows, 1 errors" in table
    assert "figures mean nothing" in table
    assert json.loads((tmp_path / "gpu.json").read_text())["rows"][1]["error"] == "OSError: gone"
    assert gpu.main([*words[:4], "codes", *words[6:]]) == 0


def test_without_a_gpu_it_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu.main([]) == 2
    assert "no GPU" in capsys.readouterr().out


def test_parts_fit_into_ten_minutes():
    assert sum(part.seconds for part in gpu.PARTS.values()) <= 590


def test_an_error_gives_memory_back(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("emptied"))

    def measure_it():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    assert attempt("p", "w", measure_it).error.startswith("OutOfMemoryError: CUDA out of memory")
    assert calls == ["emptied"]


def test_the_gpus_own_branches_call_what_torch_has(monkeypatch):
    """Peaks, times and counts on a device "cuda", with torch's functions in place of a GPU."""
    calls = []
    for name in ("synchronize", "reset_peak_memory_stats", "memory_allocated", "max_memory_allocated"):
        assert hasattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name: calls.append(name) or 5)
    cuda = torch.device("cuda")
    assert measure.peak_bytes(lambda: None, cuda) == 0
    assert measure.timed(lambda: None, cuda)[0] >= 0

    params = make_params()
    set_grads(params, 0)
    subject = type("Subject", (), {"optimizer": torch.optim.SGD(params.values())})
    assert steps._kernels(subject, cuda) == 0  # no event of this machine is a GPU's
    assert calls.count("synchronize") == 5
