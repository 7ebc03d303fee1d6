"""The frequencies of rotary positions."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax.models.config import RopeScaling


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
