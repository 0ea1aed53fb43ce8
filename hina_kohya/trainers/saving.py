"""Files beside each file that a network saves, whoever asks it to: an average, a metric."""

import functools
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from hina_kohya.files import is_unfinished

Write = Callable[[Any, Path, Any, Mapping[str, str] | None], object]  # of network, file, dtype, metadata
_writers: "weakref.WeakKeyDictionary[nn.Module, list[Write]]" = weakref.WeakKeyDictionary()


def after(network: Any, write: Write) -> None:
    """From now on `write` is called after each file that this network saves."""
    if network in _writers:
        _writers[network].append(write)
        return
    _writers[network] = [write]
    save = network.save_weights

    @functools.wraps(save)
    def save_weights(file: Any, dtype: Any = None, metadata: Any = None) -> Any:
        result = save(file, dtype, metadata)
        if not is_unfinished(Path(file)):  # whoever writes that moves it, and then calls `tell`
            tell(network, Path(file), dtype, metadata)
        return result

    network.save_weights = save_weights


def tell(network: Any, file: Path, dtype: Any, metadata: Mapping[str, str] | None) -> None:
    """A file of the network is whole, and where it stays."""
    for write in _writers.get(network, ()):
        write(network, file, dtype, metadata)


def plainly(network: Any, file: Path, dtype: Any = None, metadata: Mapping[str, str] | None = None) -> None:
    """Saves as the network itself does, with nothing beside it."""
    save = network.save_weights.__wrapped__ if network in _writers else network.save_weights
    save(str(file), dtype, metadata)
