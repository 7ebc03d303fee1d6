"""Errors of the attention of one layer with quantized keys and values."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax._core.queries import over_queries
from isojax.metrics.error import computed, pair


class AttentionErrors(NamedTuple):
    """Errors of one layer's attention, over all query heads and positions.

    Attributes:
        logit_error: root mean square error of the logits, minus the mean error of each query. That
            mean, over the keys that the query sees, shifts all its logits alike and cancels in the
            softmax. Over all pairs of a query and a key that it sees.
        attention_kl: mean KL divergence of the attention weights, KL(softmax(q k) ||
            softmax(q k_hat)), in nats.
        attention_output_nmse: squared error of the weighted sums of values over their squared norm.
    """

    logit_error: Float[Array, ""]
    attention_kl: Float[Array, ""]
    attention_output_nmse: Float[Array, ""]


def attention_errors(
    q: Float[Array, "t h d"],
    k: Float[Array, "t g d"],
    v: Float[Array, "t g c"],
    k_hat: Float[Array, "t g d"],
    v_hat: Float[Array, "t g c"],
) -> AttentionErrors:
    """Errors of causal attention over `k_hat` and `v_hat` in place of `k` and `v`.

    Logits are q.k / sqrt(d), in memory for one block of queries at a time. Over layers,
    `jax.lax.map` keeps it so; `jax.vmap` holds the logits of every layer.

    Args:
        q: queries after the rotary embedding, h heads.
        k: keys after the rotary embedding, g heads; g divides h, consecutive query heads share one.
        v: values, g heads.
        k_hat: the reconstruction of `k`.
        v_hat: the reconstruction of `v`.

    Raises:
        ValueError: g does not divide h, or a reconstruction has another shape.
    """
    pair(k, k_hat)
    pair(v, v_hat)
    q, k, v, k_hat, v_hat = computed(q, k, v, k_hat, v_hat)
    (tokens, heads, dim), groups = q.shape, k.shape[1]
    if heads % groups:
        raise ValueError(f"q must have a multiple of the {groups} heads of k, got {heads}.")
    keys, delta = (x.transpose(1, 2, 0) for x in (k, k_hat - k))
    values, values_hat = (x.transpose(1, 0, 2) for x in (v, v_hat))

    def read(rows: Array, at: Array, seen: int) -> tuple[Array, ...]:
        before, asks = at >= jnp.arange(seen)[None], at < tokens
        sees = (before & asks)[None]
        error = jnp.where(sees, _product(rows, delta[..., :seen]), 0)
        count = jnp.maximum(jnp.sum(sees, -1, keepdims=True), 1).astype(error.dtype)
        mean = jnp.sum(error, -1, keepdims=True) / count
        square = jnp.sum(jnp.where(sees, jnp.square(error - mean), 0))

        logits = jnp.where(before[None], _product(rows, keys[..., :seen]), -jnp.inf)
        log_p = jax.nn.log_softmax(logits)
        p = jnp.exp(log_p)
        # KL = log E[exp(e - E e)], e the errors of the logits and E the mean under the exact
        # weights: precise for large logits too
        log_p_hat = log_p + error - jnp.sum(p * error, -1, keepdims=True)
        kl = jax.nn.logsumexp(log_p_hat, -1) - jax.nn.logsumexp(log_p, -1)

        out = _product(p, values[:, :seen])
        out_hat = _product(jnp.exp(log_p_hat - kl[..., None]), values_hat[:, :seen])
        difference = jnp.where(asks[None], out_hat - out, 0)
        energy = jnp.sum(jnp.where(asks[None], jnp.square(out), 0))
        return square, jnp.sum(jnp.where(asks.T, kl, 0)), jnp.sum(jnp.square(difference)), energy

    queries = (q * dim**-0.5).reshape(tokens, groups, heads // groups, dim).transpose(1, 2, 0, 3)
    square, kl, difference, energy = map(jnp.sum, over_queries(read, queries, tokens))
    pairs = heads * tokens * (tokens + 1) / 2
    return AttentionErrors(jnp.sqrt(square / pairs), kl / (heads * tokens), difference / energy)


def _product(a: Float[Array, "g m k"], b: Float[Array, "g k n"]) -> Float[Array, "g m n"]:
    """The product in full fp32, on a GPU too."""
    return jnp.matmul(a, b, precision="highest")
