"""The entry of a tensor in a file, before it is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

FLOATS = ("F64", "F32", "F16", "BF16")


class Entry(NamedTuple):
    """A tensor in a file, not read yet.

    Attributes:
        file: the file that holds it, for messages.
        shape: as stated in the file.
        read: returns the array, in any floating dtype.
        dtype: its name in safetensors; `F32` for tensors that `read` dequantizes.
    """

    file: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    dtype: str = "F32"

    @property
    def floating(self) -> bool:
        """Whether it holds floating-point numbers, of any width."""
        return self.dtype[:1] in ("F", "B") and self.dtype != "BOOL"
