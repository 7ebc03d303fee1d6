"""The frequencies of rotary positions."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax.models.rope_scaling import AnyScaling, LinearScaling, RopeScaling, YarnScaling


def rope_frequencies(
    head_dim: int, theta: float, scaling: AnyScaling | None = None
) -> Float[Array, " half"]:
    """Radians per position: theta^(-2i/d) (Su et al. 2021), rescaled by `scaling`."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    match scaling:
        case RopeScaling():
            kept = _llama3_kept(frequency, scaling)
        case YarnScaling():
            kept = _yarn_kept(head_dim, theta, scaling)
        case LinearScaling():
            return frequency / scaling.factor
        case None:
            return frequency
    return frequency * (kept + (1 - kept) / scaling.factor)


def query_scale(scaling: AnyScaling | None) -> float:
    """The factor of queries besides d^-1/2: the square of YaRN's factor, for queries and keys."""
    return scaling.attention_factor**2 if isinstance(scaling, YarnScaling) else 1.0


def _llama3_kept(frequency: Array, scaling: RopeScaling) -> Array:
    """0 for wavelengths beyond the context (divided), 1 for short ones (kept)."""
    turns = scaling.original_max_position_embeddings * frequency / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return jnp.clip((turns - low) / (high - low), 0.0, 1.0)


def _yarn_kept(head_dim: int, theta: float, scaling: YarnScaling) -> Array:
    """The same by channel: linear between those with `beta_slow` and `beta_fast` turns."""

    def channel(turns: float) -> float:
        context = scaling.original_max_position_embeddings
        return head_dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = channel(scaling.beta_fast), channel(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high = high + 0.001 if high == low else high
    return 1 - jnp.clip((jnp.arange(head_dim // 2) - low) / (high - low), 0.0, 1.0)
