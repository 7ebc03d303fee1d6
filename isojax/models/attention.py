"""Rotary positions, and causal attention with grouped query heads."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from isojax.models.config import RopeScaling

BLOCK = 256  # queries whose logits are held at once


def rope_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> Float[Array, " half"]:
    """Angles a position: theta^(-2i/d) (Su et al. 2021), rescaled as in Llama 3 where asked."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is None:
        return frequency
    context = scaling.original_max_position_embeddings
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    # 0 for wavelengths that outgrew the context (slowed down), 1 for short ones (kept)
    kept = jnp.clip((context * frequency / (2 * math.pi) - low) / (high - low), 0.0, 1.0)
    return frequency * (kept + (1 - kept) / scaling.factor)


def apply_rope(
    x: Float[Array, "b t h d"], positions: Int[Array, "b t"], frequency: Float[Array, " half"]
) -> Float[Array, "b t h d"]:
    """Rotate channel i with channel i + d/2 by position times frequency; computed in fp32."""
    angle = positions[..., None, None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def causal_attention(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b s g d"],
    v: Float[Array, "b s g d"],
    start: Int[Array, ""] | int = 0,
) -> Float[Array, "b t h*d"]:
    """Softmax attention in which query i reads keys 0 .. start + i; the softmax is in fp32.

    Queries go by in blocks, so that the logits of a long text are never held at once. With a
    `start` known to be 0 the keys after a block are not read at all.

    Args:
        q: queries, h heads.
        k: keys, g heads; g divides h, consecutive query heads share one.
        v: values, g heads.
        start: position of the first query among the keys.
    """
    batch, tokens, heads, dim = q.shape
    slots, groups = k.shape[1], k.shape[2]
    share = heads // groups
    prefill = isinstance(start, int) and start == 0
    # one batch axis of (text, key head), query heads that share keys below each other: several
    # batch axes, or any other order, make XLA's products on a CPU up to ten times slower
    q = (q * dim**-0.5).reshape(batch, tokens, groups, share, dim).transpose(0, 2, 3, 1, 4)
    q = q.reshape(batch * groups, share, tokens, dim)
    k = k.transpose(0, 2, 3, 1).reshape(batch * groups, dim, slots)
    v = v.transpose(0, 2, 1, 3).reshape(batch * groups, slots, dim)

    outputs = []
    for begin in range(0, tokens, BLOCK):
        end = min(begin + BLOCK, tokens)
        seen = min(end, slots) if prefill else slots
        rows = q[:, :, begin:end].reshape(batch * groups, share * (end - begin), dim)
        logits = jnp.matmul(rows, k[..., :seen], preferred_element_type=jnp.float32)
        visible = start + jnp.arange(begin, end)[:, None] >= jnp.arange(seen)
        logits = jnp.where(jnp.tile(visible, (share, 1)), logits, -jnp.inf)
        weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
        mixed = jnp.matmul(weights.astype(v.dtype), v[:, :seen], preferred_element_type=jnp.float32)
        mixed = mixed / weights.sum(-1, keepdims=True)
        outputs.append(mixed.reshape(batch, groups, share, end - begin, dim))
    out = jnp.concatenate(outputs, axis=3).transpose(0, 3, 1, 2, 4)
    return out.reshape(batch, tokens, heads * dim).astype(q.dtype)
