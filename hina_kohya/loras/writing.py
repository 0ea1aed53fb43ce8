"""A .safetensors file written tensor by tensor: its size is known before its contents are.

safetensors' own writer wants every tensor at once; here the largest module is all that is in memory. Order and padding
are the library's, so that the hashes are those that sd-scripts would compute.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from hina_kohya.files import atomic
from hina_kohya.loras.errors import AdapterError

NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
MODEL_HASH, LEGACY_HASH = "sshs_model_hash", "sshs_legacy_hash"
_LEGACY = (0x100000, 0x10000)  # where the hash of sd-webui's first extension starts, and how much it reads

Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]  # key -> shape, dtype


def ordered(layout: Layout) -> list[str]:
    """The keys in the order of the library: wide dtypes first, so that every tensor is aligned; then by name."""
    return sorted(layout, key=lambda key: (-layout[key][1].itemsize, key))


def header(layout: Layout, metadata: Mapping[str, str]) -> bytes:
    """Length and text of a file's header."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for key in ordered(layout):
        shape, dtype = layout[key]
        start, end = end, end + _bytes(shape, dtype)
        entries[key] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def size(layout: Layout, metadata: Mapping[str, str]) -> int:
    """Bytes of the file."""
    return len(header(layout, metadata)) + sum(_bytes(shape, dtype) for shape, dtype in layout.values())


def entry_bytes(key: str, shape: tuple[int, ...], dtype: torch.dtype, most: int) -> int:
    """What a tensor's name and place add to a header at most, in a file of `most` bytes."""
    entry = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [most, most]}
    return len(json.dumps({key: entry}, separators=(",", ":"), ensure_ascii=False).encode()) - 1


def write(
    path: Path,
    layout: Layout,
    metadata: Mapping[str, str],
    tensor: Callable[[str], Tensor],
    tick: Callable[[], object] = lambda: None,
) -> None:
    """Write a file whole or not at all. tensor: key -> tensor of the layout's shape; asked for in `ordered` order.

    `sshs_` keys of the metadata are computed; what stands there has to be as long. Raises AdapterError, OSError.
    """
    draft = header(layout, metadata)
    contents = hashlib.sha256()
    legacy = _Legacy(layout, metadata)
    with atomic(path) as unfinished, unfinished.open("w+b") as file:
        file.write(draft)
        for key in ordered(layout):
            data = _data(key, tensor(key), layout)
            contents.update(data)
            legacy.update(data)
            file.write(data)
            tick()
        hashes = {MODEL_HASH: contents.hexdigest(), LEGACY_HASH: legacy.hexdigest()}
        final = header(layout, {key: hashes.get(key, value) for key, value in metadata.items()})
        if len(final) != len(draft):
            raise AssertionError(f"the header was {len(draft)} bytes and is {len(final)}")
        file.seek(0)
        file.write(final)
        file.flush()
        os.fsync(file.fileno())


def _data(key: str, tensor: Tensor, layout: Layout) -> bytes:
    shape, dtype = layout[key]
    cast = tensor.to(dtype).contiguous()
    if tuple(cast.shape) != shape:
        raise AssertionError(f"{key} is {list(cast.shape)} and was announced as {list(shape)}")
    if not torch.isfinite(cast).all():
        raise AdapterError(
            f"{key} has values up to {tensor.abs().max():.3g}, too large for {NAMES[dtype]}; --dtype bf16"
        )
    return cast.reshape(-1).view(torch.uint8).numpy().tobytes()


class _Legacy:
    """A hash over a window of the file as it would be with the `ss_` metadata alone."""

    def __init__(self, layout: Layout, metadata: Mapping[str, str]):
        self._hash = hashlib.sha256()
        self._place = 0
        self.update(header(layout, {key: value for key, value in metadata.items() if key.startswith("ss_")}))

    def update(self, data: bytes) -> None:
        start, length = _LEGACY
        low, high = max(start - self._place, 0), max(start + length - self._place, 0)
        self._hash.update(data[low:high])
        self._place += len(data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()[:8]


def _bytes(shape: Iterable[int], dtype: torch.dtype) -> int:
    count = 1
    for side in shape:
        count *= side
    return count * dtype.itemsize
