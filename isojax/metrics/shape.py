"""The shape of a distribution: its distance from Gaussian and from isotropic."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax._core.axes import shared_axes
from isojax._core.checks import check_positive
from isojax.metrics.entropy import entropy_nats
from isojax.metrics.error import computed


def kurtosis(x: Float[Array, "*batch d"], per: str = "tensor") -> Float[Array, ""]:
    """Fourth central moment over the squared variance: 3 for a Gaussian, 1.8 for a uniform.

    Over all elements (`per` "tensor"), or per vector ("token") or coordinate ("channel") and then
    averaged. Constants give NaN.
    """
    (x,) = computed(x)
    axes = shared_axes(x.ndim, per)
    square = jnp.square(x - jnp.mean(x, axes, keepdims=True))
    return jnp.mean(jnp.mean(jnp.square(square), axes) / jnp.square(jnp.mean(square, axes)))


def peak_to_rms(x: Float[Array, "*batch d"], per: str = "tensor") -> Float[Array, ""]:
    """Largest magnitude over the root mean square: 1 for a constant, sqrt(n) for one spike.

    Over all elements (`per` "tensor"), or per vector ("token") or coordinate ("channel") and then
    averaged. Zeros give NaN.
    """
    (x,) = computed(x)
    axes = shared_axes(x.ndim, per)
    return jnp.mean(jnp.max(jnp.abs(x), axes) / jnp.sqrt(jnp.mean(jnp.square(x), axes)))


def effective_rank(x: Float[Array, "*batch d"]) -> Float[Array, ""]:
    """Exponential of the entropy of the eigenvalue shares of the second moment x^T x.

    d for isotropic vectors, 1 if all lie on one line (Roy and Vetterli 2007, with singular values
    in place of eigenvalues).
    """
    share = _energy_shares(x)
    return jnp.exp(entropy_nats(share))


def top_k_energy(x: Float[Array, "*batch d"], k: int) -> Float[Array, ""]:
    """Share of the energy of `x` in the `k` leading eigenvectors of its second moment.

    Raises:
        ValueError: `k` is not a whole number of at least 1.
    """
    return jnp.sum(_energy_shares(x)[-check_positive("k", k) :])


def effective_coordinates(x: Float[Array, "*batch d"]) -> Float[Array, ""]:
    """Exponential of the entropy of the coordinates' shares of the energy.

    d where all shares are equal. Least in the axes of PCA, where it equals `effective_rank`.
    """
    share = _coordinate_shares(x)
    return jnp.exp(entropy_nats(share))


def top_k_coordinates(x: Float[Array, "*batch d"], k: int) -> Float[Array, ""]:
    """Share of the energy of `x` in the `k` coordinates with the most energy.

    Largest in the axes of PCA, where it equals `top_k_energy`.

    Raises:
        ValueError: `k` is not a whole number of at least 1.
    """
    return jnp.sum(jnp.sort(_coordinate_shares(x))[-check_positive("k", k) :])


def _coordinate_shares(x: Float[Array, "*batch d"]) -> Float[Array, "d"]:
    (x,) = computed(x)
    energy = jnp.mean(jnp.square(x.reshape(-1, x.shape[-1])), 0)
    return energy / jnp.sum(energy)


def _energy_shares(x: Float[Array, "*batch d"]) -> Float[Array, "d"]:
    """Eigenvalues of the second moment in increasing order, over their sum."""
    (x,) = computed(x)
    rows = x.reshape(-1, x.shape[-1])
    moment = jnp.matmul(rows.T, rows, precision="highest") / rows.shape[0]
    values = jnp.maximum(jnp.linalg.eigvalsh(moment), 0)
    return values / jnp.sum(values)
