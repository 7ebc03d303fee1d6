"""Rotary positions, and causal attention with grouped query heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from isojax._core.axes import to_rank
from isojax._core.queries import over_queries

FEW = 16  # rows of queries up to which keys and values are the left factor on a CPU


def apply_rope(
    x: Float[Array, "*b t h d"], positions: Int[Array, "*p t"], frequency: Float[Array, " half"]
) -> Float[Array, "*b t h d"]:
    """Rotate channel i with channel i + d/2 by position times frequency; computed in fp32.

    `positions` are one per token, [t], or [b, t]; negative ones invert it (Su et al. 2021).
    """
    places = positions[..., None, None].astype(frequency.dtype)
    angle = places * to_rank(frequency, places.ndim)
    cos, sin = (to_rank(turn(angle), x.ndim) for turn in (jnp.cos, jnp.sin))
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


class Exact(NamedTuple):
    """A run of tokens that some queries read exact in place of decoded.

    Attributes:
        vectors: [batch * kv_heads, run, dim].
        begin: position of the first of them.
        fresh: `(query positions [t, 1], positions [run]) -> [t, run]`: which queries read them.
    """

    vectors: Float[Array, "n r d"]
    begin: Int[Array, ""] | int
    fresh: Callable[[Int[Array, "t 1"], Int[Array, " r"]], Bool[Array, "t r"]]

    def mask(self, at: Int[Array, "t 1"]) -> Bool[Array, "t r"]:
        """The mask of tokens that the queries at these positions read exact."""
        return self.fresh(at, self.begin + jnp.arange(self.vectors.shape[1]))

    def of(self, x: Float[Array, "n t s"]) -> Float[Array, "n t r"]:
        """The part of `x`, an array over all slots, at these tokens."""
        return jax.lax.dynamic_slice_in_dim(x, self.begin, self.vectors.shape[1], axis=-1)

    def put(self, x: Float[Array, "n t s"], new: Any, at: Array) -> Float[Array, "n t s"]:
        """`x` with `new` at these tokens, for the queries that read them exact."""
        new = jnp.where(self.mask(at)[None], new, self.of(x)).astype(x.dtype)
        return jax.lax.dynamic_update_slice_in_dim(x, new, self.begin, axis=-1)


class Seen(NamedTuple):
    """Keys or values in the layout of attention; n is batch * kv_heads, heads of a text adjacent.

    Attributes:
        stored: one vector per position from 0, [n, slots, dim], or with `columns` [n, dim, slots].
        columns: see `stored`.
        scale: factors of the vectors, [n, slots], or None for one.
        exact: runs of tokens that some queries read in place of `stored`.
        scores: inner products of a few queries [n, rows, dim] with all slots, where computing
            these from codes is faster than from `stored`.
    """

    stored: Float[Array, "n s d"] | Float[Array, "n d s"]
    columns: bool = False
    scale: Float[Array, "n s"] | None = None
    exact: tuple[Exact, ...] = ()
    scores: Callable[[Float[Array, "n r d"]], Float[Array, "n r s"]] | None = None

    @property
    def slots(self) -> int:
        """Number of positions."""
        return self.stored.shape[-1 if self.columns else -2]

    def cut(self, slots: int) -> Seen:
        """The first `slots` positions."""
        if slots == self.slots:
            return self
        scores = self.scores
        return self._replace(
            stored=self.stored[..., :slots] if self.columns else self.stored[:, :slots],
            scale=None if self.scale is None else self.scale[:, :slots],
            scores=None if scores is None else lambda q: scores(q)[..., :slots],
        )

    def tokens(self, position: Int[Array, ""] | int) -> Float[Array, "s n d"]:
        """The vectors that a query at `position` reads."""
        x = self.stored.swapaxes(1, 2) if self.columns else self.stored
        x = x if self.scale is None else x * self.scale[..., None]
        for run in self.exact:
            old = jax.lax.dynamic_slice_in_dim(x, run.begin, run.vectors.shape[1], axis=1)
            new = jnp.where(run.mask(jnp.full((1, 1), position))[:, :, None], run.vectors, old)
            x = jax.lax.dynamic_update_slice_in_dim(x, new.astype(x.dtype), run.begin, axis=1)
        return x.swapaxes(0, 1)


def causal_attention(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b s g d"] | Seen,
    v: Float[Array, "b s g e"] | Seen,
    start: Int[Array, ""] | int = 0,
    scale: float | None = None,
) -> Float[Array, "b t o"]:
    """Softmax attention in which query i reads keys 0 .. start + i; the softmax is in fp32.

    Queries are processed in blocks, so that the logits of a long text are never held at once. With
    a `start` known to be 0, each quarter of them reads no keys that come after it. Stored vectors
    are read in place, without a transpose.

    Args:
        q: queries, h heads.
        k: keys, g heads; g divides h, consecutive query heads share one.
        v: values, g heads.
        start: position of the first query among the keys.
        scale: factor of the logits; d^-1/2 by default.

    Raises:
        ValueError: keys or values are of another batch, length or number of heads than allowed.
    """
    if not isinstance(k, Seen) and not isinstance(v, Seen):
        check_heads(q, k, v, start)
    keys = k if isinstance(k, Seen) else Seen(by_head(k, columns=True), columns=True)
    values = v if isinstance(v, Seen) else Seen(by_head(v))
    batch, tokens, heads, dim = q.shape
    groups = len(keys.stored) // batch
    share = heads // groups

    def read(rows: Array, at: Array, seen: int) -> Array:
        sees = (at >= jnp.arange(seen)[None])[None]
        if keys.scores is not None and rows.shape[1] <= FEW:
            logits = keys.scores(rows)[..., :seen]
        else:
            logits = _scaled(_scores(rows, keys.stored, keys.columns, seen), keys, seen)
        for run in keys.exact:
            logits = run.put(logits, _scores(rows, run.vectors, False), at)
        # in fp32; scaling the queries would round them once more in half precision
        logits = jnp.where(sees, logits * factor, -jnp.inf)
        weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
        total = weights.sum(-1, keepdims=True)
        dtype, mixed = values.stored.dtype, 0.0
        for run in values.exact:
            part = jnp.where(run.mask(at)[None], run.of(weights), 0).astype(dtype)
            mixed = mixed + _mixture(part, run.vectors, False)
            weights = run.put(weights, 0, at)
        weights = _scaled(weights, values, seen).astype(dtype)
        return (mixed + _mixture(weights, values.stored, values.columns, seen)) / total

    factor = dim**-0.5 if scale is None else scale
    q = q.reshape(batch, tokens, groups, share, dim).transpose(0, 2, 3, 1, 4)
    out = over_queries(read, q.reshape(batch * groups, share, tokens, dim), keys.slots, start)
    out = out.reshape(len(out), batch, groups, share, -1, out.shape[-1])
    out = out.transpose(1, 0, 4, 2, 3, 5).reshape(batch, -1, heads * out.shape[-1])
    return out[:, :tokens].astype(q.dtype)


def check_heads(q: Array, k: Array, v: Array, start: Any = 0) -> None:
    """Raise `ValueError` for keys or values that would be read as those of other texts or heads."""
    batch, tokens, heads, dim = q.shape
    least = start + tokens if isinstance(start, int) else 1
    alike = k.shape[:3] == v.shape[:3] and k.shape[0] == batch and k.shape[3] == dim
    if not alike or k.shape[1] < least or heads % k.shape[2]:
        raise ValueError(
            f"k and v must be of {batch} texts, the same {least} or more tokens and a number of "
            f"heads that divides {heads}, k with {dim} elements each; got shapes {k.shape} and "
            f"{v.shape}."
        )


def by_head(x: Float[Array, "b t g d"], columns: bool = False) -> Array:
    """Vectors of tokens in the layout of attention, see `Seen`."""
    return jax.lax.collapse(x.transpose(0, 2, 3, 1) if columns else x.transpose(0, 2, 1, 3), 0, 2)


def _scaled(x: Float[Array, "n r s"], of: Seen, seen: int) -> Float[Array, "n r s"]:
    """`x` times the scales of the first `seen` vectors."""
    return x if of.scale is None else x * of.scale[:, None, :seen]


def _scores(
    rows: Float[Array, "n r d"], keys: Array, columns: bool, seen: int | None = None
) -> Float[Array, "n r s"]:
    """Inner products with the first `seen` keys, in fp32."""
    if columns:
        return _product(rows, keys[..., :seen], 2, 1)
    keys = keys[:, :seen]
    if rows.shape[1] > FEW:
        return _product(rows, keys, 2, 2)
    return _product_turned(keys, rows, 1)


def _mixture(
    weights: Float[Array, "n r s"], values: Array, columns: bool, seen: int | None = None
) -> Float[Array, "n r d"]:
    """Weighted sums of the first `seen` values, in fp32."""
    if not columns:
        return _product(weights, values[:, :seen], 2, 1)
    values = values[..., :seen]
    if weights.shape[1] > FEW:
        return _product(weights, values, 2, 2)
    return _product_turned(values, weights, 2)


def _product_turned(a: Array, few: Array, of_few: int) -> Array:
    """Sum over the last axes of both, [n, rows of few, rows of a]; `few` transposed or not.

    XLA's products on a CPU copy the right factor, so this should be the small one. The barriers
    keep XLA from swapping the factors back.
    """
    few = few if of_few == 2 else jax.lax.optimization_barrier(few.swapaxes(1, 2))
    return jax.lax.optimization_barrier(_product(a, few, 2, of_few)).swapaxes(1, 2)


def _product(a: Array, b: Array, of_a: int, of_b: int) -> Array:
    """Sum over axis `of_a` of a and `of_b` of b, one product for each of the first axis."""
    axes = (((of_a,), (of_b,)), ((0,), (0,)))
    full = jax.lax.Precision.HIGHEST
    return jax.lax.dot_general(a, b, axes, full, preferred_element_type=jnp.float32)
