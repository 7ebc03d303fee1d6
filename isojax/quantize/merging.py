"""Merging of transforms into the surrounding weights, and weights in other coordinates."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from isojax import learn
from isojax.transforms import Composed, Diagonal, Permutation, Transform
from isojax.transforms.base import chained
from isojax.transforms.value_scale import gathered


def split_merged(transform: Transform, site: str) -> tuple[list[Transform], Transform]:
    """The leading factors, which merge into the writer of the input, and the online rest."""
    kinds = (Diagonal, Permutation) if site == "down_proj" else (Diagonal,)

    def merges(factor: Transform) -> bool:
        return gathered(factor) is not None if site == "o_proj" else isinstance(factor, kinds)

    rest = list(transform.factors) if isinstance(transform, Composed) else [transform]
    merged = []
    while rest and merges(rest[0]):
        merged.append(rest.pop(0))
    return merged, chained(transform.dim, rest)


def check_fp16(place: str, transform: Transform) -> None:
    """Raise `ValueError` for a diagonal beyond fp16, in which scales and weights are stored."""
    if not isinstance(transform, Diagonal) or isinstance(transform.entries, Tracer):
        return
    size, kind = jnp.abs(transform.entries), jnp.finfo(jnp.float16)
    low, high = float(size.min()), float(size.max())
    if not (low >= kind.smallest_normal and high <= kind.max):
        raise ValueError(
            f"{place} must merge a diagonal of fp16's normal numbers, {kind.smallest_normal:.3g} "
            f"to {kind.max:.6g} in size, got one from {low:.3g} to {high:.3g}."
        )


def keeps_length(place: str, coordinates: Any, transform: Transform) -> None:
    """Raise `ValueError` for a padded transform, which cannot merge."""
    if transform.out_dim != transform.dim:
        raise ValueError(
            f"{place} must keep its length {transform.dim}, got {coordinates} to "
            f"{transform.out_dim}: choose blocks that divide it."
        )


@jax.jit
def read_through(transform: Transform, kernel: Float[Array, "i o"]) -> Float[Array, "i o"]:
    """The kernel for transformed inputs."""
    return transform.dual.apply(kernel.T).T


@jax.jit
def applied(transform: Transform | None, x: Array) -> Array:
    """`transform.apply(x)`, and `x` without one."""
    return x if transform is None else transform.apply(x)


@jax.jit
def applied_by_head(turn: Any, x: Float[Array, "w t g d"]) -> Float[Array, "w t g d"]:
    """The turn of each key head applied to its vectors; leaves lead with [kv_heads]."""
    return jax.vmap(lambda t, x: t.apply(x), (0, 2), 2)(turn, x)


@functools.partial(jax.jit, static_argnames=("groups", "dim"))
def output_moment(kernel: Float[Array, "i o"], groups: int, dim: int) -> Float[Array, "g d d"]:
    """W W^T of o_proj, a mean over the query heads of each key head: the metric of value errors."""
    by_head = kernel.reshape(groups, -1, dim, kernel.shape[-1])
    return jax.vmap(learn.second_moment)(by_head.swapaxes(-1, -2))


def by_head(x: Float[Array, "w t g d"]) -> Float[Array, "g n d"]:
    """The vectors of each key head."""
    return x.reshape(-1, *x.shape[2:]).swapaxes(0, 1)


@jax.jit
def reordered(codes: Any, permutation: Permutation) -> Any:
    """Codes of a weight [out, in] with its outputs permuted."""
    number = permutation.dim
    return jax.tree.map(
        lambda a: a[permutation.indices] if a.ndim > 1 and len(a) == number else a, codes
    )
