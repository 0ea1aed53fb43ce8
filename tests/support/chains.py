"""Chains and states that every promise is tested with."""

import pytest

from hina_kohya.core.chain import Chain
from hina_kohya.core.optimizer import HinaOptimizer

ALL = {
    "use_alora": True,
    "use_agr": True,
    "use_orthogonal_grad": True,
    "use_tam": True,
    "use_allora_rows": True,
    "use_kronecker_rms": True,
    "dynamic_weight_decay": True,
    "use_cautious_weight_decay": True,
}
CHAINS = {
    "default": {},
    "adam": {"use_lora_muon": False},
    "normuon": {"use_muon": True},
    "all": ALL,
    "all with muon": {**ALL, "use_muon": True},
    "adopt spd grams": {"use_adopt_stability": True, "use_spd": True, "use_grams": True, "use_cautious": False},
    "rite": {"use_lora_rite": True},
    "adatam": {"use_tam": True, "tam_paper_form": True},
}
STATES = ["fp32", "bf16", "8bit"]
states = pytest.mark.parametrize("state", STATES)
FLAGS = [
    {"use_spd": True},
    {"wd_transition_steps": 1, "dynamic_weight_decay": True},
    {"use_spd": True, "spd_lambda": 0.5},
    {"use_cautious": False},
    {"use_orthogonal_grad": True},
    {"use_adopt_stability": True},
    {"use_grams": True},
    {"use_agr": True},
    {"use_tam": True},
    {"use_tam": True, "tam_paper_form": True},
    {"use_lora_rite": True},
    {"use_lora_muon": False},
    {"rank_free_lr": True},
    {"use_lora_muon": False, "rank_free_lr": True},
    {"rank_free_lr": True, "lora_scale": 0.5},
    {"use_cautious_weight_decay": True},
    {"dynamic_weight_decay": True, "wd_transition_steps": 1},
    {"use_alora": True},
    {"use_muon": True},
    {"use_allora_rows": True},
    {"use_kronecker_rms": True},
    {"betas": (0.5, 0.9)},
    {"eps": 1e-2},
    {"weight_decay": 0.5},
    {"decay_roles": ["dora_scale"]},
    {"use_alora": True, "alora_ratio": 2.0},
    {"use_tam": True, "tam_beta": 0.1},
    {"use_spd": True, "spd_lambda": 0.9},
    {"dynamic_weight_decay": True, "wd_transition_steps": 1, "wd_decay_factor": 0.1},
    {"dynamic_weight_decay": True, "wd_transition_steps": 1, "wd_decay_factor": 0.1, "wd_min_ratio": 0.9},
    {"state": "bf16"},
    {"state": "fp32"},
    {"cautious.floor": 0.9},
]


def chains_of(optimizer: HinaOptimizer) -> list[Chain]:
    """The chain of every parameter."""
    return [each.chain for each in optimizer.parameters()]
