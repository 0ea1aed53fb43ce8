"""LyCORIS's network with ADLRNS in it: other directions at every timestep, within a budget."""

import functools
import inspect
import json
import logging
import re
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from lycoris.kohya import LycorisNetworkKohya
from torch import Tensor

from hina_kohya.adlrns.adapter import arguments, execution, files, gains, memory, registration
from hina_kohya.adlrns.adapter.arguments import Settings
from hina_kohya.adlrns.adapter.balance import balanced
from hina_kohya.adlrns.adapter.module import MAKING, AdlrnsModule
from hina_kohya.adlrns.adapter.plain_module import PlainModule
from hina_kohya.adlrns.adapter.plain_network import PlainNetwork
from hina_kohya.adlrns.adapter.states import States

logger = logging.getLogger("hina_kohya")

# Arguments of ours that hooks take first, and those that sd-scripts adds by itself.
_ELSEWHERE = ("algo", "preset", "dropout", "neuron_dropout", "weights_sd", "for_inference")
_FROM_WEIGHTS = "create_network_from_weights"


def create(wrapped: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A creator of `lycoris.kohya`, with algo=adlrns known; networks without a module of ours are left as they are."""
    registration.register()
    given, rest = arguments.take(kwargs)
    asked = str(rest.get("algo", "")).lower() == registration.NAME
    if asked:
        arguments.refuse_unknown(rest, _known(wrapped))
    from_weights = wrapped.__name__ == _FROM_WEIGHTS
    # The file or the preset may turn out to have none of ours, whatever the names that LyCORIS would not read.
    settings = None if from_weights or not (asked or given) else arguments.settle(given, _rank(*args, **rest))
    states = States(settings.bins if settings else Settings.bins)
    token = MAKING.set(states)
    try:
        made = wrapped(*args, **rest)
    finally:
        MAKING.reset(token)
    network = made[0] if from_weights else made
    kinds = (AdlrnsModule, PlainModule)
    ours: list[Any] = [lora for lora in [*network.text_encoder_loras, *network.unet_loras] if isinstance(lora, kinds)]
    if not ours and (given or asked) and not from_weights:
        raise ValueError(f"network_args: {', '.join(given) or 'algo=adlrns'}: no module became ADLRNS; see the preset")
    if ours:
        rank = max(lora.lora_dim for lora in ours)
        if isinstance(ours[0], PlainModule):
            network.__class__ = PlainNetwork
            network.begin(settings or arguments.settle(given, rank))
            return made
        if from_weights:
            bins = max(len(lora.adlrns_kept) for lora in ours)
            given = {"bins": bins, **given}
            if given["bins"] != bins:
                raise ValueError(f"bins = {given['bins']} does not fit the file's table; write bins={bins}")
        network.__class__ = AdlrnsNetwork
        network.begin(settings or arguments.settle(given, rank), states, chosen=from_weights)
    return made


def _rank(_multiplier: Any = 1, network_dim: Any = None, *_: Any, conv_dim: Any = None, **__: Any) -> int:
    return arguments.rank(network_dim, conv_dim)


@functools.cache
def _known(creator: Callable[..., Any]) -> frozenset[str]:
    """What LyCORIS's creator reads out of its keyword arguments, read off its source."""
    text = inspect.getsource(inspect.getmodule(inspect.unwrap(creator)).create_network)  # type: ignore[union-attr]
    return frozenset(
        {*re.findall(r"kwargs\.get\(\s*[\"'](\w+)", text), *inspect.signature(creator).parameters, *_ELSEWHERE}
    )


class AdlrnsNetwork(LycorisNetworkKohya):
    """Holds the states of its modules and chooses their directions again every `refresh_every` steps.

    Made out of a LyCORIS network by `begin`. All ranks of a distributed training choose alike: statistics are summed
    first, and nothing else enters.
    """

    def begin(self, settings: Settings, states: States, chosen: bool) -> None:
        """chosen: the modules have a table already."""
        self.settings, self.adlrns_states = settings, states
        states.count, states.whole, states.timesteps = (
            settings.bins,
            settings.granularity == "batch",
            settings.timesteps,
        )
        self.adlrns_step = 0
        modules = self.adlrns_modules()
        self._open_ledger()
        self.seen = torch.ones(settings.bins, dtype=torch.float64)
        self.positions: dict[str, float] = {}
        self.saving = False
        self.balanced = not settings.warmup
        memory.remember(self)
        for lora in modules:
            lora.states = states
        if not chosen and not modules[0].lora_up.weight.is_meta:  # a forecast has nothing to choose by
            self.choose(apply=not settings.warmup)

    def adlrns_modules(self) -> list[AdlrnsModule]:
        loras = [*self.text_encoder_loras, *self.unet_loras]
        return [lora for lora in loras if isinstance(lora, AdlrnsModule)]

    def apply_to(self, text_encoder: Any, unet: Any, *args: Any, **kwargs: Any) -> None:
        super().apply_to(text_encoder, unet, *args, **kwargs)
        if self.adlrns_modules():
            self._open_ledger()  # LyCORIS drops the modules of what is not trained
            self.adlrns_states.attach(unet)

    def _open_ledger(self) -> None:
        self.ledger = gains.Ledger(self.settings.bins, [lora.lora_dim for lora in self.adlrns_modules()])

    def restore(self) -> None:
        super().restore()
        self.adlrns_states.detach()

    def on_step_start(self, *args: Any) -> None:
        """Once a step (with gradient accumulation: once a part of it), before the forward."""
        super().on_step_start(*args)
        step, settings = self.adlrns_step, self.settings
        if step and (step % settings.refresh_every == 0 or step == self._halfway()):
            self.refresh()
        self.adlrns_states.probing = step % (settings.probe_every or 1) == 0
        self.adlrns_states.balancing = not self.balanced
        self.adlrns_step += 1

    @torch.no_grad()
    def refresh(self) -> None:
        """Sums up all ranks' statistics; after the warmup, chooses the directions again. All ranks must come here."""
        modules = self.adlrns_modules()
        output, *windows = self._summed(modules)
        for layer, (lora, window) in enumerate(zip(modules, windows, strict=True)):
            seen = output if len(window) > 1 else output.sum(0, keepdim=True)
            self.ledger.add(layer, gains.measure(window, seen, lora.adlrns_kept.cpu()))
            count, positions = window[:, :2].sum(0).tolist()
            if count:
                self.positions[lora.lora_name] = positions / count
        self.seen += output[:, 0]
        if not self.balanced and self.adlrns_step >= self._halfway():
            self.balance()  # what was measured is of directions that are gone
            return
        self.choose(apply=self.adlrns_step >= self.settings.warmup)

    def _halfway(self) -> int:
        """Of the warmup: the refresh there, or the step itself if that refresh is the one that ends the warmup."""
        half, every = -(-self.settings.warmup // 2), self.settings.refresh_every
        refresh = -(-half // every) * every
        return refresh if refresh < self.settings.warmup else half

    @torch.no_grad()
    def balance(self) -> None:
        """Directions become those of `balance`, where all of them act; from here on they are measured anew."""
        modules = self.adlrns_modules()
        self.balanced = True
        empty = [torch.zeros(2, lora.lora_dim, lora.lora_dim) for lora in modules]
        grams = self._over_ranks(
            [blank if lora.grams is None else lora.grams for lora, blank in zip(modules, empty, strict=True)]
        )
        for lora, each in zip(modules, grams, strict=True):
            lora.grams = None
            if lora.adlrns_kept.all():
                lora.set_basis(balanced(each, lora.lora_down.weight.flatten(1).double().cpu()))
        self._open_ledger()

    def choose(self, apply: bool) -> None:
        """The table of what is known. Raises ValueError where the budget does not pay for r_min."""
        modules, settings, ledger = self.adlrns_modules(), self.settings, self.ledger
        gain, error, energy, kronecker = ledger.means()
        cost = self._costs(modules)
        gain = gains.shrunk(gain, error, kronecker, cost, ledger.exists)
        stateless = torch.tensor([len(lora.adlrns_kept) == 1 for lora in modules])
        gain[:, stateless] = gain[:, stateless].mean(0)
        gain = gains.penalised(gain, cost, ledger.exists, settings.energy_penalty)
        found = gains.choose(gain, cost, self.seen, settings)
        if not apply:
            return
        largest = gain.where(ledger.exists, 0).abs().max()
        for layer, lora in enumerate(modules):
            place = slice(len(lora.adlrns_kept)), layer, slice(lora.lora_dim)
            known = energy[place]
            strongest = known.amax(0).where(known.amax(0) > 0, 1)
            relative = torch.where(known.amax(0) > 0, known / strongest, 1)
            lora.set_table(found.kept[place], gain[place] / largest, relative)
        ranks = ", ".join(f"{rank:.3g}" for rank in found.ranks.double().mean(1).tolist())
        logger.info("adlrns step %d: cost %.4g of %.4g, mean rank of each bin %s",
                    self.adlrns_step, found.cost, settings.budget, ranks)  # fmt: skip

    def _costs(self, modules: list[AdlrnsModule]) -> Tensor:
        """Of one direction of each module, so that rank r everywhere costs r."""
        macs = self.settings.budget_unit == "macs"
        each = [lora.macs() * self.positions.get(lora.lora_name, 1.0) if macs else 1.0 for lora in modules]
        return torch.tensor(each, dtype=torch.float64) / sum(each)

    def _summed(self, modules: list[AdlrnsModule]) -> list[Tensor]:
        """The windows of the states and of each module, over all ranks; they begin again. float64, CPU."""
        empty = [torch.zeros(self.settings.bins, 3), *(lora.empty_window() for lora in modules)]
        held = [self.adlrns_states.output, *(lora.window for lora in modules)]
        windows = [blank if full is None else full for blank, full in zip(empty, held, strict=True)]
        self.adlrns_states.output = None
        for lora in modules:
            lora.window = None
        return self._over_ranks(windows)

    def _over_ranks(self, sums: list[Tensor]) -> list[Tensor]:
        device = self.adlrns_modules()[0].lora_up.weight.device
        flat = torch.cat([each.to(device).flatten() for each in sums])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(flat)
        parts = flat.cpu().double().split([each.numel() for each in sums])
        return [part.view(each.shape) for part, each in zip(parts, sums, strict=True)]

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """In the order of training, which the optimizer's state follows; a file's is sorted by gain."""
        tensors = super().state_dict(*args, **kwargs)
        return files.by_gain(self._in_basis(tensors)) if self.saving else tensors

    @torch.no_grad()
    def _in_basis(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        factors: dict[str, Tensor] = {}
        for lora in self.adlrns_modules():
            whole = execution.Directions(lora.lora_dim)
            for name, factor in (("lora_up", lora.up(whole)), ("lora_down", lora.down(whole))):
                factors[f"{lora.lora_name}.{name}.weight"] = factor
        return {key: factors[key].to(each) if key in factors else each for key, each in tensors.items()}

    def save_weights(self, file: Any, dtype: Any, metadata: dict[str, str] | None) -> None:
        settings = {name: getattr(self.settings, name) for name in arguments.NAMES}
        note = {files.METADATA: json.dumps({"version": files.VERSION, **settings})}
        if self.adlrns_step <= self.settings.warmup and self.settings.warmup and self.training:
            logger.warning("adlrns: saved in the warmup of %d steps, with all directions", self.settings.warmup)
        self.saving = True
        try:
            super().save_weights(file, dtype, {**(metadata or {}), **note})
        finally:
            self.saving = False
