"""Train dynamic layers, alone in a model or compressed: loss + weight * E, replanning each epoch, whole checkpoints."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hina_kohya.adlrns.settings import Settings

from .budget import BudgetManager
from .capture import inputs
from .compressed import CompressedModel
from .module import DynamicLowRankLayer
from .perf import energy_counter


def default_loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy for integer targets, else the mean squared error."""
    return F.mse_loss(output, target) if target.is_floating_point() else F.cross_entropy(output, target)


class ADLRNSTrainer:
    """``ADLRNSTrainer(model, config, device, save_dir).train(train_loader, val_loader, num_epochs)``.

    model  : any module; outputs that are (output, rank) of a `DynamicLowRankLayer` count as the output
    config : `Settings`, or nested dictionaries of the same names
    loss   : of (output, target); see `default_loss`
    Loaders give (x, target). Layers that score their own input are calibrated on the first batch of the first epoch.

    E = alpha * FLOPs(r) / FLOPs_full + beta * Mem(r) / Mem_full with Mem the weights read, a mean over the layers with
    gates; it has a gradient to gates and scorers. `scheduler.budget` is set before the first and after each epoch, so
    that type adaptive replans from the gains it has seen. `energy_budget_mJ_per_sample` lowers the budget of a
    `CompressedModel` by measured energy and is a ValueError where no counter exists.

    save_dir gets last.pt after each epoch and best.pt at the lowest held-out loss; both appear whole or not at all.
    """

    def __init__(
        self,
        model: nn.Module,
        config: Settings | dict[str, Any],
        device: torch.device | str = "cpu",
        save_dir: str | Path | None = None,
        loss: Callable[[Tensor, Any], Tensor] = default_loss,
    ):
        self.config = config if isinstance(config, Settings) else Settings.of(config)
        self.device, self.loss = torch.device(device), loss
        self.model = model.to(self.device)
        self.save_dir = None if save_dir is None else Path(save_dir)
        self.optimizer = torch.optim.Adam(model.parameters(), self.config.train.lr)
        self.layers = [m for m in model.modules() if isinstance(m, DynamicLowRankLayer)]
        self.gated = [layer for layer in self.layers if layer.gate is not None]
        if not self.layers:
            raise ValueError("the model has no DynamicLowRankLayer; build it with some, or compress() a trained one")
        if self.config.train.energy_penalty_weight and not self.gated:
            raise ValueError("energy_penalty_weight has nothing to teach: no layer has gates; set num_gate_blocks")
        for layer in self.layers:
            layer.scheduler.kind = self.config.scheduler.type
        self.epoch, self.best = 0, float("inf")
        self.history: list[dict[str, float]] = []
        self.manager, self._counter = self._energy_budget()

    def _energy_budget(self) -> tuple[BudgetManager | None, Any]:
        wanted = self.config.scheduler.energy_budget_mJ_per_sample
        if wanted is None:
            return None, None
        counter, reason = energy_counter(self.device)
        if counter is None:
            raise ValueError(
                f"energy_budget_mJ_per_sample = {wanted} cannot be measured here ({reason}); use scheduler.budget"
            )
        if not isinstance(self.model, CompressedModel) or self.config.scheduler.budget is None:
            raise ValueError(f"energy_budget_mJ_per_sample = {wanted} needs a CompressedModel and scheduler.budget")
        return BudgetManager(wanted, "mJ", least=self.model.least_budget / self.config.scheduler.budget), counter

    def train(
        self, train_loader: Iterable[Any], val_loader: Iterable[Any], num_epochs: int | None = None
    ) -> list[dict[str, float]]:
        """One dictionary an epoch: loss, energy (E), val_loss, val_rank (mean over layers with cells of their own)."""
        until = self.epoch + (self.config.train.epochs if num_epochs is None else num_epochs)
        self._calibrate(train_loader, refit=True)
        self._replan()
        while self.epoch < until:
            row = self.train_epoch(train_loader)
            self._calibrate(train_loader, refit=False)
            self._replan()
            row |= self.validate(val_loader)
            self.epoch += 1
            self.history.append(row)
            if self.save_dir:
                self.save(self.save_dir / "last.pt")
                if row["val_loss"] < self.best:
                    self.best = row["val_loss"]
                    self.save(self.save_dir / "best.pt")
        return self.history

    def train_epoch(self, loader: Iterable[Any]) -> dict[str, float]:
        self.model.train()
        losses, energies, samples = 0.0, 0.0, 0
        for x, target in self._moved(loader):
            self.optimizer.zero_grad()
            loss, energy = self.loss(self._output(x), target), self.energy()
            (loss + self.config.train.energy_penalty_weight * energy).backward()
            self.optimizer.step()
            losses, energies = losses + float(loss.detach()) * len(x), energies + float(energy.detach()) * len(x)
            samples += len(x)
        if not samples:
            raise ValueError("the training loader gave no sample")
        return {"loss": losses / samples, "energy": energies / samples}

    def energy(self) -> Tensor:
        """E of the last training forward; 0 without gates."""
        found = [layer.energy for layer in self.gated if layer.energy is not None]
        if not found:
            return torch.zeros((), device=self.device)
        # Operations and weights read are both the rank times (in + out), relative to in * out.
        return (self.config.scheduler.alpha + self.config.scheduler.beta) * torch.stack(found).mean()

    @torch.no_grad()
    def validate(self, loader: Iterable[Any]) -> dict[str, float]:
        self.model.eval()
        ranks: list[tuple[float, int]] = []
        handles = [
            layer.register_forward_hook(lambda _m, args, out: ranks.append((out[1], len(args[0]))))
            for layer in self.layers
            if layer.context is None
        ]
        total, samples = 0.0, 0
        for x, target in self._moved(loader):
            before = self._counter.mJ() if self._counter else 0.0
            output = self._output(x)
            if self.manager is not None:
                self.manager.observe(self._counter.mJ() - before, len(x))
                self._replan()
            total += float(self.loss(output, target)) * len(x)
            samples += len(x)
        for handle in handles:
            handle.remove()
        if not samples:
            raise ValueError("the validation loader gave no sample")
        row = {"val_loss": total / samples}
        if ranks:
            row["val_rank"] = sum(rank * n for rank, n in ranks) / sum(n for _, n in ranks)
        return row

    def save(self, path: str | Path) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "best": self.best,
            "history": self.history,
        }
        torch.save(state, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    def load(self, path: str | Path) -> None:
        """Go on from a file of `save`: weights, cells, gains, ranks, Adam's moments, history."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.best, self.history = state["epoch"], state["best"], state["history"]

    def _moved(self, loader: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
        return ((x.to(self.device), target.to(self.device)) for x, target in loader)

    def _output(self, x: Tensor) -> Tensor:
        y = self.model(x)
        return y[0] if isinstance(y, tuple) else y

    def _replan(self) -> None:
        budget = self.config.scheduler.budget
        if budget is None:
            return
        if isinstance(self.model, CompressedModel):
            self.model.set_budget(budget * (self.manager.factor if self.manager else 1.0))
            return
        for layer in self.layers:
            layer.set_budget(budget)

    @torch.no_grad()
    def _calibrate(self, loader: Iterable[Any], refit: bool) -> None:
        """Layers with cells of their own: their inputs on the first batch."""
        own = [layer for layer in self.layers if layer.context is None]
        refit = refit and self.epoch == 0
        adaptive = self.config.scheduler.type == "adaptive"
        if not own or (adaptive and not refit):
            return

        def hook(layer: DynamicLowRankLayer) -> Callable[..., None]:
            return lambda _module, args: layer.calibrate(args[0], refit)

        hooks = [layer.register_forward_pre_hook(hook(layer)) for layer in own]
        self.model.eval()
        for batch in loader:
            self._output(inputs(batch).to(self.device))
            break
        for handle in hooks:
            handle.remove()
