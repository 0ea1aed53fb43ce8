import dataclasses as dc

from hina_kohya.core.hyper import hyper
from hina_kohya.core.registry import register
from hina_kohya.core.signal import Signal
from hina_kohya.core.technique import Stage, State, Technique


@register
@dc.dataclass(frozen=True)
class DynamicWeightDecay(Technique):
    r"""Lets weight decay fade after a transition, down to a floor.

    .. math:: \lambda_t = \lambda \max(\text{min\_ratio},\ f^{\,\max(0,\, t - T) / T})

    Shapes: lambda, t [N, 1, 1]; t counts each parameter's own steps.
    Source: this project (TECHNIQUES.md, section 10): the schedule of the hinablue fork.
    Differs: from the fork, whose exponent was capped at 2, so that its min_ratio was never reached.
    Cost: no state; acts on one number a matrix.
    """

    name, stage = "dynamic_weight_decay", Stage.STEP_SIZE
    yields_to = ("spd",)
    transition_steps: float = hyper(1000, "(0, inf)", doc="T in steps; below 1, the fraction of total_steps")
    decay_factor: float = hyper(0.7, "(0, 1]", doc="f: what is left after each further T steps")
    min_ratio: float = hyper(0.1, "[0, 1]", doc="floor of the fade")
    total_steps: int = hyper(0, "[0, inf)", doc="length of the run; needed where transition_steps is a fraction")

    def __post_init__(self):
        super().__post_init__()
        if self.transition_steps < 1 and not self.total_steps:
            raise ValueError(
                f"wd_transition_steps = {self.transition_steps} is a fraction of the run, whose length the optimizer "
                "does not know; add dynamic_weight_decay.total_steps=(your max_train_steps)"
            )

    def apply(self, s: Signal, state: State) -> Signal:
        transition = self.transition_steps * (self.total_steps if self.transition_steps < 1 else 1)
        faded = self.decay_factor ** ((s.step - transition).clamp_(min=0) / transition)
        return s.but(decay=s.decay * faded.clamp_(min=self.min_ratio))
