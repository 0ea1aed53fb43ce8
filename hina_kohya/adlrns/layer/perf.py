"""What a layer costs: operations and bytes counted, times measured, energy read from a counter or not given at all."""

import dataclasses as dc
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hina_kohya.adlrns.settings import HardwareSettings, Settings

from .module import DynamicLowRankLayer

POWERCAP = Path("/sys/class/powercap")


@dc.dataclass(frozen=True)
class Estimate:
    """Of one forward of one batch. energy_mJ is None where no counter exists, and energy_reason says why."""

    flops: int
    bytes: int
    ms: float
    energy_mJ: float | None
    energy_reason: str
    modelled_mJ: float | None  # flops times the caller's energy_per_flop; no measurement
    modelled_ms: float | None  # the least that the caller's cores and memory need; no measurement


class Counter(Protocol):
    name: str

    def mJ(self) -> float: ...


class Nvml:
    """Total energy of one NVIDIA device since its driver was loaded."""

    def __init__(self, index: int):
        import pynvml  # type: ignore[import-not-found]  # noqa: PLC0415 (only where there is such a device)

        self.name = f"NVML device {index}"
        self._read = pynvml.nvmlDeviceGetTotalEnergyConsumption
        try:
            pynvml.nvmlInit()
            self._device = pynvml.nvmlDeviceGetHandleByIndex(index)
            self.mJ()
        except pynvml.NVMLError as exc:
            raise OSError(f"{self.name}: {exc}") from exc

    def mJ(self) -> float:
        return float(self._read(self._device))


class Rapl:
    """Energy of all CPU packages, from the powercap files; a counter that wraps goes on counting."""

    def __init__(self, root: Path | None = None):
        zones = sorted((root or POWERCAP).glob("intel-rapl:?"))
        if not zones:
            raise OSError(f"{root or POWERCAP} has no intel-rapl zone")
        self._files = [zone / "energy_uj" for zone in zones]
        self._ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in zones]
        self._last = self._now()
        self._total = 0
        self.name = f"RAPL, {len(zones)} packages"

    def _now(self) -> list[int]:
        return [int(file.read_text()) for file in self._files]

    def mJ(self) -> float:
        now = self._now()
        steps = zip(now, self._last, self._ranges, strict=True)
        self._total += sum((new - old) % (top + 1) for new, old, top in steps)
        self._last = now
        return self._total / 1e3


def energy_counter(device: torch.device) -> tuple[Counter | None, str]:
    """(counter, "") or (None, why there is none)."""
    try:
        return (Nvml(device.index or 0) if device.type == "cuda" else Rapl()), ""
    except (ImportError, OSError) as exc:
        return None, f"no energy counter for {device.type}: {type(exc).__name__}: {exc}"


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def layer_cost(layer: DynamicLowRankLayer, sizes: list[int], positions: int, inputs: int = 0) -> tuple[int, int]:
    """(MACs, bytes) of a forward with ``sizes[k]`` samples in cell k.

    positions : rows of a sample (Linear) or its output pixels (convolution)
    inputs    : values of one sample of x; by default positions * in_features
    Bytes: x once, y once, the hidden values twice, and for each cell that occurs the rows of factors and biases it
    uses; sorting the batch moves x and y twice more where more than one cell occurs. What no cache can avoid, that is.
    """
    plan = layer.plan()
    used = [(n, r) for n, r in zip(sizes, plan, strict=True) if n]
    macs = sum(n * r for n, r in used) * positions * layer.direction_macs
    samples = sum(n for n, _ in used)
    values = samples * ((inputs or positions * layer.in_features) + positions * layer.out_features)
    values *= 3 if len(used) > 1 else 1
    values += sum(2 * n * positions * r for n, r in used)
    extra = 0 if layer.bias is None else 1
    values += sum(r * layer.direction_macs + extra * (r + layer.out_features) for _, r in used)
    return macs, values * layer.up.element_size()


def measure(call: Callable[[], Any], device: torch.device, repeats: int = 20, warmup: int = 3) -> float:
    """Median milliseconds of a call."""

    def once() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1e3 * (time.perf_counter() - start)

    for _ in range(warmup):
        once()
    return statistics.median(once() for _ in range(repeats))


class PerfEstimator:
    """``PerfEstimator({...}).estimate(layer, x)``.

    The profile has keys of the section `hardware`, all optional; numbers may be strings:
    gpu_type        : must be part of the CUDA device's name; anything else is an error of `estimate`
    flops_per_mac   : default 2, as torch counts
    energy_per_flop : mJ; gives ``modelled_mJ``, never ``energy_mJ``
    gpu_cores and base_frequency (Hz), memory_bandwidth (bytes per second) : give ``modelled_ms``, the longer of the
        time of the multiply-adds, one per core and cycle, and the time of the bytes. ``ms`` is always measured

    Raises one ValueError with all unknown keys and bad values. Warns of a key from which nothing follows.
    """

    def __init__(self, profile: "dict[str, Any] | HardwareSettings | None" = None):
        hardware = profile
        if not isinstance(hardware, HardwareSettings):
            hardware = Settings.of({"hardware": profile}).hardware
        self.hardware = hardware
        pair = {"gpu_cores": hardware.gpu_cores, "base_frequency": hardware.base_frequency}
        alone = [key for key, value in pair.items() if value is not None]
        if len(alone) == 1:
            missing = next(key for key in pair if key not in alone)
            warnings.warn(
                f"PerfEstimator: nothing follows from {alone[0]} = {pair[alone[0]]:g} without {missing}; times are "
                f"measured in any case. For a modelled time of the multiply-adds give {missing}, too",
                stacklevel=2,
            )

    @torch.no_grad()
    def estimate(self, layer: DynamicLowRankLayer, x: Tensor, repeats: int = 20) -> Estimate:
        """Of ``layer(x)`` with the ranks it would run x at now, in eval mode."""
        if layer.scorer is None:
            raise ValueError("a layer of a CompressedModel has no cells of its own; ask model.spent and measure(model)")
        self._check_device(x.device)
        training = layer.training
        layer.eval()
        y, _ = layer(x)
        positions = y[0].numel() // layer.out_features
        sizes = torch.bincount(layer._cell(x), minlength=layer.cells + 1).tolist()
        macs, moved = layer_cost(layer, sizes, positions, x[0].numel())
        flops = macs * self.hardware.flops_per_mac
        counter, reason = energy_counter(x.device)
        before = counter.mJ() if counter else 0.0
        ms = measure(lambda: layer(x), x.device, repeats, warmup=0 if counter else 3)
        energy = (counter.mJ() - before) / repeats if counter else None
        layer.train(training)
        factor = self.hardware.energy_per_flop
        modelled = None if factor is None else flops * factor
        return Estimate(flops, moved, ms, energy, reason, modelled, self._modelled_ms(macs, moved))

    def _modelled_ms(self, macs: int, moved: int) -> float | None:
        hardware, times = self.hardware, []
        if hardware.gpu_cores and hardware.base_frequency:
            times.append(macs / (hardware.gpu_cores * hardware.base_frequency))
        if hardware.memory_bandwidth:
            times.append(moved / hardware.memory_bandwidth)
        return 1e3 * max(times) if times else None

    def _check_device(self, device: torch.device) -> None:
        name = device_name(device)
        wanted = self.hardware.gpu_type
        if wanted.lower() not in name.lower():
            raise ValueError(f"gpu_type = {wanted!r} but the input is on {name!r}; correct it or move the input")


def parameters(model: nn.Module) -> int:
    """Stored values that a forward needs."""
    return sum(p.numel() for p in model.parameters())
