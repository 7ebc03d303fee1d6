"""A tensor of a file, before it is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

FLOATS = ("F64", "F32", "F16", "BF16")


class Entry(NamedTuple):
    """A tensor of a file, not read yet.

    Attributes:
        file: the file it is in, for messages.
        shape: as the file states it.
        read: gives the numbers, in any floating dtype.
        dtype: as safetensors call it; what is dequantized by `read` is `F32`.
    """

    file: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    dtype: str = "F32"

    @property
    def floating(self) -> bool:
        """Whether it holds floating-point numbers, of whatever width."""
        return self.dtype[:1] in ("F", "B") and self.dtype != "BOOL"
