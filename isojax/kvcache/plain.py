"""Keys or values of the cache, stored exact."""

from __future__ import annotations

from typing import Any

from jaxtyping import Array, Float, Int

from isojax._core.pytree import pytree, static
from isojax.kvcache.attention import Seen, by_head
from isojax.kvcache.layers import append, at_layer
from isojax.quantizers.codes import nbytes


@pytree
class PlainSide:
    """Keys (after the rotary embedding) or values of one layer, or of all of them.

    Attributes:
        numbers: the vectors, zero for empty slots: [batch * kv_heads, slots, head_dim], or with
            `columns` [batch * kv_heads, head_dim, slots]. XLA on a CPU writes arrays with batch and
            heads as separate axes twice.
        columns: whether slots are the last axis, over which values are summed.
    """

    numbers: Float[Array, "*layers n s d"] | Float[Array, "*layers n d s"]
    columns: bool = static()

    @property
    def slots(self) -> int:
        """Number of tokens that fit."""
        return self.numbers.shape[-1 if self.columns else -2]

    @property
    def nbytes(self) -> int:
        """Bytes stored for tokens."""
        return nbytes(self.numbers)

    def check(self, name: str, x: Float[Array, "b t g d"]) -> None:
        """Raise `ValueError` unless new keys or values `x` fit this side."""
        heads, dim = self.numbers.shape[-3], self.numbers.shape[-2 if self.columns else -1]
        batch, tokens, groups, own = x.shape
        if (batch * groups, own) != (heads, dim) or tokens > self.slots:
            raise ValueError(
                f"{name} must be of {heads} texts times heads, {dim} elements each, and at most "
                f"{self.slots} tokens, got shape {x.shape}."
            )

    def update(
        self,
        x: Float[Array, "b t g d"],
        start: Int[Array, ""] | int,
        frequency: Any,
        rotated: bool,
        layer: Int[Array, ""] | None = None,
    ) -> tuple[PlainSide, Seen]:
        """Append `x` at position `start`; see `PackedSide.update`."""
        new = by_head(x, self.columns).astype(self.numbers.dtype)
        numbers = append(self.numbers, new, start, 2 if self.columns else 1, layer)
        stored = at_layer(numbers, layer).astype(x.dtype)
        return PlainSide(numbers, self.columns), Seen(stored, self.columns)

    def query(
        self, q: Float[Array, "b t h d"], layer: Int[Array, ""] | None = None
    ) -> Float[Array, "b t h d"]:
        """Queries in the coordinates of the keys of `update(rotated=True)`."""
        return q

    def output(
        self, mixed: Float[Array, "b t h d"], layer: Int[Array, ""] | None = None
    ) -> Float[Array, "b t h d"]:
        """Weighted sums of the values of `update(rotated=True)`, in the model's coordinates."""
        return mixed
