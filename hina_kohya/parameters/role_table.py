"""The vocabulary of adapter parameters: which name ending means what. Data only; `roles` reads names with it.

Every ending was read off networks *while they train* (`named_parameters()` after `apply_to`): LyCORIS 3.0.0 to 4.1.3
and sd-scripts' lora, lora_fa, dylora, oft, oft_flux, lora_flux (main) and loha, lokr (feat-support-lokr-loha),
musubi-tuner's lora, loha, lokr, PEFT 0.21 (older names: its source back to 0.3), diffusers 0.20 (0.14 to 0.25: source).
Surprises, so that nobody "fixes" the table:

- GLoRA starts its *down* matrices (a2, b2) at zero: `side` and `zero_init` are different questions.
- LyCORIS `full` trains the whole weight (`apply_to` adds the base weight), so zero is not the base model there.
  T-LoRA subtracts its frozen start, so zero is not the base model there either, and its factors do not decay.
- A Tucker LoHa starts hada_w2_a at zero in LyCORIS and hada_w1_a in the sd-scripts branch; no name tells them apart.
- PEFT starts other factors at zero than LyCORIS: LoHa at hada_w2_b, LoKr at lokr_w1 or lokr_w1_a, embeddings at A. Its
  (IA)3 and BOFT scales start at one. `init_weights="lycoris"`, "pissa" and the like are not in the names.
"""

from __future__ import annotations

import dataclasses as dc
from enum import Enum


class Kind(str, Enum):
    """What sort of tensor it is, so what an optimizer may do with it."""

    FACTOR = "factor"  # a matrix (or core tensor) of a product
    DENSE = "dense"  # a whole weight
    SCALE = "scale"  # multiplies what is there: dora_scale, scalar, rescale, lambda, (IA)3
    NORM = "norm"
    BIAS = "bias"
    ROTATION = "rotation"  # the generator of an orthogonal matrix; zero is the identity
    EMBEDDING = "embedding"  # a factor of which a step sees the columns of its tokens only: neither Muon nor LoRA+
    REGULAR = "regular"  # no adapter parameter, or none we know


@dc.dataclass(frozen=True)
class Role:
    """What a parameter is to its module; frozen data, one instance per row of the table.

    side     : in W = B A, "A" lies on the input side (down, r x n), "B" on the output side (up, m x r)
    partner  : the role that multiplies it directly; `mid` names what, if present, stands in between
    kronecker: "w1" or "w2", its side of W = w1 (x) w2
    zero_init: the tensor is all zeros when training starts
    decays   : weight decay is on by default
    """

    name: str
    algo: str  # "" belongs to whatever its module is; `resolve` fills it in
    kind: Kind
    side: str = ""
    partner: str | None = None
    mid: str | None = None
    kronecker: str = ""
    zero_init: bool = False
    decays: bool = True


def _down(name: str, algo: str, partner: str, mid: str | None = None, **more) -> Role:
    return Role(name, algo, Kind.FACTOR, "A", partner, mid, **more)


def _up(name: str, algo: str, partner: str, mid: str | None = None, **more) -> Role:
    return Role(name, algo, Kind.FACTOR, "B", partner, mid, **more)


def _core(name: str, algo: str, **more) -> Role:
    return Role(name, algo, Kind.FACTOR, **more)


def _still(name: str, algo: str, kind: Kind, zero: bool = False) -> Role:
    """A role that does not decay."""
    return Role(name, algo, kind, zero_init=zero, decays=False)


REGULAR = Role("regular", "", Kind.REGULAR)
IA3 = _still("ia3", "ia3", Kind.SCALE, zero=True)  # named `weight` like FULL: told apart by shape
FULL = Role("full_weight", "full", Kind.DENSE)
OFT = Role("oft_blocks", "oft", Kind.ROTATION, zero_init=True)  # 3-d
BOFT = Role("boft_blocks", "boft", Kind.ROTATION, zero_init=True)  # also named `oft_blocks`, but 4-d
SCALAR = _still("scalar", "", Kind.SCALE, zero=True)  # LyCORIS use_scalar: it is zero *instead of* a factor

_DORA_SCALE = _still("dora_scale", "", Kind.SCALE)
_RESCALE = _still("rescale", "", Kind.SCALE)

_LORA_DOWN = _down("lora_down", "lora", "lora_up", "lora_mid")
_LORA_UP = _up("lora_up", "lora", "lora_down", "lora_mid", zero_init=True)
_DYLORA_DOWN = _down("dylora_down", "dylora", "dylora_up")
_DYLORA_UP = _up("dylora_up", "dylora", "dylora_down", zero_init=True)

# Endings that mean one thing wherever they stand. `#` is an index: a ParameterList or a ModuleList.
DISTINCT: dict[str, Role] = {
    "lora_down.weight": _LORA_DOWN,  # LoRA, LoCon, DoRA, LoRA-FA (which trains lora_up alone)
    "lora_up.weight": _LORA_UP,
    "lora_mid.weight": _core("lora_mid", "lora"),
    "lora_down.#.weight": _LORA_DOWN,  # sd-scripts split_dims (FLUX qkv)
    "lora_up.#.weight": _LORA_UP,
    "lora_A.#": _DYLORA_DOWN,  # sd-scripts
    "lora_B.#": _DYLORA_UP,
    "lora.down.weight": _LORA_DOWN,  # diffusers' files
    "lora.up.weight": _LORA_UP,
    "lora_layer.down.weight": _LORA_DOWN,  # diffusers 0.20 to 0.25, linear and convolutional layers
    "lora_layer.up.weight": _LORA_UP,
    "lora_linear_layer.down.weight": _LORA_DOWN,  # and its text encoders, also in files
    "lora_linear_layer.up.weight": _LORA_UP,
    "hada_w1_a": _up("hada_w1_a", "loha", "hada_w1_b", "hada_t1"),
    "hada_w1_b": _down("hada_w1_b", "loha", "hada_w1_a", "hada_t1"),
    "hada_w2_a": _up("hada_w2_a", "loha", "hada_w2_b", "hada_t2", zero_init=True),
    "hada_w2_b": _down("hada_w2_b", "loha", "hada_w2_a", "hada_t2"),
    "hada_t1": _core("hada_t1", "loha"),
    "hada_t2": _core("hada_t2", "loha"),
    "lokr_w1": _core("lokr_w1", "lokr", kronecker="w1"),
    "lokr_w1_a": _up("lokr_w1_a", "lokr", "lokr_w1_b", kronecker="w1"),
    "lokr_w1_b": _down("lokr_w1_b", "lokr", "lokr_w1_a", kronecker="w1"),
    "lokr_w2": _core("lokr_w2", "lokr", kronecker="w2", zero_init=True),
    "lokr_w2_a": _up("lokr_w2_a", "lokr", "lokr_w2_b", "lokr_t2", kronecker="w2"),
    "lokr_w2_b": _down("lokr_w2_b", "lokr", "lokr_w2_a", "lokr_t2", kronecker="w2", zero_init=True),
    "lokr_t2": _core("lokr_t2", "lokr", kronecker="w2"),
    "oft_blocks": OFT,
    "oft_blocks.#": OFT,  # sd-scripts oft_flux
    "dora_scale": _DORA_SCALE,
    "w_norm": _still("norm_weight", "norm", Kind.NORM, zero=True),
    "b_norm": _still("norm_bias", "norm", Kind.NORM, zero=True),
}

# Endings that ordinary models use too: they count only right after a module name such as `lora_unet_..._to_q`.
GENERIC: dict[str, Role] = {
    "up_list.#": _DYLORA_UP,  # LyCORIS
    "down_list.#": _DYLORA_DOWN,
    "a1.weight": _up("glora_a1", "glora", "glora_a2"),  # W <- W + W (a1 a2) + b1 [bm] b2
    "a2.weight": _down("glora_a2", "glora", "glora_a1", zero_init=True),
    "b1.weight": _up("glora_b1", "glora", "glora_b2", "glora_bm"),
    "b2.weight": _down("glora_b2", "glora", "glora_b1", "glora_bm", zero_init=True),
    "bm.weight": _core("glora_bm", "glora"),  # LyCORIS 3.0.0 only; later versions never create it
    "p_layer.weight": _up("tlora_p", "tlora", "tlora_q", "tlora_lambda", decays=False),
    "q_layer.weight": _down("tlora_q", "tlora", "tlora_p", "tlora_lambda", decays=False),
    "lambda_layer": _still("tlora_lambda", "tlora", Kind.SCALE),
    "weight": FULL,
    "bias": _still("full_bias", "full", Kind.BIAS),
    "diff": Role("diff", "full", Kind.DENSE, zero_init=True),  # how `full` is called in files
    "diff_b": _still("diff_b", "full", Kind.BIAS, zero=True),
    "rescale": _RESCALE,
    "scalar": SCALAR,
}

# Endings that count only right after a module of diffusers' LoRA processors: `to_q_lora`; x-flux has `qkv_lora1`.
PROCESSOR: dict[str, Role] = {"down.weight": _LORA_DOWN, "up.weight": _LORA_UP}

# PEFT, without the adapter's name, which stands after the first part while training (`lora_A.default.weight`) and is
# left out in files. Endings that LyCORIS has too are PEFT's where an adapter is named or the name begins with PEFT's
# `base_model.model`. AdaLoRA (`lora_A.default`, no `.weight`) is not here: sd-scripts' DyLoRA has `lora_A.0`.
PEFT: dict[str, Role] = {
    "lora_A.weight": _LORA_DOWN,
    "lora_B.weight": _LORA_UP,
    "lora_B.bias": _still("lora_bias", "lora", Kind.BIAS, zero=True),
    # W = (B A)^T, so that A [r, tokens] and B [out, r] are those of a linear layer that reads one-hot tokens.
    "lora_embedding_A": dc.replace(
        _down("lora_embedding_A", "lora", "lora_embedding_B", zero_init=True), kind=Kind.EMBEDDING
    ),
    "lora_embedding_B": _up("lora_embedding_B", "lora", "lora_embedding_A"),
    "lora_magnitude_vector": _DORA_SCALE,  # a parameter up to PEFT 0.11, and in files
    "lora_magnitude_vector.weight": _DORA_SCALE,
    # These vectors are all that VeRA trains (its matrices are buffers), and at zero they leave the base model's weight:
    # they decay, as factors do.
    "vera_lambda_b": Role("vera_lambda_b", "vera", Kind.SCALE, zero_init=True),
    "vera_lambda_d": Role("vera_lambda_d", "vera", Kind.SCALE),
    **{name: dc.replace(role, zero_init=name == "hada_w2_b") for name, role in DISTINCT.items() if role.algo == "loha"},
    **{
        name: dc.replace(role, zero_init=name in ("lokr_w1", "lokr_w1_a"))
        for name, role in DISTINCT.items()
        if role.algo == "lokr"
    },
    "ia3_l": dc.replace(IA3, zero_init=False),
    "oft_r": OFT,  # up to PEFT 0.15
    "oft_R.weight": OFT,
    "boft_R": BOFT,
    "boft_s": _RESCALE,
}

ROLES = (*DISTINCT.values(), *GENERIC.values(), *PEFT.values(), IA3, BOFT, REGULAR)
