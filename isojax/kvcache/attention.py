"""Rotary positions, and causal attention with grouped query heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from isojax._core.queries import over_queries


def apply_rope(
    x: Float[Array, "*b t h d"], positions: Int[Array, "*p t"], frequency: Float[Array, " half"]
) -> Float[Array, "*b t h d"]:
    """Rotate channel i with channel i + d/2 by position times frequency; computed in fp32.

    Positions are one for each token, [t], or [b, t]; negative ones undo it (Su et al. 2021).
    """
    angle = positions[..., None, None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


class Seen(NamedTuple):
    """Keys or values as attention reads them.

    Attributes:
        stored: [batch, slots, kv_heads, dim], one for each position from 0.
        exact: the same, as they were before they were stored; None where nobody reads it.
        fresh: `(query positions [t, 1], positions [s]) -> [t, s]`: who reads `exact`.
    """

    stored: Float[Array, "b s g d"]
    exact: Float[Array, "b s g d"] | None = None
    fresh: Callable[[Int[Array, "t 1"], Int[Array, " s"]], Bool[Array, "t s"]] | None = None


def causal_attention(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b s g d"] | Seen,
    v: Float[Array, "b s g e"] | Seen,
    start: Int[Array, ""] | int = 0,
    scale: float | None = None,
) -> Float[Array, "b t o"]:
    """Softmax attention in which query i reads keys 0 .. start + i; the softmax is in fp32.

    Queries go by in blocks, so that the logits of a long text are never held at once. With a
    `start` known to be 0, each quarter of them reads no keys that come after it.

    Args:
        q: queries, h heads.
        k: keys, g heads; g divides h, consecutive query heads share one.
        v: values, g heads.
        start: position of the first query among the keys.
        scale: what logits are multiplied by; d^-1/2 by default.
    """
    keys = k if isinstance(k, Seen) else Seen(k)
    values = v if isinstance(v, Seen) else Seen(v)
    batch, tokens, heads, dim = q.shape
    slots, groups = keys.stored.shape[1:3]
    share = heads // groups

    def columns(k: Array | None) -> Array | None:
        return None if k is None else k.transpose(0, 2, 3, 1).reshape(batch * groups, dim, slots)

    def lines(v: Array | None) -> Array | None:
        return None if v is None else v.transpose(0, 2, 1, 3).reshape(batch * groups, slots, -1)

    keys = keys._replace(stored=columns(keys.stored), exact=columns(keys.exact))
    values = values._replace(stored=lines(values.stored), exact=lines(values.exact))

    def read(rows: Array, at: Array, seen: int) -> Array:
        among = jnp.arange(seen)
        logits = _product(rows, keys.stored[..., :seen])
        if keys.exact is not None:
            assert keys.fresh is not None
            exact = _product(rows, keys.exact[..., :seen])
            logits = jnp.where(keys.fresh(at, among), exact, logits)
        logits = jnp.where(at >= among, logits, -jnp.inf)
        weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
        total = weights.sum(-1, keepdims=True)
        weights = weights.astype(values.stored.dtype)
        if values.exact is None:
            return _product(weights, values.stored[:, :seen]) / total
        assert values.fresh is not None
        other = jnp.where(values.fresh(at, among), weights, 0)
        mixed = _product(weights - other, values.stored[:, :seen])
        return (mixed + _product(other, values.exact[:, :seen])) / total

    q = q * (dim**-0.5 if scale is None else scale)
    q = q.reshape(batch, tokens, groups, share, dim).transpose(0, 2, 3, 1, 4)
    out = over_queries(read, q.reshape(batch * groups, share, tokens, dim), slots, start)
    out = out.reshape(len(out), batch, groups, share, -1, out.shape[-1])
    out = out.transpose(1, 0, 4, 2, 3, 5).reshape(batch, -1, heads * out.shape[-1])
    return out[:, :tokens].astype(q.dtype)


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)
