"""Optimization on the orthogonal group: dense matrices stay orthogonal while they are learned."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from isojax.transforms.dense import Dense
from isojax.transforms.exponential import newton_schulz

MOST = 0.5


def stiefel(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer `inner`, changed so that each `Dense` stays orthogonal.

    The gradient G of an orthogonal R [..., d, d] goes to `inner` as the skew-symmetric part of
    R^T G: the coordinates of the tangent in the frame that moves with R, a linear space in which
    momentum and Adam's moments need no transport. The update of `inner`, made skew again, is the A
    of a step R exp(A). This is Cayley SGD of Li et al. 2020 (arXiv 2002.01113), used by SpinQuant
    (Liu et al. 2024, arXiv 2405.16406), with the exponential as retraction: to fourth order, then
    one Newton-Schulz step to the nearest orthogonal matrix, which also removes the rounding of
    earlier steps. It uses only matrix products, fast in a batch; no plane turns by more than half a
    radian per step. Determinants keep their sign.

    Parameters that are no `Dense` pass to `inner` unchanged. `inner` must not decay weights.

    Example:
        >>> optimizer = stiefel(optax.adam(3e-3))
        >>> fit(loss, haar(key, 128), optimizer, key=key, steps=500)

    Raises:
        ValueError: on update, no parameters are passed.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("params must be given to update, got None.")
        updates = jax.tree.map(_tangent, updates, params, is_leaf=_is_dense)
        updates, state = inner.update(updates, state, params)
        return jax.tree.map(_step, updates, params, is_leaf=_is_dense), state

    return optax.GradientTransformation(inner.init, update)


def turn(
    r: Float[Array, "*batch d d"], a: Float[Array, "*batch d d"]
) -> Float[Array, "*batch d d"]:
    """R exp(A), orthogonal to rounding, for an orthogonal R and a skew-symmetric A.

    A is scaled down where the bound tr(A^4)^(1/4) on its largest angle exceeds half a radian.
    """
    eye, square = jnp.eye(r.shape[-1], dtype=r.dtype), _product(a, a)
    bound = jnp.sqrt(jnp.linalg.norm(square, axis=(-2, -1), keepdims=True))
    shorter = MOST / jnp.maximum(bound, MOST)
    a, square = shorter * a, shorter**2 * square
    exponential = eye + a + _product(square, eye / 2 + a / 6 + square / 24)
    return newton_schulz(_product(r, exponential))


def _is_dense(node: Any) -> bool:
    return isinstance(node, Dense)


def _tangent(gradient: Any, at: Any) -> Any:
    if not _is_dense(at):
        return gradient
    return Dense(_skew(_product(at.entries.swapaxes(-1, -2), gradient.entries)))


def _step(update: Any, at: Any) -> Any:
    if not _is_dense(at):
        return update
    return Dense(turn(at.entries, _skew(update.entries)) - at.entries)


def _skew(m: Array) -> Array:
    return (m - m.swapaxes(-1, -2)) / 2


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")
