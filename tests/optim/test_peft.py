"""HinaAdamW where PEFT's users are: a loop of accelerate's, HF Trainer, and beside PEFT's own LoRA+ groups."""

import logging

import pytest
import torch
from accelerate import Accelerator

from hina_kohya import HinaAdamW
from tests.support.chains import chains_of
from tests.support.peft_models import LAYERS, TARGETS, llama, texts, trainer

loraplus = pytest.importorskip("peft.optimizers").create_loraplus_optimizer

PLAIN = {"state": "fp32", "use_muon": False, "use_cautious": False, "weight_decay": 0.0}  # torch's AdamW by the bit


def trained(model):
    return {name: param for name, param in model.named_parameters() if param.requires_grad}


def loop(model, optimizer, steps=4):
    """Accelerate's loop, with a scheduler and accumulated gradients."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    loader = torch.utils.data.DataLoader(texts(), batch_size=2)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, steps)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    for _, batch in zip(range(2 * steps), loader, strict=False):
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()


def after(steps=4, lora=(), **options):
    """Where a run of that many steps ends, by name of the parameter; and the optimizer."""
    model = llama(**dict(lora))
    optimizer = HinaAdamW(model.named_parameters(), **{"lr": 1e-2, **PLAIN, **options})
    loop(model, optimizer, steps)
    return {name: param.detach() for name, param in trained(model).items()}, optimizer


def test_accelerate_finds_pairs_and_nothing_regular(caplog):
    with caplog.at_level(logging.INFO, "hina_kohya"):
        params, optimizer = after(lora={"use_dora": True}, state="8bit", use_muon=True, use_cautious=True)
    modules = LAYERS * len(TARGETS)
    info = optimizer.get_optimization_info()
    assert info["roles"] == {"dora_scale": modules, "lora_down": modules, "lora_up": modules}
    assert info["lora_stats"] == {"lora_a_params": modules, "lora_b_params": modules, "lora_pairs": modules}
    assert info["total_params"] == sum(param.numel() for param in params.values())
    assert (
        f"{3 * modules} parameters named; lora {modules} modules, {modules} pairs; 0 regular, 0 unnamed" in caplog.text
    )


def test_lora_plus_acts_on_b_alone():
    start = {name: param.detach().clone() for name, param in trained(llama()).items()}
    slow, _ = after(steps=1, use_lora_muon=False)
    fast, _ = after(steps=1, use_alora=True, alora_ratio=8.0)
    for name, before in start.items():
        ratio = 8.0 if ".lora_B." in name else 1.0
        torch.testing.assert_close(fast[name] - before, ratio * (slow[name] - before))
    assert sum(not torch.equal(slow[name], before) for name, before in start.items()) >= len(start) / 2  # A waits for B


def test_decay_goes_by_role():
    """Factors shrink, DoRA's magnitudes do not, unless they are asked for."""
    dora = {"use_dora": True}
    start = {name: param.detach().clone() for name, param in trained(llama(**dora)).items()}
    none, _ = after(1, dora, use_lora_muon=False)
    factors, _ = after(1, dora, use_lora_muon=False, weight_decay=0.5)
    everything, _ = after(1, dora, use_lora_muon=False, weight_decay=0.5, decay_roles="dora_scale")
    assert any(name.endswith("magnitude_vector.default.weight") for name in start)
    for name, before in start.items():
        shrunk = none[name] - 1e-2 * 0.5 * before
        magnitude = "magnitude" in name
        torch.testing.assert_close(factors[name], none[name] if magnitude else shrunk)
        torch.testing.assert_close(everything[name], shrunk)
        if before.any():
            assert not torch.allclose(shrunk, none[name])


def test_muon_leaves_the_tokens_of_an_embedding_to_adam():
    """Its authors step embeddings by AdamW; most columns of `lora_embedding_A` have no gradient in a step."""
    optimizer = HinaAdamW(llama(target_modules=["embed_tokens"]).named_parameters(), use_muon=True)
    moments = {
        member.role.name: [technique.name for technique in chain if technique.name in ("adam", "muon")]
        for member, chain in zip(optimizer.members, chains_of(optimizer), strict=True)
        if chain
    }
    assert moments == {"lora_embedding_A": ["adam"], "lora_embedding_B": ["muon"]}


# --- beside PEFT's LoRA+ -----------------------------------------------------------------------------------------

RATIO, LR = 16.0, 1e-3
WITH_EMBEDDING = [*TARGETS, "embed_tokens"]


def of_peft(model):
    """PEFT's optimizer; its groups give an embedding's factors a rate of their own, here that of the others."""
    return loraplus(model, torch.optim.AdamW, lr=LR, loraplus_lr_ratio=RATIO, loraplus_lr_embedding=LR)


@pytest.mark.parametrize("targets", [TARGETS, WITH_EMBEDDING], ids=["linear", "embedding"])
def test_learning_rates_are_those_of_pefts_lora_plus(targets):
    model = llama(target_modules=targets)
    theirs = {id(p): group["lr"] for group in of_peft(model).param_groups for p in group["params"]}
    params = trained(model)
    groups = [{"params": [item]} for item in params.items()]  # one each, since effective_lr is a group's
    ours = HinaAdamW(groups, lr=LR, use_alora=True, alora_ratio=RATIO).effective_lr
    assert ours == pytest.approx([theirs[id(param)] for param in params.values()])
    assert set(theirs.values()) == {LR, LR * RATIO}


@pytest.mark.slow
@pytest.mark.parametrize("targets", [TARGETS, WITH_EMBEDDING], ids=["linear", "embedding"])
def test_runs_end_where_pefts_lora_plus_ends(targets):
    ours, _ = after(8, {"target_modules": targets}, lr=LR, use_alora=True, alora_ratio=RATIO)
    model = llama(target_modules=targets)
    loop(model, of_peft(model), 8)
    theirs = trained(model)
    start = trained(llama(target_modules=targets))
    for name, param in theirs.items():
        assert not torch.equal(param, start[name])
        torch.testing.assert_close(ours[name], param.detach(), rtol=1e-5, atol=1e-7)


def test_groups_with_lora_plus_are_followed_and_not_sped_up_twice():
    """PEFT's groups have no names; given names, HinaAdamW sees that they carry LoRA+ and leaves it out."""
    model = llama()
    names = {id(param): name for name, param in trained(model).items()}
    groups = [
        {"params": [(names[id(p)], p) for p in group["params"]], "lr": group["lr"]}
        for group in of_peft(model).param_groups
        if group["params"]
    ]
    optimizer = HinaAdamW(groups, use_alora=True, alora_ratio=RATIO)
    assert optimizer.effective_lr == pytest.approx([group["lr"] for group in groups])


# --- HF Trainer --------------------------------------------------------------------------------------------------


OPTIONS = {"lr": 1e-2, "use_alora": True}


def given(model):
    return {"optimizers": (HinaAdamW(model.named_parameters(), **OPTIONS), None)}


def by_class(model):
    return {"optimizer_cls_and_kwargs": (HinaAdamW, {"params": list(model.named_parameters()), **OPTIONS})}


@pytest.mark.slow
@pytest.mark.parametrize("way", [given, by_class])
@pytest.mark.parametrize("adapter", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_trainer_saves_and_resumes_by_the_bit(way, adapter, tmp_path):
    model = llama(**adapter)
    run = trainer(model, tmp_path / "one", **way(model))
    run.train()
    whole = run.optimizer.optimizer  # accelerate's wrapper
    assert isinstance(whole, HinaAdamW)
    modules = LAYERS * len(TARGETS)
    assert whole.get_optimization_info()["lora_stats"]["lora_pairs"] == modules
    assert f"{modules} pairs; 0 regular, 0 unnamed" in whole.summary()
    rates = [entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([1e-2 * (1 - step / 6) for step in range(6)])  # Trainer's own scheduler

    again = llama(**adapter)
    resumed = trainer(again, tmp_path / "two", **way(again))
    resumed.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-3"))
    assert resumed.state.global_step == 6
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    ours, theirs = whole.state_dict()["state"], resumed.optimizer.optimizer.state_dict()["state"]
    assert len(ours) == len(trained(model))
    for index, entry in ours.items():
        assert entry.keys() == theirs[index].keys()
        assert any(key.endswith(".scale") for key in entry) or "magnitude" in whole.members[index].name
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(theirs[index][key])) for key, v in entry.items())


@pytest.mark.slow
def test_groups_that_trainer_makes_have_no_names(tmp_path, caplog):
    """So the class alone steps everything as a regular parameter, and says so."""
    model = llama()
    run = trainer(model, tmp_path, optimizer_cls_and_kwargs=(HinaAdamW, dict(OPTIONS)))
    with caplog.at_level(logging.INFO, "hina_kohya"):
        run.train()
    assert f"0 regular, {2 * LAYERS * len(TARGETS)} unnamed" in caplog.text
