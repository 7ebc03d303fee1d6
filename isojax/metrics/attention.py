"""What quantized keys and values do to the attention of one layer.

Attention is causal, its logits are q.k / sqrt(d), and h query heads share g key heads: g divides
h, consecutive query heads share one. Arrays are `q` [t, h, d] and `k`, `v` [t, g, d] as attention
sees them, so after rotary position embedding. Logits exist for `BLOCK` queries at a time; over
layers, `jax.lax.map` keeps it so, where `jax.vmap` holds those of every layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax.metrics.error import computed

BLOCK = 256


def logit_error(
    q: Float[Array, "t h d"], k: Float[Array, "t g d"], k_hat: Float[Array, "t g d"]
) -> Float[Array, ""]:
    """Root mean square error of the logits, less the mean error of each query.

    The mean over the keys that a query sees shifts all its logits alike, which its softmax does
    not notice. The root mean square is over all query heads and all pairs of a query and a key
    that it sees.

    Args:
        q: queries, h heads.
        k: keys, g heads.
        k_hat: their reconstruction.

    Raises:
        ValueError: g does not divide h.
    """
    q, k, k_hat = computed(q, k, k_hat)
    delta = _columns(k_hat - k)

    def square(query: Array, seen: Array) -> Array:
        error = _product(query, delta)
        mean = jnp.sum(error * seen, -1, keepdims=True) / jnp.sum(seen)
        return jnp.sum(jnp.square(error - mean) * seen)

    tokens, heads, _ = q.shape
    return jnp.sqrt(jnp.sum(_each_query(square, q, k)) / (heads * tokens * (tokens + 1) / 2))


def attention_kl(
    q: Float[Array, "t h d"], k: Float[Array, "t g d"], k_hat: Float[Array, "t g d"]
) -> Float[Array, ""]:
    """KL divergence of the attention weights, KL(softmax(q k) || softmax(q k_hat)), in nats.

    The mean over query heads and query positions. Computed as log E[exp(e - E[e])], e the errors
    of a query's logits and E the mean under the exact weights, so that large logits cost it no
    digits.

    Args:
        q: queries, h heads.
        k: keys, g heads.
        k_hat: their reconstruction.

    Raises:
        ValueError: g does not divide h.
    """
    q, k, k_hat = computed(q, k, k_hat)
    keys, delta = _columns(k), _columns(k_hat - k)

    def divergence(query: Array, seen: Array) -> Array:
        exact = jax.nn.log_softmax(jnp.where(seen, _product(query, keys), -jnp.inf))
        error = _product(query, delta)
        error -= jnp.sum(jnp.exp(exact) * error, -1, keepdims=True)
        return jnp.mean(jax.nn.logsumexp(exact + error, -1) - jax.nn.logsumexp(exact, -1))

    return jnp.mean(_each_query(divergence, q, k))


def attention_output_nmse(
    q: Float[Array, "t h d"],
    k: Float[Array, "t g d"],
    v: Float[Array, "t g c"],
    k_hat: Float[Array, "t g d"],
    v_hat: Float[Array, "t g c"],
) -> Float[Array, ""]:
    """Squared error of attention's output over its squared norm, all heads and positions.

    Args:
        q: queries, h heads.
        k: keys, g heads.
        v: values, g heads.
        k_hat: the reconstruction of `k`.
        v_hat: the reconstruction of `v`.

    Raises:
        ValueError: g does not divide h.
    """
    q, k, v, k_hat, v_hat = computed(q, k, v, k_hat, v_hat)
    keys, delta = _columns(k), _columns(k_hat - k)
    rows, rows_hat = v.transpose(1, 0, 2), v_hat.transpose(1, 0, 2)

    def squares(query: Array, seen: Array) -> tuple[Array, Array]:
        logits = jnp.where(seen, _product(query, keys), -jnp.inf)
        out = _product(jax.nn.softmax(logits), rows)
        out_hat = _product(jax.nn.softmax(logits + _product(query, delta)), rows_hat)
        return jnp.sum(jnp.square(out_hat - out)), jnp.sum(jnp.square(out))

    error, energy = _each_query(squares, q, k)
    return jnp.sum(error) / jnp.sum(energy)


def _each_query(one: Callable[[Array, Array], Any], q: Array, k: Array) -> Any:
    """`one(query [g, h/g, d] scaled, keys it sees [t])` of each position, `BLOCK` at a time."""
    (tokens, heads, dim), groups = q.shape, k.shape[1]
    if heads % groups:
        raise ValueError(f"q must have a multiple of the {groups} heads of k, got {heads}.")
    queries = q.reshape(tokens, groups, heads // groups, dim) * dim**-0.5
    at = jnp.arange(tokens)
    return jax.lax.map(lambda x: one(x[0], x[1] >= at), (queries, at), batch_size=BLOCK)


def _columns(k: Float[Array, "t g d"]) -> Float[Array, "g d t"]:
    return k.transpose(1, 2, 0)


def _product(a: Float[Array, "g m k"], b: Float[Array, "g k n"]) -> Float[Array, "g m n"]:
    """In full fp32 on a GPU too."""
    return jnp.matmul(a, b, precision="highest")
