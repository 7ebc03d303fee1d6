"""A side of the cache that keeps the numbers themselves."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array, Float, Int

from isojax._core.pytree import pytree
from isojax.kvcache.attention import Seen
from isojax.quantizers.codes import nbytes


@pytree
class PlainSide:
    """Keys (after the rotary embedding) or values of one layer.

    Attributes:
        numbers: [batch, slots, kv_heads, head_dim], zero where no token is yet.
    """

    numbers: Float[Array, "*layers b s g d"]

    @property
    def slots(self) -> int:
        """Tokens that there is room for."""
        return self.numbers.shape[-3]

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept for tokens."""
        return nbytes(self.numbers)

    def update(
        self, x: Float[Array, "b t g d"], start: Int[Array, ""] | int, frequency: Any, rotated: bool
    ) -> tuple[PlainSide, Seen]:
        """Append `x` at position `start`; see `PackedSide.update`."""
        new = x.astype(self.numbers.dtype)
        numbers = jax.lax.dynamic_update_slice_in_dim(self.numbers, new, start, axis=1)
        return PlainSide(numbers), Seen(numbers.astype(x.dtype))

    def query(self, q: Float[Array, "b t h d"]) -> Float[Array, "b t h d"]:
        """Queries as they meet the keys of `update(rotated=True)`."""
        return q

    def output(self, mixed: Float[Array, "b t h d"]) -> Float[Array, "b t h d"]:
        """Weighted sums of the values of `update(rotated=True)`, in the model's coordinates."""
        return mixed
