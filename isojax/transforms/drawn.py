"""Random transforms as coordinates: drawn from a key, independent of the samples."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from isojax._core.checks import check_positive
from isojax._core.members import COORDINATES
from isojax.transforms.padded import padded


def drawn(
    name: str, *, multiple: int = 1, random: bool = True, block: str = ""
) -> Callable[[Any], Any]:
    """Register a factory `(key, dim, ...) -> Transform` among the coordinates.

    Vectors are padded with zeros where the blocks do not divide their length.

    Args:
        name: of the member.
        multiple: length of its blocks, 1 where any length is allowed.
        random: whether the key changes it.
        block: name of the argument with the length of its blocks, in place of `multiple`.
    """

    def register(factory: Any) -> Any:
        @functools.wraps(factory)
        def make(key: Any, samples: Any, *args: Any, **kwargs: Any) -> Any:
            given = inspect.signature(factory).bind(key, 1, *args, **kwargs).arguments
            size = check_positive(block, given[block]) if block else multiple
            dim = samples.dim
            if block and size > 2 * dim:
                raise ValueError(f"{block} must be at most twice the length {dim}, got {size}.")
            length = -(-dim // size) * size
            made = factory(key, length, *args, **kwargs)
            return made if length == dim else padded(made, dim)

        facts = {"random": random, "block": block or (multiple if multiple > 1 else 0)}
        COORDINATES.member(name, fitted=(), **facts)(make)
        return factory

    return register
