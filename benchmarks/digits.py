"""The embedded trainer as a source of real adapters and real gradients."""

import sys
from collections.abc import Callable

import torch
from torch import Tensor

# As in configs/training/digits_lokr.toml.
NETWORK_ARGS = {
    "lora": ["algo=lora", "preset=attn-mlp"],
    "lokr": ["algo=lokr", "factor=8", "preset=attn-mlp"],
}


class Run:
    """A training run of `hina-kohya train` on the digits 8 and 9, stepped by torch's AdamW."""

    def __init__(self, algo: str, steps: int = 300, learning_rate: float = 3e-4):
        from hina_kohya.demo.loop import Trainer  # noqa: PLC0415 (imports diffusers)
        from hina_kohya.demo.model import DigitModel  # noqa: PLC0415
        from hina_kohya.demo.settings import Settings  # noqa: PLC0415

        settings = Settings(
            network_dim=16,
            network_alpha=16,
            network_args=NETWORK_ARGS[algo],
            optimizer_type="torch.optim.AdamW",
            learning_rate=learning_rate,
            max_train_steps=steps,
            train_batch_size=16,
        )
        self.steps = steps
        self.trainer = Trainer(settings, DigitModel.load())
        self.network: torch.nn.Module = self.trainer.network

    def record(self, seen: Callable[[int, list[Tensor]], None]) -> None:
        """Trains; ``seen(step, gradients)`` gets the clipped gradients of every step, in the order of `named`."""
        params = [param for _, param in self.named()]

        def look(*_) -> None:
            seen(step, [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in params])

        self.trainer.raw_optimizer.register_step_pre_hook(look)
        self.network.on_epoch_start(self.trainer.model.text_encoder, self.trainer.model.unet)
        for step in range(self.steps):
            self.trainer.losses.append(self.trainer._optimizer_step())
            if (step + 1) % 20 == 0:
                print(f"\rrecorded {step + 1} of {self.steps}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)

    def named(self) -> list[tuple[str, Tensor]]:
        return [(name, p) for name, p in self.network.named_parameters() if p.requires_grad]
