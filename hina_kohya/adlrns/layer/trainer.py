"""Train dynamic layers, alone in a model or compressed: loss + weight * E, replanning each epoch, whole checkpoints."""

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hina_kohya.adlrns.settings import Settings

from .capture import inputs, side_inputs
from .limits import Limits
from .module import DynamicLowRankLayer
from .perf import device_name


def default_loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy for integer targets, else the mean squared error."""
    return F.mse_loss(output, target) if target.is_floating_point() else F.cross_entropy(output, target)


class ADLRNSTrainer:
    """``ADLRNSTrainer(model, config, device, save_dir).train(train_loader, val_loader, num_epochs)``.

    model  : any module; outputs that are (output, rank) of a `DynamicLowRankLayer` count as the output
    config : `Settings`, or nested dictionaries of the same names
    loss   : of (output, target); see `default_loss`
    Loaders give (x, target), or (x, target, {name: another input of the model's forward}). Layers that score their own
    input are calibrated on the first batch of the first epoch.

    E = alpha * FLOPs(r) / FLOPs_full + beta * Mem(r) / Mem_full with Mem the weights read, a mean over the layers with
    gates; it has a gradient to gates and scorers. The budget is set before the first and after each epoch, so that type
    adaptive replans from the gains it has seen. `scheduler.budget` is percent of the dense multiply-adds of the layers
    (of all Linear and convolution layers in a `CompressedModel`), with the same mean rank for each layer.
    `energy_budget_mJ_per_sample` lowers that: by measured energy where a counter exists; else to the multiply-adds that
    `hardware.energy_per_flop` allows, with those of the dense layers counted; without either it is a ValueError.

    What the configuration asks for, and this model or device cannot do, is one warning that lists all of it.

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
        for layer in self.layers:
            layer.scheduler.kind = self.config.scheduler.type
        self.epoch, self.best = 0, float("inf")
        self.history: list[dict[str, float]] = []
        self.limits = Limits(self.model, self.config, self.device)
        remarks = [*filter(None, [self.limits.remark]), *self._remarks()]
        if remarks:
            warnings.warn("of the configuration:\n- " + "\n- ".join(remarks), stacklevel=2)

    def _remarks(self) -> Iterator[str]:
        """What the configuration asks for and nothing here does."""
        weight, hardware, name = self.config.train.energy_penalty_weight, self.config.hardware, device_name(self.device)
        if weight and not self.gated:
            yield (
                f"train.energy_penalty_weight = {weight:g} is not used, as no layer has gates to learn from it; "
                f"give layers num_gate_blocks={self.config.model.num_gate_blocks}, or limit cost by scheduler.budget"
            )
        if hardware.gpu_type.lower() not in name.lower():
            yield f"hardware.gpu_type = {hardware.gpu_type!r} is not used; this trains on {name}"
        for key in ("gpu_cores", "base_frequency", "memory_bandwidth"):
            if getattr(hardware, key) is not None:
                yield f"hardware.{key} is not used; PerfEstimator takes it"

    def train(
        self, train_loader: Iterable[Any], val_loader: Iterable[Any], num_epochs: int | None = None
    ) -> list[dict[str, float]]:
        """One dictionary an epoch: loss, energy (E), val_loss, val_accuracy (of integer targets, with the default
        loss), val_rank (mean over layers with cells of their own)."""
        until = self.epoch + (self.config.train.epochs if num_epochs is None else num_epochs)
        self._calibrate(train_loader, refit=True)
        self.limits.replan()
        while self.epoch < until:
            row = self.train_epoch(train_loader)
            self._calibrate(train_loader, refit=False)
            self.limits.replan()
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
        for x, target, side in self._moved(loader):
            self.optimizer.zero_grad()
            loss, energy = self.loss(self._output(x, side), target), self.energy()
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
        total, correct, samples = 0.0, 0.0, 0
        for x, target, side in self._moved(loader):
            self.limits.begin()
            output = self._output(x, side)
            self.limits.end(x, **side)
            total += float(self.loss(output, target)) * len(x)
            has_accuracy = not target.is_floating_point() and self.loss is default_loss
            correct += float((output.argmax(1) == target).double().mean()) * len(x) if has_accuracy else math.nan
            samples += len(x)
        for handle in handles:
            handle.remove()
        if not samples:
            raise ValueError("the validation loader gave no sample")
        row = {"val_loss": total / samples}
        if not math.isnan(correct):
            row["val_accuracy"] = correct / samples
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

    def _moved(self, loader: Iterable[Any]) -> Iterator[tuple[Tensor, Any, dict[str, Any]]]:
        for batch in loader:
            x, target = inputs(batch).to(self.device), batch[1].to(self.device)
            yield x, target, side_inputs(batch, None, self.device)

    def _output(self, x: Tensor, side: dict[str, Any]) -> Any:
        y = self.model(x, **side)
        return y[0] if isinstance(y, tuple) else y

    @torch.no_grad()
    def _calibrate(self, loader: Iterable[Any], refit: bool) -> None:
        """On the first batch: what layers cost, and for those with cells of their own their inputs."""
        own = [layer for layer in self.layers if layer.context is None]
        refit = refit and self.epoch == 0
        if self.config.scheduler.type == "adaptive" and not refit:
            own = []
        if not own and not self.limits.counts:
            return
        batch = next(iter(loader), None)
        if batch is None:
            raise ValueError("the training loader gave no sample")
        x, side = inputs(batch).to(self.device), side_inputs(batch, None, self.device)

        def hook(layer: DynamicLowRankLayer) -> Callable[..., None]:
            return lambda _module, args: layer.calibrate(args[0], refit)

        hooks = [layer.register_forward_pre_hook(hook(layer)) for layer in own]
        self.model.eval()
        self._output(x, side)
        for handle in hooks:
            handle.remove()
        self.limits.count(x, **side)
