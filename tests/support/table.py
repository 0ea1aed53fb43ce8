"""What the table of promises (`test_table.py`) needs to know of a technique: nothing, for most.

A technique that is registered is in the table. Where its defaults act too late or too little for a few
steps, `STRONG` has options with which it acts; where its mathematics is about the parameter itself, `READS_PARAMETERS`
says so.
"""

import math

import torch

from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.core.registry import build, technique
from hina_kohya.core.technique import REACH, Stage
from tests.support.stepping import SHAPES as EVERY_SHAPE

STRONG = {
    "automagic_mask": {"bump": 0.3},
    "came": {"bias_correct_confidence": True},
    "dynamic_weight_decay": {"transition_steps": 1},
    "edge_suppression": {"warmup": 1, "threshold": 0.0, "penalty": 1.0},
    "muon": {"normuon": True},
    "rank_penalty": {"strength": 0.5},
    "spd": {"lam": 1.0},
    "spatial_frequency": {"preserve": 0.0, "penalty": 1.0},
    "temporal_frequency": {"window": 4, "preserve": 0.0, "penalty": 1.0},
}
# Entries that are not zero count for these, whether they have a gradient or not: norms of factors, of what they moved,
# and of products.
READS_PARAMETERS = {"allora_rows", "kronecker_rms", "lora_muon", "lora_rite", "rank_penalty", "spd"}
# Learning rates that an entry may move; beyond the chain's reach only by what multiplies the learning rate.
MULTIPLIES = {"lora_plus": 16, "allora_rows": 2, "automagic_mask": 10, "importance": 4, "kronecker_rms": 10}
# Sizes of a step that go by the sides of W, whatever is dead in it.
GOES_BY_SIDES = {"lora_muon"}
UNBOUNDED = {
    "lora_muon": "a step of W has the learning rate's size; that of a factor goes with the other one's inverse",
    "lora_rite": "a step of W has the learning rate's size; that of a factor goes with the other one's inverse",
    "rank_penalty": "takes singular values away, by a share of the largest",
    "spd": "pulls back by what the step went away, and by no more than to the anchor",
}


def chain(name, **options):
    """The technique with what it needs beside it: a moment, and a weight decay to act on."""
    wanted = build(name, **{**STRONG.get(name, {}), **options})
    moment = wanted.stage is Stage.MOMENT and name not in technique("adam").yields_to
    decays = wanted.stage is Stage.DECAY or name in technique("weight_decay").yields_to
    others = ([] if moment or name == "adam" else [build("adam")]) + ([] if decays else [build("weight_decay")])
    return [*others, wanted]


def without(name):
    others = [each for each in chain(name) if each.name != name]
    moment = "adopt" if name == "adam" else "adam"
    return others if any(each.stage is Stage.MOMENT for each in others) else [*others, build(moment)]


def optimizer(params, techniques, lr=1e-2, weight_decay=0.1, state="fp32", **more):
    return HinaOptimizer(
        params.items(), techniques, lr=lr, weight_decay=weight_decay, state=state, decay_roles="all", **more
    )


def maker(name, **more):
    return lambda params: optimizer(params, chain(name), **more)


def limit(name, steps):
    """Learning rates that an entry may move with this chain, in its first ``steps``."""
    moment = next(each for each in chain(name) if each.stage is Stage.MOMENT)
    reach = moment.reach(torch.tensor(float(steps)))
    return float(REACH if reach is None else reach) * MULTIPLIES.get(name, 1)


# The others have one element, in which nothing can be dead beside something that lives.
SHAPES = {name: shape for name, shape in EVERY_SHAPE.items() if math.prod(shape) > 1}
# By how much a test makes each of them larger, where nothing that it is multiplied with has to grow along. The longer
# side stays the longer one: which vectors are NorMuon's neurons goes by shape.
MARGINS = {
    "lora_unet_a.lora_down.weight": (0, 5),
    "lora_unet_a.lora_up.weight": (3, 0),
    "lora_unet_b.lora_down.weight": (0, 300),
    "lora_unet_b.lora_up.weight": (300, 0),
    "lora_unet_c.lora_down.weight": (0, 2, 0, 0),
    "lora_unet_c.lora_up.weight": (5, 0, 0, 0),
    "lora_unet_k.lokr_w1": (3, 2),
    "lora_unet_k.lokr_w2_a": (9, 0),
    "lora_unet_k.lokr_w2_b": (0, 4),
    "lora_unet_d.dora_scale": (2, 0),
    "head.weight": (30, 20),
    "head.bias": (4,),
}
