"""Checkpoints of every format so far, of every class and codec, are read, and go on as the run that wrote them did."""

import math
from pathlib import Path

import pytest
import torch

from hina_kohya import HinaAdamW
from hina_kohya.core.state import formats
from tests.golden import write

FOLDER = Path(write.__file__).parent
FILES = {path.name.split(".")[0]: write.read(path) for path in sorted(FOLDER.glob("*.pt.gz"))}
CURRENT = f"format{formats.CURRENT}"
cases = pytest.mark.parametrize(
    ("file", "name"), [(file, name) for file, content in FILES.items() for name in content["cases"]]
)


def resumed(file, name):
    case = FILES[file]["cases"][name]
    params = {key: torch.nn.Parameter(value.clone()) for key, value in case["at"].items()}
    optimizer = write.optimizer(name, params)
    optimizer.load_state_dict(case["checkpoint"])
    return case, params, optimizer


def test_there_is_a_file_of_every_format():
    assert set(FILES) == {f"format{number}" for number in range(formats.CURRENT + 1)}
    for name, case in FILES[CURRENT]["cases"].items():
        wrote = case["checkpoint"]["hina_kohya"]
        assert (wrote["format"], wrote["optimizer"]) == (formats.CURRENT, write.CASES[name][0])


@cases
def test_it_is_read_and_goes_on(file, name):
    case, params, optimizer = resumed(file, name)
    write.steps(optimizer, params, write.BEFORE, write.BEFORE + write.AFTER)
    assert {int(entry["step"]) for entry in optimizer.state.values()} == {write.BEFORE + write.AFTER}
    kept = [x for entry in optimizer.state.values() for x in entry.values() if x.is_floating_point()]
    assert all(x.isfinite().all() for x in (*params.values(), *kept))
    if file == CURRENT:
        exact = FILES[file]["machine"] == write.machine()
        for key, value in case["later"].items():
            # Elsewhere products are summed in another order, which 8-bit state and masks may answer with a code or sign
            assert torch.equal(params[key], value) if exact else (params[key] - value).abs().max() < 0.02
    else:  # what has become of the numerics since then is small
        for key, value in case["later"].items():
            moved, then = params[key] - case["at"][key], value - case["at"][key]
            assert torch.nn.functional.cosine_similarity(moved.flatten(), then.flatten(), dim=0) > 0.85, key


@pytest.mark.parametrize("name", write.CASES)
def test_state_of_this_format_is_placed_bit_by_bit(name):
    case, _, optimizer = resumed(CURRENT, name)
    optimizer.plan()
    saved = case["checkpoint"]["state"]
    for entry, own in zip(saved.values(), optimizer.state.values(), strict=True):
        assert entry.keys() == own.keys()
        assert all(torch.equal(value, own[key]) for key, value in entry.items())


@pytest.mark.parametrize("name", [name for name in write.CASES if "8bit" in name])
def test_codes_of_format_0_keep_their_values(name):
    case, _, optimizer = resumed("format0", name)
    optimizer.plan()
    for bucket in optimizer.plan().buckets:
        for row, index in enumerate(bucket.indices):
            entry = case["checkpoint"]["state"][index]
            for slab in bucket.slabs.values():
                if f"{slab.key}.scale" not in entry:
                    continue
                code, scale = entry[slab.key].float(), entry[f"{slab.key}.scale"]
                signed = entry[slab.key].dtype == torch.int8
                value = code.abs() * code / 127**2 * scale if signed else ((code + 1) / 256) ** 4 * scale
                now = slab.read(slice(row, row + 1), torch.float32).flatten()
                value = value.flatten()[: now.numel()]
                large = value.abs() > 1e-3 * scale.max()
                torch.testing.assert_close(now[large], value[large], rtol=0.12, atol=0)


def test_a_newer_format_is_refused_with_the_way_out():
    params = write.parameters()
    optimizer = HinaAdamW(params.items())
    saved = optimizer.state_dict()
    saved["hina_kohya"] = {"format": formats.CURRENT + 1, "release": "9.9.9", "optimizer": "HinaAdamW"}
    with pytest.raises(ValueError, match=r"format 2, of hina-kohya 9.9.9; this release .* pip install --upgrade"):
        HinaAdamW(write.parameters().items()).load_state_dict(saved)
    assert math.isclose(optimizer.param_groups[0]["lr"], 1e-3)
