"""The canonical composed step: every technique in the one order of TECHNIQUES.md section 16.

What that section leaves open is decided here:

- ``g0`` is the gradient as given; Cautious, Grams and TAM read the gradient after the gradient stage; SPD reads g0.
- The mask of cautious weight decay reads the update after Grams and before Cautious: an entry that Cautious holds back
  decays or not as if it had not been held back.
- The schedule's t counts all calls, ADOPT's initialising one included; that call changes p in no way.
- Learning-rate multipliers (LoRA+, ALLoRA rows, Kronecker) act on the update only; decay uses the plain lr.
"""

import numpy as np

from .adamw import AdamW
from .adopt import ADOPT
from .agr import agr
from .cautious import cautious
from .cautious_weight_decay import decay
from .dynamic_weight_decay import weight_decay_at
from .grams import grams
from .orthograd import orthograd
from .spd import project
from .tam import Torque

MOMENTS = {"adam": AdamW, "adopt": ADOPT}


class ComposedStep:
    """One tensor.

    tam: None or ``Torque``'s arguments as a dict. moment_options: betas, eps, ... of AdamW or ADOPT.
    schedule: None or transition_steps, factor, min_ratio of the dynamic decay. spd: None or lambda; anchor for it.
    ``trace`` holds the intermediate values of the last step under the names used below.
    """

    def __init__(
        self,
        *,
        agr=False,
        orthograd=False,
        tam=None,
        moment="adam",
        moment_options=None,
        sign=None,
        floor=1e-3,
        weight_decay=0.0,
        schedule=None,
        cwd=False,
        spd=None,
        anchor=0.0,
    ):
        if sign not in (None, "cautious", "grams"):
            raise ValueError(f"sign={sign!r} must be None, 'cautious' or 'grams'")
        if spd is not None and weight_decay:
            raise ValueError("SPD replaces weight decay: give one of spd and weight_decay")
        self.agr, self.orthograd, self.sign, self.floor = agr, orthograd, sign, floor
        self.torque = None if tam is None else Torque(**tam)
        self.moment = MOMENTS[moment](**(moment_options or {}))
        self.weight_decay, self.schedule, self.cwd = weight_decay, schedule, cwd
        self.spd, self.anchor = spd, anchor
        self.t, self.trace = 0, {}

    def step(self, p, g, lr, multiplier=1.0):
        """``multiplier``: of the lr, a scalar or a column [rows, 1]."""
        self.t += 1
        g0 = g
        if self.agr:
            g = agr(g)
        if self.orthograd:
            g = orthograd(p, g)
        u = self.moment.direction(g, damping=self.torque)
        self.trace = {"g": g, "u": u}
        if u is None:
            return p.copy()
        if self.sign == "grams":
            u = grams(u, g)
        direction = u
        if self.sign == "cautious":
            u = cautious(u, g, self.floor)
        weight_decay = (
            weight_decay_at(self.t, self.weight_decay, **self.schedule) if self.schedule else self.weight_decay
        )
        taken = decay(p, direction, lr, weight_decay) if self.cwd else lr * weight_decay * p
        p_tilde = p - taken - lr * np.asarray(multiplier) * u
        self.trace |= {"u_signed": u, "direction": direction, "weight_decay": weight_decay, "p_tilde": p_tilde}
        return p_tilde if self.spd is None else project(p_tilde, p, g0, self.anchor, self.spd)


class ComposedPair:
    """Two tensors, each with its own chain, under one rule ``multipliers(A, B)`` of LoRAPlus, ALLoRA or Kronecker."""

    def __init__(self, down, up, rule=None):
        self.down, self.up, self.rule = down, up, rule

    def step(self, A, B, gA, gB, lr):
        kA, kB = (1.0, 1.0) if self.rule is None else self.rule.multipliers(A, B)
        return self.down.step(A, gA, lr, kA), self.up.step(B, gB, lr, kB)
