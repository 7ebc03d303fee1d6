"""Controls: quantizers as baselines and references."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from isojax._core.checks import compute_dtype
from isojax._core.pytree import pytree
from isojax.quantizers.base import Quantizer
from isojax.quantizers.codes import Codes


@pytree
class NoQuantization(Quantizer):
    """The reference: every element is its own code."""

    def encode(self, y: Float[Array, "*batch d"]) -> Codes:  # noqa: D102
        return Codes(y.astype(compute_dtype(y.dtype, "y")))

    def decode(self, codes: Codes) -> Float[Array, "*batch d"]:  # noqa: D102
        return codes.values


@pytree
class Zero(Quantizer):
    """The zero predictor: nothing is stored and every element becomes zero."""

    def encode(self, y: Float[Array, "*batch d"]) -> Codes:  # noqa: D102
        return Codes(jnp.zeros(y.shape, jnp.int8), bits=0)

    def decode(self, codes: Codes) -> Float[Array, "*batch d"]:  # noqa: D102
        return codes.values.astype(jnp.float32)


@pytree
class GaussianNoise(Quantizer):
    """Adds fixed noise in place of quantizing: the same error energy, but independent of y."""

    noise: Float[Array, "..."]

    def encode(self, y: Float[Array, "*batch d"]) -> Codes:  # noqa: D102
        return Codes(y.astype(compute_dtype(y.dtype, "y")) + self.noise)

    def decode(self, codes: Codes) -> Float[Array, "*batch d"]:  # noqa: D102
        return codes.values


def none() -> NoQuantization:
    """No quantization: `roundtrip` returns its input."""
    return NoQuantization()


def zero() -> Zero:
    """The zero predictor, at 0 bits."""
    return Zero()


def gaussian_noise(
    key: Key[Array, ""], shape: tuple[int, ...], mse: float | Float[Array, ""]
) -> GaussianNoise:
    """White Gaussian noise with mean square `mse` in expectation, drawn once.

    Args:
        key: random key of the noise.
        shape: shape of the arrays it will be added to, or one that broadcasts against theirs.
        mse: variance of the noise, in squared units of the input.
    """
    return GaussianNoise(jnp.sqrt(mse) * jax.random.normal(key, shape))
