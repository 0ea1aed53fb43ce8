"""Skeletons of models as data: class names, attribute names and shapes of what adapters look for, and no forward.

Networks choose modules by class name and path, and read shapes; nothing else of a model matters before training. Layers
that no network touches (activations, dropout, embeddings) appear only where they hold an index in a list.
"""

from __future__ import annotations

import dataclasses as dc
import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@dc.dataclass(frozen=True)
class Node:
    """One module: its class name in the real model, and what it holds.

    base     : the class of `torch.nn` it derives from; networks ask with isinstance
    arguments: what that class is made with
    weights  : own parameters, for norms that are no class of `torch.nn`
    has_norm : whether it has a `_norm` method, by which LyCORIS' train_norm tells what it can train
    """

    cls: str
    children: tuple[tuple[str, Node], ...] = ()
    base: str = "Module"
    arguments: tuple[Any, ...] = ()
    weights: tuple[tuple[str, int], ...] = ()
    has_norm: bool = False


def block(cls: str, **children: Node) -> Node:
    """A module of its own class; children in the order in which the real one defines them."""
    return Node(cls, tuple(children.items()))


def leaf(cls: str) -> Node:
    return Node(cls)


def linear(outputs: int, inputs: int | None = None, bias: bool = True) -> Node:
    return Node("Linear", base="Linear", arguments=(outputs if inputs is None else inputs, outputs, bias))


def conv2d(outputs: int, inputs: int, kernel: int) -> Node:
    return Node("Conv2d", base="Conv2d", arguments=(inputs, outputs, kernel))


def layer_norm(width: int, affine: bool = True) -> Node:
    return Node("LayerNorm", base="LayerNorm", arguments=(width, 1e-5, affine))


def group_norm(width: int, cls: str = "GroupNorm") -> Node:
    return Node(cls, base="GroupNorm", arguments=(32, width))


def rms_norm(width: int, cls: str = "RMSNorm", weight: str = "weight", has_norm: bool = True) -> Node:
    return Node(cls, weights=((weight, width),), has_norm=has_norm)


def sequential(*nodes: Node) -> Node:
    return Node("Sequential", _numbered(nodes))


def listed(*nodes: Node) -> Node:
    return Node("ModuleList", _numbered(nodes), base="ModuleList")


def repeated(count: int, node: Node) -> Node:
    return listed(*[node] * count)


def _numbered(nodes: tuple[Node, ...]) -> tuple[tuple[str, Node], ...]:
    return tuple((str(index), node) for index, node in enumerate(nodes))


def build(node: Node) -> nn.Module:
    """The module of a node, on torch's current default device: call it under `torch.device("meta")`."""
    import torch  # noqa: PLC0415 (a command line that only lists names starts without torch)

    module = _cls(node.cls, node.base, node.has_norm)(*node.arguments)
    for name, width in node.weights:
        module.register_parameter(name, torch.nn.Parameter(torch.empty(width)))
    for name, child in node.children:
        module.add_module(name, build(child))
    return module


@functools.cache
def _cls(name: str, base: str, has_norm: bool) -> type[nn.Module]:
    from torch import nn  # noqa: PLC0415

    parent = getattr(nn, base)
    return parent if parent.__name__ == name else type(name, (parent,), {"_norm": None} if has_norm else {})
