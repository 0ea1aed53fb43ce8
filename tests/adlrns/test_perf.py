"""Costs against torch's own counter, and energy from counters only."""

import sys
import types

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hina_kohya.adlrns import DynamicLowRankLayer, PerfEstimator
from hina_kohya.adlrns.layer import perf as perf_module
from hina_kohya.adlrns.layer.perf import Nvml, Rapl, energy_counter, layer_cost


def made(shape=(8,), **geometry):
    torch.manual_seed(0)
    layer = DynamicLowRankLayer(8, 9, 6, r_min=1, cells=3, **geometry).eval()
    x = torch.randn(12, *shape) * torch.randn(12).exp().view(-1, *(1,) * len(shape))
    layer.calibrate(x)
    layer.ranks.copy_(torch.tensor([1, 2, 5, 6]))
    layer.load_state_dict(layer.state_dict())
    assert layer.plan() == (1, 2, 5, 6)
    return layer, x


@pytest.mark.parametrize(
    ("shape", "geometry"),
    [
        ((8,), {}),
        ((5, 8), {}),
        ((8, 10), {"kernel_size": (3,), "stride": 2}),
        ((8, 7, 6), {"kernel_size": (3, 2), "padding": 1}),
    ],
)
def test_flops_are_those_that_torch_counts(shape, geometry):
    layer, x = made(shape, **geometry)
    with FlopCounterMode(display=False) as counter:
        layer(x)
    estimate = PerfEstimator({}).estimate(layer, x, repeats=1)
    assert estimate.flops == counter.get_total_flops()
    assert PerfEstimator({"flops_per_mac": 1}).estimate(layer, x, repeats=1).flops * 2 == estimate.flops
    assert estimate.ms > 0


def test_bytes_are_counted_one_by_one():
    layer, x = made()
    x = x[:5]
    cells = layer.scorer.cell(x).tolist()
    plan, values = layer.plan(), 0
    for k in sorted(set(cells)):
        values += plan[k] * (8 + 9) + plan[k] + 9  # factors and biases
    for k in cells:
        values += 3 * (8 + 9) + 2 * plan[k]  # x and y three times (sorting), hidden values twice
    assert len(set(cells)) > 1
    assert PerfEstimator().estimate(layer, x, repeats=1).bytes == 4 * values
    alone = PerfEstimator().estimate(layer, x[:1], repeats=1).bytes
    r = plan[cells[0]]
    assert alone == 4 * (8 + 9 + 2 * r + r * 17 + r + 9)
    assert layer_cost(layer.to(torch.bfloat16), [1, 0, 0, 0], 1)[1] == 2 * (17 + 2 * plan[0] + plan[0] * 18 + 9)


def test_without_a_counter_there_is_no_energy_but_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(perf_module, "POWERCAP", tmp_path)
    layer, x = made()
    estimate = PerfEstimator({"energy_per_flop": "1e-9"}).estimate(layer, x, repeats=1)
    assert estimate.energy_mJ is None
    assert "has no intel-rapl zone" in estimate.energy_reason
    assert estimate.modelled_mJ == pytest.approx(estimate.flops * 1e-9)
    assert PerfEstimator().estimate(layer, x, repeats=1).modelled_mJ is None


def test_a_modelled_time_is_the_longer_of_multiply_adds_and_bytes():
    layer, x = made()
    slow = {"gpu_cores": 2, "base_frequency": 100.0, "memory_bandwidth": 1e12}
    estimate = PerfEstimator(slow).estimate(layer, x, repeats=1)
    assert estimate.modelled_ms == pytest.approx(1e3 * estimate.flops / 2 / 200)
    estimate = PerfEstimator({"memory_bandwidth": "1e3"}).estimate(layer, x, repeats=1)
    assert estimate.modelled_ms == pytest.approx(estimate.bytes)
    assert PerfEstimator().estimate(layer, x, repeats=1).modelled_ms is None


@pytest.mark.parametrize("key", ["gpu_cores", "base_frequency"])
def test_a_key_from_which_nothing_follows_is_said(key):
    with pytest.warns(UserWarning, match=f"nothing follows from {key} = 512 without"):
        PerfEstimator({key: 512})


def test_all_bad_keys_are_named_at_once():
    with pytest.raises(ValueError, match="3 mistakes") as raised:
        PerfEstimator({"cores": 3, "gpu_cores": "many", "memory_bandwidth": 0})
    for part in ("unknown key hardware.cores", "hardware.gpu_cores = 'many'", "hardware.memory_bandwidth = 0"):
        assert part in str(raised.value)


def zone(folder, number, energy, top):
    path = folder / f"intel-rapl:{number}"
    path.mkdir(exist_ok=True)
    (path / "energy_uj").write_text(f"{energy}\n")
    (path / "max_energy_range_uj").write_text(f"{top}\n")


def test_rapl_adds_up_the_packages_and_goes_on_after_a_wrap(tmp_path, monkeypatch):
    zone(tmp_path, 0, 9_000, 9_999)
    zone(tmp_path, 1, 100, 9_999)
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of package 0, which must not count twice
    rapl = Rapl(tmp_path)
    assert rapl.mJ() == 0
    zone(tmp_path, 0, 500, 9_999)
    zone(tmp_path, 1, 1_100, 9_999)
    assert rapl.mJ() == 1.5 + 1.0
    monkeypatch.setattr(perf_module, "POWERCAP", tmp_path)
    counter, reason = energy_counter(torch.device("cpu"))
    assert isinstance(counter, Rapl)
    assert reason == ""
    layer, x = made()
    assert PerfEstimator().estimate(layer, x, repeats=2).energy_mJ == 0.0  # the file stands still


def test_nvml_reads_the_device_s_total(monkeypatch):
    fake = types.ModuleType("pynvml")
    readings = iter([1000, 1250])
    fake.NVMLError = type("NVMLError", (Exception,), {})
    fake.nvmlInit = lambda: None
    fake.nvmlDeviceGetHandleByIndex = lambda index: f"device {index}"
    fake.nvmlDeviceGetTotalEnergyConsumption = lambda device: next(readings) if device == "device 1" else 0
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    counter, reason = energy_counter(torch.device("cuda", 1))
    assert isinstance(counter, Nvml)
    assert reason == ""
    assert counter.mJ() == 1250

    def missing():
        raise fake.NVMLError("Driver Not Loaded")

    fake.nvmlInit = missing
    assert energy_counter(torch.device("cuda", 1)) == (
        None,
        "no energy counter for cuda: OSError: NVML device 1: Driver Not Loaded",
    )
    monkeypatch.setitem(sys.modules, "pynvml", None)
    counter, reason = energy_counter(torch.device("cuda", 0))
    assert counter is None
    assert reason.startswith("no energy counter for cuda: ModuleNotFoundError")


def test_estimating_changes_nothing():
    layer, x = made()
    layer.train()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    PerfEstimator().estimate(layer, x, repeats=1)
    assert layer.training
    assert all(value.equal(before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: PerfEstimator({"gpu": "A100"}), "unknown key hardware.gpu; did you mean gpu_type or gpu_cores"),
        (lambda: PerfEstimator({"flops_per_mac": 3}), r"hardware.flops_per_mac = 3 is outside \[1, 2\]"),
        (lambda: PerfEstimator({"energy_per_flop": 0.0}), r"hardware.energy_per_flop = 0.0 is outside \(0, inf\)"),
        (lambda: PerfEstimator({"gpu_type": "A100"}).estimate(*made()), "gpu_type = 'A100' but the input is on 'cpu'"),
    ],
)
def test_bad_input_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
