"""The Python of docs/elsewhere.md runs as printed, in a small world in which its names are there."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch

from hina_kohya import HinaAdamW
from tests.support.peft_models import LAYERS, llama, texts, trainer, transformers

PAGE = (Path(__file__).parents[2] / "docs" / "elsewhere.md").read_text(encoding="utf-8")


def blocks(heading):
    """The Python blocks of one section."""
    section = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (text,) = [each for each in section if each.startswith(f"{heading}\n")]
    found = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert found
    return found


def bare_llama():
    return llama().unload()


def pairs(optimizer):
    info = optimizer.get_optimization_info()
    assert "regular" not in info["roles"]
    return info["lora_stats"]["lora_pairs"], info["features"].get("lora_plus", {}).get("parameters")


def test_plain_torch():
    rows = [{key: value[None] for key, value in text.items()} for text in texts(3)]
    world = {"model": bare_llama(), "batches": rows}
    exec(blocks("Plain torch, accelerate")[0], world)
    assert pairs(world["optimizer"]) == (2 * LAYERS, 2 * LAYERS)
    assert world["optimizer"].get_optimization_info()["training_stats"]["global_step"] == len(rows)


def test_lycoris_without_a_trainer():
    pytest.importorskip("lycoris")
    world = {"model": bare_llama()}
    exec(blocks("Plain torch, accelerate")[1], world)
    model, optimizer = world["model"], world["optimizer"]
    model(**{key: value[None] for key, value in texts(1)[0].items()}).loss.backward()
    optimizer.step()
    stats = optimizer.get_optimization_info()["lokr_stats"]
    assert stats["lokr_pairs"] == stats["lokr_groups"] >= 7 * LAYERS
    assert "0 regular, 0 unnamed" in optimizer.summary()


def arguments(folder):
    return transformers.TrainingArguments(str(folder), max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True)


@pytest.mark.slow
def test_hf_trainer(tmp_path):
    world = {"model": llama(), "arguments": arguments(tmp_path), "dataset": texts()}
    exec(blocks("HF Trainer")[0], world)
    assert pairs(world["optimizer"]) == (3 * LAYERS, 3 * LAYERS)
    assert world["trainer"].state.global_step == 2


@pytest.mark.slow
def test_axolotls_plugin_sets_the_optimizer_of_a_trainer_that_is_there(tmp_path, monkeypatch):
    base = types.ModuleType("axolotl.integrations.base")
    base.BasePlugin = object
    for name in ("axolotl", "axolotl.integrations"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, base.__name__, base)
    world = {}
    exec(blocks("axolotl")[0], world)
    run = trainer(llama(), tmp_path)
    world["HinaPlugin"]().post_trainer_create(types.SimpleNamespace(learning_rate=1e-3, weight_decay=None), run)
    run.train()
    optimizer = run.optimizer.optimizer
    assert isinstance(optimizer, HinaAdamW)
    assert pairs(optimizer) == (3 * LAYERS, 3 * LAYERS)
    rates = [entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry]
    assert rates[:2] == pytest.approx([1e-3, 1e-3 * 5 / 6])


def test_diffusion_pipes_groups():
    """As its `get_optimizer` makes them, with the names that it keeps on its parameters."""
    (text,) = blocks("diffusion-pipe")
    branch, names = (re.sub(r"^        ", "", part, flags=re.MULTILINE) for part in text.split("...\n"))
    model = llama()
    for name, param in model.base_model.model.named_parameters():  # of the model inside PEFT's, as in models/base.py
        param.original_name = name
    world = {
        "optim_type_lower": "hinaadamw",
        "param_groups": [{"params": [p for p in model.parameters() if p.requires_grad]}],
    }
    exec(f"if False:\n    pass\n{branch}{names}", world)
    optimizer = world["klass"](world["param_groups"], lr=2e-4, betas=[0.9, 0.99], weight_decay=0.01, use_alora=True)
    assert pairs(optimizer) == (3 * LAYERS, 3 * LAYERS)


def test_simpletuners_entry(monkeypatch):
    choices, ran = {}, []
    module = types.ModuleType("simpletuner.helpers.training.optimizer_param")
    module.optimizer_choices = choices
    for name in ("simpletuner", "simpletuner.helpers", "simpletuner.helpers.training"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("runpy.run_module", lambda name, run_name: ran.append(name))
    exec(blocks("SimpleTuner")[0], {})
    assert ran == ["simpletuner.train"]
    (entry,) = choices.values()
    assert "hina-adaptive" in choices
    param = torch.nn.Parameter(torch.zeros(3, 3))
    entry["class"]([param], lr=1e-3, **entry["default_settings"], use_cautious=True, wd_transition_steps=1000)
