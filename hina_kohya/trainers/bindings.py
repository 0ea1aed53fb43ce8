"""Other people's functions wrapped wherever modules hold them, and given back.

`from library.optimizer import get_optimizer` makes a second name for a function, which a wrapper at the first one does
not reach. So modules are searched for the function itself, and all its names get the same wrapper.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import wrapt

Wrapper = Callable[[Any, Any, tuple[Any, ...], dict[str, Any]], Any]
_methods: set[tuple[type, str]] = set()  # that are wrapped, since classes are too many to be searched
_wrapped: set[str] = set()  # functions that are; while there are none, no module has to be searched


class Hook(wrapt.FunctionWrapper):
    """Our wrapper; inert where it could not be taken off because somebody else has wrapped it."""

    def __init__(self, wrapped: Any, wrapper: Wrapper, active: Callable[[], bool]):
        super().__init__(wrapped, wrapper, enabled=active)


def bind(functions: Mapping[str, Wrapper], active: Callable[[], bool]) -> None:
    """Wraps those of `functions` (`module:function` or `module:Class.method`) that have been imported so far."""
    hooks: dict[int, Hook] = {}
    for path, wrapper in functions.items():
        module, _, name = path.partition(":")
        for holder, attribute in _holders(module, name):
            function = vars(holder)[attribute]
            if type(function) is Hook:
                hooks.setdefault(id(function.__wrapped__), function)
            elif id(function) in hooks:
                setattr(holder, attribute, hooks[id(function)])
            else:
                hooks[id(function)] = Hook(function, wrapper, active)
                setattr(holder, attribute, hooks[id(function)])
            _wrapped.add(path)
            if isinstance(holder, type):
                _methods.add((holder, attribute))
    if hooks:
        for module in _modules():
            for name in [name for name, value in vars(module).items() if id(value) in hooks]:
                setattr(module, name, hooks[id(vars(module)[name])])


def release() -> None:
    """Gives every module and class its own functions back."""
    while _methods:
        holder, attribute = _methods.pop()
        if type(method := vars(holder).get(attribute)) is Hook:
            setattr(holder, attribute, method.__wrapped__)
    for module in _modules() if _wrapped else ():
        for name in [name for name, value in vars(module).items() if type(value) is Hook]:
            setattr(module, name, vars(module)[name].__wrapped__)
    _wrapped.clear()


def is_bound(path: str) -> bool:
    """Whether a function is wrapped at its home."""
    module, _, name = path.partition(":")
    return any(type(vars(holder)[attribute]) is Hook for holder, attribute in _holders(module, name))


def _holders(module: str, name: str) -> Iterator[tuple[Any, str]]:
    """The module or class that defines the function; the script itself where it is that module."""
    for home in (sys.modules.get(module), _script(module)):
        holder: Any = home
        *classes, attribute = name.split(".")
        for cls in classes:
            holder = getattr(holder, "__dict__", {}).get(cls)
        if attribute in getattr(holder, "__dict__", {}):
            yield holder, attribute


def _script(module: str) -> ModuleType | None:
    """`__main__`, if it was started from that module's file."""
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    return main if file and Path(file).stem == module.rpartition(".")[2] else None


def _modules() -> list[ModuleType]:
    return [module for module in list(sys.modules.values()) if isinstance(module, ModuleType)]
