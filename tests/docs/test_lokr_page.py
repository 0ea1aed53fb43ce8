"""The learning rates of docs/lokr.md: each makes the first step what LoRA of rank 16, alpha 16 at 2e-4 makes it."""

import re

import pytest

from tests.support import pages
from tests.support.training_configs import adapted, descent, lycoris, optimizer_of, read

__all__ = ["lycoris"]  # a fixture
MODELS = {"SD1.5": "sd15_lokr", "SDXL": "sdxl_lokr", "FLUX.1": "flux1_lokr"}


def table():
    section = pages.read(pages.DOCS / "lokr.md").partition("## Learning rate")[2]
    header, *rows = re.findall(r"^\| (.*) \|$", section, re.MULTILINE)
    assert re.findall(r"[\w.]+", header) == list(MODELS)
    for row in rows[1:]:
        setting, *rates = row.split(" | ")
        factor = re.search(r"factor=(-?\d+)", setting)[1]
        dim = re.search(r"dim (\d+)", setting)
        words = [f"factor={factor}"] + ([] if dim else ["full_matrix=True"])
        for name, rate in zip(MODELS.values(), rates, strict=True):
            case = name, int(dim[1]) if dim else 16, words, float(rate)
            yield pytest.param(*case, marks=[pytest.mark.slow] if name == "flux1_lokr" else [])


def first_step(module, name, config, rate):
    unet, network = adapted(module, name, config)
    groups, _ = network.prepare_optimizer_params(None, None, rate)
    return descent(unet, optimizer_of(config, groups, rate))


@pytest.mark.parametrize(("name", "dim", "words", "rate"), list(table()))
def test_rates_make_a_first_step_of_a_usual_size(name, dim, words, rate, lycoris):
    config = read(name)
    usual = {**config, "network_dim": 16, "network_alpha": 16.0, "network_args": []}
    lokr = {
        **config, "network_dim": dim, "network_alpha": float(dim),
        "network_args": ["algo=lokr", "bypass_mode=True", *words],
    }  # fmt: skip
    assert 0.85 < first_step(lycoris, name, lokr, rate) / first_step(lycoris, name, usual, 2e-4) < 1.15
