"""Every step of every optimizer, told to the networks that wait for it: torch has one hook for all of them.

A hook that adds or removes hooks breaks the loop that it is called in, so networks come and go in a set, and the hook
goes when the last one leaves between two steps.
"""

import weakref
from typing import Any, Protocol

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook


class Waiting(Protocol):
    def stepped(self, optimizer: Optimizer) -> None: ...


class _Steps:
    waiting: "weakref.WeakSet[Any]" = weakref.WeakSet()
    handle: Any = None


def tell(network: Waiting) -> None:
    """From now on its `stepped` is called after every step."""
    _Steps.waiting.add(network)
    if _Steps.handle is None:
        _Steps.handle = register_optimizer_step_post_hook(_after)


def leave(network: Waiting) -> None:
    """Not from within `stepped`."""
    _Steps.waiting.discard(network)
    if not _Steps.waiting and _Steps.handle is not None:
        _Steps.handle.remove()
        _Steps.handle = None


def is_told(network: Waiting) -> bool:
    return network in _Steps.waiting


def _after(optimizer: Optimizer, *_: Any) -> None:
    for network in list(_Steps.waiting):
        network.stepped(optimizer)
