"""Buffers that a change of precision leaves alone."""

from typing import Any

from torch import nn


class KeepsBuffers(nn.Module):
    """Its buffers move with it but keep their dtype: ``model.half()`` is meant for weights. In 16 bits the edges of
    cells would shift, and gains, squares of squares, overflow or vanish."""

    def _apply(self, *args, **kwargs) -> Any:
        before = self._buffers.copy()
        super()._apply(*args, **kwargs)
        for name, buffer in before.items():
            now = self._buffers[name]
            if buffer is not None and now is not None and now.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(now.device)
        return self
