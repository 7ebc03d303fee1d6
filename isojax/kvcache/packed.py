"""A side of the cache in packed codes, a few tokens exact."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from isojax._core.pytree import pytree, static
from isojax.kvcache.attention import Seen, apply_rope
from isojax.kvcache.store import Store, mean_at
from isojax.quantizers.codes import Packed, nbytes, stored


@pytree
class PackedSide:
    """Keys or values of one layer in packed codes.

    Every token is encoded as soon as its page is full. The first and the last tokens are also
    kept as they are: a few more bytes in place of moving tokens from one form to the other.

    Attributes:
        store: of this layer.
        packed: codes, leaves lead with [kv_heads, batch, pages].
        first: the first `store.sinks` tokens, [batch, sinks, kv_heads, head_dim].
        last: the last `store.tail` tokens.
        slots: tokens that there is room for.
    """

    store: Store
    packed: Packed
    first: Float[Array, "*layers b f g d"]
    last: Float[Array, "*layers b l g d"]
    slots: int = static()

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept for tokens."""
        return nbytes((self.packed, self.first, self.last))

    @classmethod
    def empty(cls, store: Store, batch: int, slots: int, heads: int, head_dim: int) -> PackedSide:
        """A side with no tokens, for one layer's `store`."""
        pages = -(-slots // store.page)
        blank = jax.ShapeDtypeStruct((batch, pages, store.page, heads, head_dim), jnp.float32)
        shapes = jax.eval_shape(lambda s, x: s.encode(x), store, blank)
        packed = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        shape = (heads, head_dim)
        first = jnp.zeros((batch, store.sinks, *shape), store.dtype)
        return cls(store, packed, first, jnp.zeros((batch, store.tail, *shape), store.dtype), slots)

    def update(
        self,
        x: Float[Array, "b t g d"],
        start: Int[Array, ""] | int,
        frequency: Float[Array, " half"] | None,
        rotated: bool,
    ) -> tuple[PackedSide, Seen]:
        """Append keys or values at position `start`, and read all that are stored.

        Args:
            x: keys after the rotary embedding, or values.
            start: number of tokens stored so far.
            frequency: of the rotary embedding; None for values.
            rotated: read in the codec's coordinates (see `query` and `output`).

        Returns:
            The side with `x` in it, and all slots as attention reads them.
        """
        tokens, page = x.shape[1], self.store.page
        around = jnp.concatenate([self.last.astype(x.dtype), x], axis=1)
        extra = self.store.tail
        begin = start // page * page
        pages = (tokens + 2 * page - 2) // page
        room = jnp.pad(around.astype(jnp.float32), ((0, 0), (0, pages * page), (0, 0), (0, 0)))
        due = jax.lax.dynamic_slice_in_dim(room, begin - start + extra, pages * page, axis=1)
        due = self._centre(due, begin + jnp.arange(pages * page), frequency)
        codes = self.store.encode(due.reshape(due.shape[0], pages, page, *due.shape[2:]))
        packed = jax.tree.map(lambda old, new: _write(old, new, start // page), self.packed, codes)

        sinks = self.store.sinks
        place = jnp.arange(sinks) - start
        arrived = jnp.take(x, jnp.clip(place, 0, tokens - 1), axis=1)
        is_new = ((place >= 0) & (place < tokens))[:, None, None]
        first = jnp.where(is_new, stored(arrived, self.first.dtype), self.first)
        last = stored(around[:, tokens:], self.last.dtype)
        side = PackedSide(self.store, packed, first, last, self.slots)
        return side, side._read(around, start, tokens, frequency, rotated)

    def query(self, q: Float[Array, "b t h d"]) -> Float[Array, "b t h e"]:
        """Queries as they meet the keys of `update(rotated=True)`."""
        rotated = self._by_head("rotate_query", q)
        return rotated if self.store.mean is None else jnp.concatenate([rotated, q], axis=-1)

    def output(self, mixed: Float[Array, "b t h e"]) -> Float[Array, "b t h d"]:
        """Weighted sums of the values of `update(rotated=True)`, in the model's coordinates."""
        return self._by_head("unrotate", mixed)

    def _by_head(self, name: str, x: Array) -> Array:
        return self.store.by_head(name, x, groups=self.first.shape[-2])

    def _read(
        self, around: Array, start: Any, tokens: int, frequency: Array | None, rotated: bool
    ) -> Seen:
        kept = self.store
        positions = jnp.arange(self.slots)
        coded = kept.decode(self.packed, rotated)[:, : self.slots]
        coded = coded if rotated else self._uncentre(coded, positions, frequency)
        coded = coded.astype(around.dtype)
        seen = Seen(coded)
        if kept.sinks or kept.tail or kept.deferred:
            first, first_at = self.first.astype(around.dtype), jnp.arange(kept.sinks)
            around_at = start - kept.tail + jnp.arange(around.shape[1])
            if rotated:
                first = self._by_head("rotate", self._centre(first, first_at, frequency))
                around = self._by_head("rotate", self._centre(around, around_at, frequency))
                first, around = first.astype(coded.dtype), around.astype(coded.dtype)
            # room before the first slot for the tail of a text shorter than that
            exact = jnp.pad(jnp.zeros_like(coded), ((0, 0), (kept.tail, 0), (0, 0), (0, 0)))
            exact = jax.lax.dynamic_update_slice_in_dim(exact, around, start, axis=1)
            exact = exact[:, kept.tail :].at[:, : kept.sinks].set(first)
            if tokens == 1 or kept.deferred or not kept.tail:
                asking = start - 1 if kept.deferred else start + tokens - 1
                mask = self._fresh(asking, positions)
                seen = Seen(jnp.where(mask[:, None, None], exact, coded))
            else:
                seen = Seen(coded, exact, self._fresh)
        if rotated and kept.mean is not None:
            shape = (*coded.shape[:-1], kept.mean.shape[-1])
            mean = jnp.broadcast_to(self._mean(positions, frequency), shape).astype(coded.dtype)
            seen = seen._replace(
                stored=jnp.concatenate([seen.stored, mean], axis=-1),
                exact=None if seen.exact is None else jnp.concatenate([seen.exact, mean], axis=-1),
            )
        return seen

    def _fresh(self, asking: Any, positions: Array) -> Array:
        """Which positions a query at `asking` reads exact."""
        full = (asking + 1) // self.store.page * self.store.page
        recent = positions > asking - self.store.recent
        return (positions < self.store.sinks) | recent | (positions >= full)

    def _centre(self, x: Array, positions: Array, frequency: Array | None) -> Array:
        """What the codec sees of keys (or values) at these positions."""
        if self.store.rope == "before":
            assert frequency is not None
            x = apply_rope(x, -positions, frequency)
        return x if self.store.mean is None else x - self._mean(positions, frequency)

    def _uncentre(self, x: Array, positions: Array, frequency: Array | None) -> Array:
        x = x if self.store.mean is None else x + self._mean(positions, frequency)
        if self.store.rope == "before":
            assert frequency is not None
            x = apply_rope(x, positions, frequency)
        return x

    def _mean(self, positions: Array, frequency: Array | None) -> Array:
        """The mean as it stands in keys at these positions, [t, kv_heads, head_dim]."""
        assert self.store.mean is not None
        return mean_at(self.store.mean, positions, frequency, self.store.rope)


def _write(old: Array, new: Array, page: Any) -> Array:
    """`new` pages in their place, save for one that begins beyond the end."""
    room = jnp.pad(old, [(0, 0)] * 2 + [(0, 1)] + [(0, 0)] * (old.ndim - 3))
    return jax.lax.dynamic_update_slice_in_dim(room, new, page, axis=2)[:, :, : old.shape[2]]
