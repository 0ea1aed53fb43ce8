"""A pair of factors under AdamW whose learning rates are multiplied by a rule that may read both factors."""

from .adamw import AdamW


class Pair:
    """``multipliers(A, B) -> (k_A, k_B)``: scalars or columns [rows, 1], from the factors before the step.

    Decay uses the plain lr, not the multiplied one (TECHNIQUES.md section 16, step 8).
    """

    def __init__(self, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        self.weight_decay = weight_decay
        self.moments = AdamW(betas, eps), AdamW(betas, eps)

    def multipliers(self, A, B):
        raise NotImplementedError

    def step(self, A, B, gA, gB, lr):
        kA, kB = self.multipliers(A, B)
        keep = 1 - lr * self.weight_decay
        return (
            A * keep - lr * kA * self.moments[0].direction(gA),
            B * keep - lr * kB * self.moments[1].direction(gB),
        )
