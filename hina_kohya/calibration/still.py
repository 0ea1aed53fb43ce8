"""An optimizer that takes no step."""

from typing import Any

import torch

NAME = f"{__name__}.Still"


class Still(torch.optim.Optimizer):
    """Gradients are computed, and the parameters stay; takes whatever a trainer hands to an optimizer."""

    def __init__(self, params: Any, lr: Any = 0.0, **_: Any):
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> Any:
        """The loss of the closure, if there is one."""
        return None if closure is None else closure()
