"""LyCORIS's network with one rank for each module, chosen once: after the warm-up it is a smaller LoRA, in every way.

The choice is made right after a step of the optimizer, whichever it is: torch calls a hook there, outside of autograd
and between two steps. The same parameters go on with fewer rows, and so does their state (`core.reshaping`).
"""

import json
import logging
import math
import weakref
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from lycoris.kohya import LycorisNetworkKohya
from torch import Tensor
from torch.optim import Optimizer

from hina_kohya.adlrns.adapter import arguments, choice, files, steps
from hina_kohya.adlrns.adapter.arguments import Settings
from hina_kohya.adlrns.adapter.choice import Candidates, Sums
from hina_kohya.adlrns.adapter.plain_module import PlainModule, Watch
from hina_kohya.core.reshaping import Change, reshape
from hina_kohya.loras import level

logger = logging.getLogger("hina_kohya")

MEMORY = "adlrns_sums"  # in a state dict that is no file's: what a resumed training knows
_WIDE = torch.float32.itemsize


class PlainNetwork(LycorisNetworkKohya):
    """Trains `network_dim` directions of every module for `warmup` steps, then keeps the best within the budget.

    Made out of a LyCORIS network by `begin`. The steps are the optimizer's. All ranks of a distributed training choose
    alike: their sums are added first, and nothing else enters.
    """

    def begin(self, settings: Settings) -> None:
        """Raises ValueError for a budget that does not pay for `r_min`."""
        self.settings, self.watch = settings, Watch()
        self.adlrns_step, self.chosen, self.saving, self.started = 0, False, False, 0
        self._optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._counted: weakref.ref[Optimizer] | None = None
        self.budget()
        for lora in self.adlrns_modules():
            lora.watch = self.watch
        self.register_state_dict_post_hook(_remember)
        self.register_load_state_dict_pre_hook(_recall)

    def adlrns_modules(self) -> list[PlainModule]:
        return [lora for lora in self._loras() if isinstance(lora, PlainModule)]

    def _loras(self) -> list[Any]:
        return [*self.text_encoder_loras, *self.unet_loras]

    def apply_to(self, text_encoder: Any, unet: Any, *args: Any, **kwargs: Any) -> None:
        super().apply_to(text_encoder, unet, *args, **kwargs)
        steps.tell(self)

    def restore(self) -> None:
        super().restore()
        steps.leave(self)

    def on_step_start(self, *args: Any) -> None:
        super().on_step_start(*args)
        if self.chosen:
            steps.leave(self)
        self.started += 1
        self._look()

    def _look(self) -> None:
        """Whether the next step measures: every `probe_every`-th of the second half of the warm-up, and its last."""
        last, step = self.settings.warmup - 1, self.adlrns_step
        assert self.settings.probe_every is not None
        second_half = last // 2 <= step <= last
        self.watch.measuring = not self.chosen and second_half and (last - step) % self.settings.probe_every == 0

    def stepped(self, optimizer: Optimizer) -> None:
        """After a step of any optimizer; counts those of the first one that has parameters of ours."""
        if self.chosen:
            return
        if optimizer not in self._optimizers:
            ours = {id(param) for param in self.parameters()}
            if ours.isdisjoint(id(param) for group in optimizer.param_groups for param in group["params"]):
                return
            self._optimizers.add(optimizer)
        if self._counted is None or self._counted() is None:
            self._counted = weakref.ref(optimizer)
        if self._counted() is not optimizer:
            return
        self.adlrns_step += 1
        if self.adlrns_step >= self.settings.warmup:
            self.choose()
        self._look()

    @torch.no_grad()
    def choose(self) -> None:
        """Drops what the budget does not pay for. All ranks must come here."""
        modules = self.adlrns_modules()
        candidates = self._candidates(self._over_ranks(modules))
        spectra = [each.spectrum for each in candidates]
        budget = self.budget()
        ranks = choice.ranks(spectra, budget)
        changes: dict[Tensor, Change] = {}
        for lora, each, rank in zip(modules, candidates, ranks, strict=True):
            if rank < lora.lora_dim:
                changes |= lora.changes(each.basis, rank)
        reshape(self._optimizers, changes)
        for lora in modules:
            lora.follow()
        self.chosen = True
        spent, energy = choice.of_ranks(spectra, ranks), level.energy(spectra, ranks)
        logger.info(
            "adlrns step %d: %.4g MB of %.4g MB, ranks %d to %d, mean %.3g, %.1f %% of what all directions do",
            self.adlrns_step, spent / 1e6, budget / 1e6, min(ranks), max(ranks), sum(ranks) / len(ranks), 100 * energy,
        )  # fmt: skip

    def _candidates(self, sums: Sequence[Sums]) -> list[Candidates]:
        least, most = self.settings.r_min, self.settings.r_max
        assert most is not None
        return [
            choice.candidates(lora.lora_name, lora.lora_up.weight.cpu(), lora.lora_down.weight.cpu(), own, least, most)
            for lora, own in zip(self.adlrns_modules(), sums, strict=True)
        ]

    def budget(self) -> float:
        """Bytes for the modules' factors and names. Raises ValueError where `r_min` costs more."""
        spectra, budget = self._unknown(), self.settings.budget
        least = choice.of_rank(spectra, self.settings.r_min)
        if (size := self.settings.budget_bytes) is None:
            assert isinstance(budget, (int, float))
            return max(choice.of_rank(spectra, budget), least)
        overhead = choice.FRAME + choice.other_bytes(self._others())
        if size - overhead < least:
            enough = math.ceil((least + overhead) / 10**4) / 100
            raise ValueError(
                f"budget = {budget} is less than a file of {len(spectra)} modules at r_min = {self.settings.r_min}; "
                f"write budget={enough:.2f}MB or more, or choose fewer modules by the preset"
            )
        return size - overhead

    def _unknown(self) -> list[level.Spectrum]:
        least, most = self.settings.r_min, self.settings.r_max
        assert most is not None
        return [
            choice.spectrum(lora.lora_name, lora.lora_up.weight, lora.lora_down.weight, torch.zeros(most), least, most)
            for lora in self.adlrns_modules()
        ]

    def file_bytes(self) -> int:
        """Of the finished file's values, at most."""
        spectra = self._unknown()
        paid = min(self.budget(), choice.of_rank(spectra, math.inf)) - sum(each.entry for each in spectra)
        others = sum(each.numel() for lora in self._others() for each in lora.state_dict().values())
        return round(paid) + choice.VALUE.itemsize * others

    def _others(self) -> list[Any]:
        """Modules of other algorithms, which a preset may ask for."""
        return [lora for lora in self._loras() if not isinstance(lora, PlainModule)]

    def _over_ranks(self, modules: Sequence[PlainModule]) -> list[Sums]:
        sums = [lora.seen() for lora in modules]
        device = sums[0].grams.device
        positions = torch.tensor([each.positions for each in sums], dtype=torch.float64, device=device)
        flat = torch.cat([*(each.grams.double().flatten().to(device) for each in sums), positions])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(flat)
        *grams, positions = flat.cpu().split([*(each.grams.numel() for each in sums), len(sums)])
        return [
            Sums(part.view_as(each.grams), count)
            for part, each, count in zip(grams, sums, positions.tolist(), strict=True)
        ]

    def save_weights(self, file: Any, dtype: Any, metadata: dict[str, str] | None) -> None:
        """A plain LoRA, whenever: before the choice one of all directions, and a warning."""
        self._warn(dtype or self.adlrns_modules()[0].lora_up.weight.dtype)
        settings = {name: getattr(self.settings, name) for name in arguments.NAMES}
        note = {files.METADATA: json.dumps({"version": files.VERSION, **settings})}
        self.saving = True
        try:
            super().save_weights(file, dtype, {**(metadata or {}), **note})
        finally:
            self.saving = False

    def _warn(self, dtype: torch.dtype) -> None:
        settings = self.settings
        if not self.chosen and self.started:
            unseen = "with no step seen of an optimizer that runs torch's step hooks, so ranks are never chosen"
            when = f"in the warmup of {settings.warmup} steps" if self.adlrns_step else unseen
            logger.warning("adlrns: saved %s, with all directions", when)
        if settings.budget_bytes is not None and dtype.itemsize >= _WIDE:
            twice = "adlrns: saved in float32, twice the budget of %s; write save_precision=fp16 or bf16"
            logger.warning(twice, settings.budget)


def _remember(network: PlainNetwork, state: dict[str, Any], prefix: str, _: Any) -> None:
    """What a resumed training knows besides its weights; the sums are those of the process that saves."""
    modules = network.adlrns_modules()
    if not network.saving and not modules[0].lora_up.weight.is_meta:
        sums = [lora.seen() for lora in modules] if not network.chosen else []
        numbers = [float(network.adlrns_step), float(network.chosen), *(each.positions for each in sums)]
        grams = [each.grams.detach().double().cpu().flatten() for each in sums]
        state[prefix + MEMORY] = torch.cat([torch.tensor(numbers, dtype=torch.float64), *grams])


def _recall(network: PlainNetwork, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before a state dict or a file is loaded: its ranks, and what `_remember` put there.

    A file with a rank below `network_dim` is one that was chosen; others are trained from the start of the warm-up.
    """
    modules = network.adlrns_modules()
    for lora in modules:
        down = state.get(f"{prefix}{lora.lora_name}.lora_down.weight")
        if down is not None:
            if len(down) > lora.lora_dim:
                raise ValueError(
                    f"{lora.lora_name} has rank {len(down)} in the file and at most {lora.lora_dim} here; "
                    f"write network_dim={len(down)} or more"
                )
            network.chosen |= len(down) < lora.lora_dim
            lora.resize(len(down))
    flat = state.pop(prefix + MEMORY, None)
    if flat is None:
        return
    numbers = flat.double().cpu()
    network.adlrns_step, network.chosen = int(numbers[0]), bool(numbers[1])
    sizes = [2 * lora.lora_dim**2 for lora in modules]
    if not network.chosen:
        if len(numbers) != 2 + len(modules) + sum(sizes):
            raise ValueError(
                "the state was saved with another network_dim or other modules; resume with those arguments"
            )
        first = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
        counts, sums = numbers[2 : 2 + len(modules)].tolist(), numbers[2 + len(modules) :].split(sizes)
        for lora, count, part in zip(modules, counts, sums, strict=True):
            lora.forget()
            if first and count:
                lora.positions = count
                lora.grams = part.view(2, lora.lora_dim, lora.lora_dim).float().to(lora.lora_down.weight.device)
