"""Keys or values of the cache in packed codes, with a few exact tokens."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from isojax._core.pytree import pytree, static
from isojax.kvcache.attention import Exact, Seen, apply_rope, by_head
from isojax.kvcache.layers import append, at_layer
from isojax.kvcache.store import Store, mean_at
from isojax.quantizers.codes import Packed, nbytes, stored


@pytree
class PackedSide:
    """Keys or values of one layer in packed codes, or of all of them.

    Every token is encoded as soon as its page is full. The first and the last tokens are also kept
    exact: this takes a few more bytes, but no token is ever moved from one form to the other.

    Attributes:
        store: of this layer.
        packed: codes, leaves lead with [kv_heads, batch, pages].
        first: the first `store.sinks` tokens, [batch, sinks, kv_heads, head_dim].
        last: the last `store.tail` tokens.
        slots: number of tokens that fit.
    """

    store: Store
    packed: Packed
    first: Float[Array, "*layers b f g d"]
    last: Float[Array, "*layers b l g d"]
    slots: int = static()

    @property
    def nbytes(self) -> int:
        """Bytes stored for tokens."""
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

    def check(self, name: str, x: Float[Array, "b t g d"]) -> None:
        """Raise `ValueError` unless new keys or values `x` fit this side."""
        batch, _, heads, dim = self.first.shape[-4:]
        if (x.shape[0], *x.shape[2:]) != (batch, heads, dim) or x.shape[1] > self.slots:
            raise ValueError(
                f"{name} must be of {batch} texts, {heads} heads, {dim} elements each, and at most "
                f"{self.slots} tokens, got shape {x.shape}."
            )

    def update(
        self,
        x: Float[Array, "b t g d"],
        start: Int[Array, ""] | int,
        frequency: Float[Array, " half"] | None,
        rotated: bool,
        layer: Int[Array, ""] | None = None,
    ) -> tuple[PackedSide, Seen]:
        """Append keys or values at position `start`, and read all stored tokens.

        Args:
            x: keys after the rotary embedding, or values.
            start: number of tokens stored so far.
            frequency: of the rotary embedding; None for values.
            rotated: read in the codec's coordinates (see `query` and `output`).
            layer: index of the layer, for a side of all layers; None for a side of one layer.

        Returns:
            The side with `x` appended, and all slots in the layout of attention.
        """
        here = at_layer(self, layer)
        return here._update(self, x, start, frequency, rotated, layer)

    def _update(
        self, whole: PackedSide, x: Array, start: Any, frequency: Any, rotated: bool, layer: Any
    ) -> tuple[PackedSide, Seen]:
        """The update of `whole`, where `self` is its part for the layer."""
        tokens, page = x.shape[1], self.store.page
        around = jnp.concatenate([self.last.astype(x.dtype), x], axis=1)
        extra = self.store.tail
        begin = start // page * page
        pages = (tokens + 2 * page - 2) // page
        room = jnp.pad(around.astype(jnp.float32), ((0, 0), (0, pages * page), (0, 0), (0, 0)))
        due = jax.lax.dynamic_slice_in_dim(room, begin - start + extra, pages * page, axis=1)
        due = self._centre(due, begin + jnp.arange(pages * page), frequency)
        codes = self.store.encode(due.reshape(due.shape[0], pages, page, *due.shape[2:]))
        # pages of one token never begin beyond the end, nor does the page of a single token
        sure = page == 1 or tokens == 1
        write = functools.partial(_write, page=start // page, layer=layer, sure=sure)
        packed = jax.tree.map(write, whole.packed, codes)

        sinks = self.store.sinks
        place = jnp.arange(sinks) - start
        arrived = jnp.take(x, jnp.clip(place, 0, tokens - 1), axis=1)
        is_new = ((place >= 0) & (place < tokens))[None, :, None, None]
        first = jnp.where(is_new, stored(arrived, self.first.dtype), self.first)
        last = stored(around[:, tokens:], self.last.dtype)
        seen = dataclasses.replace(self, packed=at_layer(packed, layer), first=first)._read(
            around, start, frequency, rotated
        )
        first, last = append(whole.first, first, 0, 1, layer), append(whole.last, last, 0, 1, layer)
        return dataclasses.replace(whole, packed=packed, first=first, last=last), seen

    def query(
        self, q: Float[Array, "b t h d"], layer: Int[Array, ""] | None = None
    ) -> Float[Array, "b t h e"]:
        """Queries in the coordinates of the keys of `update(rotated=True)`, in their dtype."""
        rotated = self._by_head("rotate_query", q, layer).astype(q.dtype)
        return rotated if self.store.mean is None else jnp.concatenate([rotated, q], axis=-1)

    def output(
        self, mixed: Float[Array, "b t h e"], layer: Int[Array, ""] | None = None
    ) -> Float[Array, "b t h d"]:
        """Weighted sums of the values of `update(rotated=True)`, in the model's coordinates."""
        return self._by_head("unrotate", mixed, layer)

    def _by_head(self, name: str, x: Array, layer: Int[Array, ""] | None = None) -> Array:
        store = at_layer(self.store, layer)
        return store.by_head(name, x, groups=self.first.shape[-2])

    def _read(self, around: Array, start: Any, frequency: Array | None, rotated: bool) -> Seen:
        """All slots decoded, and the exact runs; `around` ends with new tokens."""
        kept, positions, dtype = self.store, jnp.arange(self.slots), around.dtype
        if rotated:
            seen = kept.decode_rotated(self.packed, dtype).cut(self.slots)
            if kept.mean is not None:
                seen = Seen(self._with_mean(seen.stored, positions, frequency))
        else:
            coded = kept.decode(self.packed, self._dtype(around))[:, : self.slots]
            seen = Seen(by_head(self._uncentre(coded, positions, frequency).astype(dtype)))
        runs = []
        if kept.sinks or kept.tail or kept.deferred:
            # their slots: some may lie before the first or after the last one
            size, first_at = min(around.shape[1], self.slots), start - kept.tail
            begin = jnp.clip(first_at, 0, self.slots - size)
            room = jnp.pad(around, ((0, 0), (0, size), (0, 0), (0, 0)))
            runs.append((jax.lax.dynamic_slice_in_dim(room, begin - first_at, size, 1), begin))
        if kept.sinks:
            runs.append((self.first.astype(around.dtype), 0))
        fresh = functools.partial(self._fresh, start)
        exact = []
        for x, begin in runs:
            positions = begin + jnp.arange(x.shape[1])
            if rotated:
                x = self._by_head("rotate", self._centre(x, positions, frequency))
                x = self._with_mean(by_head(x.astype(dtype)), positions, frequency)
            else:
                x = by_head(x)
            exact.append(Exact(x, begin, fresh))
        return seen._replace(exact=tuple(exact))

    def _dtype(self, around: Array) -> Any:
        """The dtype of decoded vectors: the model's, unless a mean is added to them."""
        plain = self.store.mean is None and self.store.rope == "after"
        return around.dtype if plain else jnp.float32

    def _with_mean(
        self, x: Float[Array, "n s d"], positions: Array, frequency: Array | None
    ) -> Float[Array, "n s e"]:
        """`x` with the mean at these positions appended, for products with those of `query`."""
        if self.store.mean is None:
            return x
        mean = self._mean(positions, frequency).swapaxes(0, 1).astype(x.dtype)
        mean = jnp.tile(mean, (len(x) // len(mean), 1, 1))
        return jnp.concatenate([x, mean], axis=-1)

    def _fresh(self, start: Any, asking: Any, positions: Array) -> Array:
        """The mask of positions that a query at `asking` reads exact, in a call from `start` on."""
        positions = positions[None]
        asking = jnp.full_like(asking, start - 1) if self.store.deferred else asking
        full = (asking + 1) // self.store.page * self.store.page
        recent = positions > asking - self.store.recent
        return (positions < self.store.sinks) | recent | (positions >= full)

    def _centre(self, x: Array, positions: Array, frequency: Array | None) -> Array:
        """The input of the codec: keys (or values) at these positions, centred."""
        if self.store.rope == "before":
            assert frequency is not None
            x = apply_rope(x, -positions, frequency)
        return x if self.store.mean is None else x - self._mean(positions, frequency)[None]

    def _uncentre(self, x: Array, positions: Array, frequency: Array | None) -> Array:
        x = x if self.store.mean is None else x + self._mean(positions, frequency)[None]
        if self.store.rope == "before":
            assert frequency is not None
            x = apply_rope(x, positions, frequency)
        return x

    def _mean(self, positions: Array, frequency: Array | None) -> Array:
        """The mean contained in keys at these positions, [t, kv_heads, head_dim]."""
        assert self.store.mean is not None
        return mean_at(self.store.mean, positions, frequency, self.store.rope)


def _write(old: Array, new: Array, page: Any, layer: Any, sure: bool) -> Array:
    """`old` with `new` pages written, except for a page that begins beyond the end.

    Args:
        old: pages on the third axis of a layer.
        new: pages of one layer.
        page: index of the first page.
        layer: as for `append`.
        sure: whether all pages are known to fit.
    """
    pages = old.shape[2 if layer is None else 3]
    if not sure:
        new = new[:, :, :pages]
        begin = jnp.minimum(page, pages - new.shape[2])
        there = jax.lax.dynamic_slice_in_dim(at_layer(old, layer), begin, new.shape[2], axis=2)
        index = jnp.arange(new.shape[2]).reshape(-1, *[1] * (new.ndim - 3))
        new = jnp.where(index < page - begin, there, jnp.roll(new, page - begin, axis=2))
    return append(old, new, page, 2, layer)
