"""Transforms as matrices, so that models of most coordinates share one compiled program."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from isojax import Codec
from isojax.kvcache import Store
from isojax.quantize import Quantized
from isojax.transforms import Dense, Transform


def dense(transform: Transform, *sizes: int) -> Any:
    """An isometry as a matrix, or those of layers and heads; other transforms unchanged."""
    if transform.dim != transform.out_dim or not transform.isometry:
        return transform
    make: Callable[[Any], Any] = lambda t: Dense(t.matrix())  # noqa: E731
    for size in reversed(sizes):
        make = jax.vmap(make, axis_size=size)
    return make(transform)


def dense_cache(made: Quantized) -> Quantized:
    """The same model, the cache with dense matrices, and means that may be zero."""
    return dataclasses.replace(made, keys=_dense(made.keys), values=_dense(made.values, False))


@functools.partial(jax.jit, static_argnames="of_keys")
def _dense(store: Store | None, of_keys: bool = True) -> Store | None:
    if store is None:
        return None
    codec = store.codec
    layers, heads = jax.tree.leaves(store)[0].shape[:2]
    zeros = jnp.zeros((layers, heads, codec.transform.dim))
    transform = dense(codec.transform, layers, heads)
    offset = zeros if codec.offset is None else codec.offset
    mean = zeros if store.mean is None and of_keys else store.mean
    return dataclasses.replace(store, mean=mean, codec=Codec(transform, codec.quantizer, offset))
