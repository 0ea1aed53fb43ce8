"""One forward and backward of the smallest adapted layer of each kind, on tensors without memory.

What a module makes on the CPU beside weights that are elsewhere stops here as it does on a GPU.
"""

import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

# What a module's own code raises where its arguments do not go together.
_MISTAKES = (
    RuntimeError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    UnboundLocalError,
    AssertionError,
    ArithmeticError,
)
_OF_DEVICES = ("expected device", "same device", "on device")
# class of LyCORIS's adapter -> milliseconds as it is, and with bypass_mode
_REBUILT = {"LoConModule": (819, 346), "LokrModule": (849, 370)}
_STEPS = 2  # a dropout by chance may leave the first one out


def faults(network: Any) -> Iterator[str]:
    """A sentence for each kind of layer that stops."""
    for (kind, layer), (module, original) in sorted(_smallest(network).items()):
        try:
            _step(module, original)
        except _MISTAKES as mistake:
            if any(words in str(mistake) for words in _OF_DEVICES):
                yield f"warning: network_args: {kind} stops on a GPU: it mixes tensors of two devices ({mistake})"
            elif _is_of_the_network(mistake):
                what = f"{type(mistake).__name__}: {mistake}"
                yield f"error: network_args: {kind} on {layer} stops in its first step: {what}"


def faster(network: Any) -> str:
    """What saves time: adapters of LyCORIS that rebuild a weight where adding to the output gives the same.

    Silent for DoRA, which has to see the weight, for dropouts, which mean something else then, for convolutions and
    other algorithms, which were not measured.
    """
    modules = _modules(network)
    kinds = {type(module).__name__ for module in modules}
    if not modules or len(kinds) > 1 or not kinds <= _REBUILT.keys() or not all(map(_could_be_added, modules)):
        return ""
    before, after = _REBUILT[kinds.pop()]
    return (
        f"faster: bypass_mode=True in network_args adds to the output of {len(modules):,} layers where each weight is "
        f"rebuilt now: {before} to {after} ms (measured with LyCORIS 4.1.3: forward and backward of a Linear 1280 on "
        "one CPU thread; not on a GPU)"
    )


def _could_be_added(module: Any) -> bool:
    original = _original(module)
    is_linear = type(original) is nn.Linear or (isinstance(original, nn.Conv2d) and original.kernel_size == (1, 1))
    drops = module.rank_dropout or not isinstance(module.drop, nn.Identity)
    return is_linear and not module.bypass_mode and not module.wd and not drops


def _smallest(network: Any) -> dict[tuple[str, str], tuple[nn.Module, nn.Linear | nn.Conv2d]]:
    """(class of the adapter, class of its layer) -> the two of the fewest parameters."""
    pairs: dict[tuple[str, str], tuple[nn.Module, nn.Linear | nn.Conv2d]] = {}
    for module in _modules(network):
        original = _original(module)
        if isinstance(original, (nn.Linear, nn.Conv2d)):
            kind = (type(module).__name__, type(original).__name__)
            if kind not in pairs or _size(module) < _size(pairs[kind][0]):
                pairs[kind] = module, original
    return pairs


def _modules(network: Any) -> list[nn.Module]:
    """LyCORIS' list, or sd-scripts' two."""
    own = getattr(network, "loras", None)
    return list(own) if own else [*getattr(network, "unet_loras", ()), *getattr(network, "text_encoder_loras", ())]


def _original(module: Any) -> Any:
    """The layer under an adapter: kept in a list, or behind its forward."""
    layer = getattr(module, "org_module", None)
    layer = layer[0] if isinstance(layer, (list, tuple)) and layer else layer
    return layer if layer is not None else getattr(getattr(module, "org_forward", None), "__self__", None)


def _size(module: nn.Module) -> int:
    return sum(param.numel() for param in module.parameters())


def _step(module: nn.Module, original: nn.Linear | nn.Conv2d) -> None:
    # Its weight may be gone: full takes it.
    size = (2, original.in_channels, 8, 8) if isinstance(original, nn.Conv2d) else (2, 3, original.in_features)
    module.train()
    for _ in range(_STEPS):
        inputs = torch.empty(size, device="meta", requires_grad=True)
        module(inputs).sum().backward()
        module.zero_grad(set_to_none=True)


def _is_of_the_network(mistake: BaseException) -> bool:
    """Whether the network's own code raised it, and not torch for want of memory."""
    last = Path(traceback.extract_tb(mistake.__traceback__)[-1].filename).parts
    return bool({"lycoris", "networks"} & {*last})
