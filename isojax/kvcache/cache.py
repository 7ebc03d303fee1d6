"""The cache of a whole model: layers of keys and values, and how many tokens they hold."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from isojax._core.checks import check_positive
from isojax._core.pytree import pytree, static
from isojax.kvcache.attention import causal_attention, check_heads
from isojax.kvcache.packed import PackedSide
from isojax.kvcache.plain import PlainSide
from isojax.kvcache.store import Store
from isojax.quantizers.codes import nbytes

Side = PlainSide | PackedSide


@pytree
class LayerCache:
    """Keys and values of one layer.

    Attributes:
        keys: in the layout of attention, or packed.
        values: likewise.
        rotated: attention runs in the coordinates of the codecs.
    """

    keys: Side
    values: Side
    rotated: bool = static()

    def attend(
        self,
        q: Float[Array, "b t h d"],
        k: Float[Array, "b t g d"],
        v: Float[Array, "b t g d"],
        start: Int[Array, ""],
        frequency: Float[Array, " half"],
        layer: Int[Array, ""] | None = None,
    ) -> tuple[LayerCache, Float[Array, "b t o"]]:
        """Append keys and values, then attend to all stored tokens.

        Where `rotated`, queries are rotated once in place of un-rotating every key, and the
        weighted sum of the values is un-rotated once: (T q) . (T k) = q . k.

        Args:
            q: queries after the rotary embedding.
            k: keys after the rotary embedding.
            v: values.
            start: tokens stored so far.
            frequency: of the rotary embedding.
            layer: index of the layer, if the leaves are stacks of all layers; the stacks are
                returned with this layer written in place.

        Returns:
            The layer with the new tokens, and the outputs of attention; NaN if there was no room.

        Raises:
            ValueError: keys or values have another batch or model than the side or the queries, or
                more tokens than slots.
        """
        self.keys.check("k", k)
        self.values.check("v", v)
        check_heads(q, k, v)
        keys, k_seen = self.keys.update(k, start, frequency, self.rotated, layer)
        values, v_seen = self.values.update(v, start, None, self.rotated, layer)
        if self.rotated:
            q_seen = self.keys.query(q, layer)
            mixed = causal_attention(q_seen, k_seen, v_seen, start, q.shape[-1] ** -0.5)
            mixed = self.values.output(mixed.reshape(*q.shape[:-1], -1), layer)
            out = mixed.reshape(*q.shape[:2], -1).astype(q.dtype)
        else:
            out = causal_attention(q, k_seen, v_seen, start)
        fits = start + q.shape[1] <= self.keys.slots
        return LayerCache(keys, values, self.rotated), jnp.where(fits, out, jnp.nan)


@pytree
class Cache:
    """Keys and values of the tokens read so far.

    Attributes:
        layers: leaves lead with [layers]; or, `unstack`ed, a tuple with one per layer.
        length: tokens stored.
    """

    layers: LayerCache | tuple[LayerCache, ...]
    length: Int[Array, ""]

    @property
    def slots(self) -> int:
        """Number of tokens that fit."""
        return self._parts[0].keys.slots

    @property
    def nbytes(self) -> int:
        """Bytes stored for tokens, all layers; codecs not counted (see `side_bytes`)."""
        return sum(part.keys.nbytes + part.values.nbytes for part in self._parts)

    @property
    def side_bytes(self) -> int:
        """Bytes independent of the number of tokens: transforms, codebooks, means."""
        sides = [side for part in self._parts for side in (part.keys, part.values)]
        return nbytes([side.store for side in sides if isinstance(side, PackedSide)])

    def unstack(self) -> Cache:
        """The same cache with separate layers, for `models.unstack`ed parameters.

        A layer is then read in place, while a slice of a stack is copied on a CPU.
        """
        if isinstance(self.layers, tuple):
            return self
        number = len(jax.tree.leaves(self.layers)[0])
        parts = (jax.tree.map(lambda a, i=i: a[i], self.layers) for i in range(number))
        return Cache(tuple(parts), self.length)

    @property
    def _parts(self) -> tuple[LayerCache, ...]:
        return self.layers if isinstance(self.layers, tuple) else (self.layers,)


def new_cache(
    *,
    layers: int,
    batch: int,
    slots: int,
    kv_heads: int,
    head_dim: int,
    dtype: Any = jnp.float32,
    keys: Store | None = None,
    values: Store | None = None,
    rotated: bool = False,
) -> Cache:
    """An empty cache.

    Args:
        layers: of the model.
        batch: texts.
        slots: number of tokens that fit, per text.
        kv_heads: key heads of the model.
        head_dim: of the model.
        dtype: of a side that is not packed.
        keys: store of the keys, or None to keep them exact, after the rotary embedding.
        values: store of the values, or None.
        rotated: run attention in the coordinates of the codecs; the same up to rounding.

    Raises:
        ValueError: a store does not fit the model or the slots, or has a rotary embedding or mean
            for values; or `rotated` is set for keys stored before the rotary embedding, which does
            not commute with the codec's transform.
    """
    sizes = {"layers": layers, "batch": batch, "slots": slots}
    for name, value in (sizes | {"kv_heads": kv_heads, "head_dim": head_dim}).items():
        check_positive(name, value)
    if rotated and keys is not None and keys.rope == "before":
        raise ValueError("rotated must be False for keys stored before the rotary embedding.")
    if values is not None and (values.rope == "before" or values.mean is not None):
        raise ValueError("values must have rope='after' and mean=None: they have no positions.")

    def side(name: str, kept: Store | None) -> Side:
        if kept is None:
            columns = name == "values"
            sizes = (head_dim, slots) if columns else (slots, head_dim)
            return PlainSide(jnp.zeros((layers, batch * kv_heads, *sizes), dtype), columns)
        _check_store(name, kept, layers, slots, kv_heads, head_dim)
        kept = jax.tree.map(
            jnp.copy, kept
        )  # a cache may be donated, so no two leaves may share a buffer
        return jax.vmap(
            lambda kept: PackedSide.empty(kept, batch, slots, kv_heads, head_dim),
            axis_size=layers,  # the codec may have no leaves
        )(kept)

    both = LayerCache(side("keys", keys), side("values", values), rotated)
    return Cache(both, jnp.zeros((), jnp.int32))


def _check_store(
    name: str, kept: Store, layers: int, slots: int, kv_heads: int, head_dim: int
) -> None:
    if kept.sinks > slots:
        raise ValueError(f"{name}: sinks must be at most slots={slots}, got {kept.sinks}.")
    if kept.codec.transform.dim != head_dim:
        raise ValueError(
            f"{name}: the codec must act on vectors of head_dim={head_dim}, "
            f"got {kept.codec.transform.dim}."
        )
    for leaf in jax.tree.leaves((kept.codec, kept.mean)):
        if leaf.shape[:2] != (layers, kv_heads):
            raise ValueError(
                f"{name}: all leaves of the codec must lead with [layers, kv_heads] = "
                f"{[layers, kv_heads]}, got shape {leaf.shape}."
            )
