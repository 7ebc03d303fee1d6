"""Fits for one place: codecs, rounded weights, stores; compiled programs that layers share."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax._core.samples import Samples, conjugated
from isojax.codec import Codec
from isojax.quantize.parts import NORMS, Cached, Weight
from isojax.quantize.quantized import layer_of
from isojax.quantize.stats import VECTORS
from isojax.quantizers import Codes
from isojax.recipes import Recipe

MOST = 2**15  # vectors of the residual stream to fit coordinates on


def rounded(
    key: Array, rows: Float[Array, "o i"], moment: Float[Array, "i i"] | None, part: Weight
) -> tuple[Codec, Codes]:
    """The codec of the rows of a weight, and their codes; see `decoded`.

    Args:
        key: of the coordinates.
        rows: rows of the weight, along the input.
        moment: of the input, the metric of errors; None for the identity.
        part: of the plan.
    """
    return (_rounded if concrete(part) else _round)(key, rows, moment, part)


def _round(key: Array, rows: Array, moment: Any, part: Weight) -> tuple[Codec, Codes]:
    codec = part.recipe.fit(key, Samples(rows, moment), part.bits)
    if moment is not None:
        moment = conjugated_by(codec.transform.dual, moment)
    return codec, part.rounding(codec.transform.apply(rows).T, moment, codec.quantizer)


_rounded = functools.partial(jax.jit, static_argnames="part")(_round)


@jax.jit
def decoded(codec: Codec, codes: Codes) -> Float[Array, "o i"]:
    """The rows of a weight from their codes; one program, so that results are bit-identical."""
    return codec.decode(codes)


def fitted(key: Array, samples: Samples, recipe: Recipe, bits: Any, heads: bool = False) -> Codec:
    """The codec of a recipe, or of all heads, with keys and samples that lead with heads."""
    return (_fit_compiled if concrete(recipe) else _fit)(key, samples, recipe, bits, heads)


def _fit(key: Array, samples: Samples, recipe: Recipe, bits: Any, heads: bool) -> Codec:
    def one(key: Array, samples: Samples) -> Codec:
        return recipe.fit(key, samples, bits)

    return (jax.vmap(one) if heads else one)(key, samples)


_fit_compiled = functools.partial(jax.jit, static_argnames=("recipe", "bits", "heads"))(_fit)


def fitted_store(key: Array, part: Cached, x: Array, frequency: Any, metric: Any) -> Any:
    """The store of keys or values of one layer, fitted on vectors [windows, t, kv_heads, d]."""
    return (_store_compiled if concrete(part) else _make_store)(key, x, frequency, metric, part)


def _make_store(key: Array, x: Array, frequency: Any, metric: Any, part: Cached) -> Any:
    metric = None if metric is None else metric[None]
    store = layer_of(part.recipe.fit(key, x[None], part.bits, frequency, metric), 0)
    codes = jax.eval_shape(lambda c, x: layer_of(c, 0).encode(x), store.codec, x[0, :1, 0])
    if codes.bits is None:
        levels = part.recipe.recipe.levels
        raise ValueError(f"levels of a cache must have a fixed number of bits, got {levels}.")
    return store


_store_compiled = functools.partial(jax.jit, static_argnames="part")(_make_store)


conjugated_by = jax.jit(conjugated)


def concrete(tree: Any) -> bool:
    """Whether numbers that may be traced are Python numbers, constants of a program."""
    return all(isinstance(leaf, int | float) for leaf in jax.tree.leaves(tree))


def pooled(stats: Any, size: int, needs: frozenset[str]) -> Samples:
    """Vectors of the residual stream after the norms, of all layers."""
    if not needs & VECTORS:
        return Samples(None, size=size)
    found = []
    for layer in stats:
        for site in NORMS:
            if f"samples:input:{site}" not in layer:
                raise ValueError(f"stats must hold samples:input:{site}: calibrate for this plan.")
            found.append(jnp.asarray(layer[f"samples:input:{site}"]).reshape(-1, size))
    x = jnp.concatenate(found)
    return Samples(x[:: -(-len(x) // MOST)])
