"""What a training knows besides its weights, as one tensor of its state dict: with it, `--resume` goes on by the bit.

Files for others do not have it. The sums since the last refresh are those of the process that saved.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

NAME = "adlrns_memory"


def remember(network: Any) -> None:
    """The network's state dict gets the tensor, except while it writes a file, and gives it back on loading."""
    network.register_state_dict_post_hook(_add)
    network.register_load_state_dict_pre_hook(_take)


def _add(network: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    if not network.saving:
        parts = _read(network)
        state[prefix + NAME] = torch.cat([part.detach().double().cpu().flatten() for part in parts])


def _take(network: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    flat = state.pop(prefix + NAME, None)
    if flat is None:
        for lora in network.adlrns_modules():  # factors of a file are in their basis
            lora.set_basis(None)
        return
    parts = _read(network)
    if flat.numel() != sum(part.numel() for part in parts):
        raise ValueError("the state was saved with other bins, network_dim or modules; resume with those arguments")
    pieces = flat.cpu().double().split([part.numel() for part in parts])
    _write(network, [piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)])


def _read(network: Any) -> list[Tensor]:
    modules, ledger = network.adlrns_modules(), network.ledger
    positions = torch.tensor([network.positions.get(lora.lora_name, 0.0) for lora in modules])
    output = network.adlrns_states.output
    return [
        torch.tensor([network.adlrns_step, network.balanced]),
        network.seen,
        positions,
        *(ledger.count, ledger.gain, ledger.variance, ledger.energy, ledger.kronecker),
        torch.zeros(network.settings.bins, 3) if output is None else output,
        *(_square(lora) for lora in modules),
        *(lora.empty_window() if lora.window is None else lora.window for lora in modules),
    ]


def _write(network: Any, parts: list[Tensor]) -> None:
    modules, ledger = network.adlrns_modules(), network.ledger
    step, network.seen, positions, *known = parts
    network.adlrns_step, network.balanced = int(step[0]), bool(step[1])
    found = zip(modules, positions.tolist(), strict=True)
    network.positions = {lora.lora_name: count for lora, count in found if count}
    ledger.count, ledger.gain, ledger.variance, ledger.energy, ledger.kronecker = known[:5]
    first = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
    device = modules[0].lora_up.weight.device
    output, *rest = (part.float().to(device) for part in known[5:])
    network.adlrns_states.output = output if first else None
    for lora, square, window in zip(modules, rest[: len(modules)], rest[len(modules) :], strict=True):
        lora.window = window if first else None
        lora.grams = square if first and not network.balanced else None
        lora.set_basis(square if network.balanced and square.any() else None)


def _square(lora: Any) -> Tensor:
    """A basis, or what it will be made of; zeros for none."""
    known = lora.grams if lora.basis is None else lora.basis
    return torch.zeros(2, lora.lora_dim, lora.lora_dim) if known is None else known
