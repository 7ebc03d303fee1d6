"""Checks of the inputs of a decoder: tokens, and the cache that they are appended to."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Int, Integer

from isojax.kvcache import Cache, new_cache
from isojax.models.config import ModelConfig


def check_inputs(config: ModelConfig, tokens: Any, cache: Cache | None) -> None:
    """Refuse tokens and caches that do not belong to the model.

    Shapes are always known. Token ids are checked where they are concrete; where they are traced,
    the decoder returns NaN for texts with an id out of range.

    Raises:
        ValueError: there is no text or an empty one, a token is out of range, the text is longer
            than the window of the model, or the cache is of another model or batch or too small.
    """
    check_tokens(config, tokens, least=1)
    if cache is not None:
        _check_cache(config, len(tokens), cache)
        check_room(cache, tokens.shape[1])
    check_window(config, tokens.shape[1], cache)


def check_tokens(config: ModelConfig, tokens: Any, least: int) -> None:
    """Raise `ValueError` unless texts have at least `least` tokens, each below `vocab_size`."""
    if not isinstance(tokens, jax.Array | np.ndarray):
        raise ValueError(f"tokens must be an array, got {type(tokens).__name__}.")
    shape = tokens.shape
    if len(shape) != 2 or shape[0] < 1 or shape[1] < least:
        raise ValueError(
            f"tokens must have shape [texts, tokens], at least one text of at least {least} "
            f"token{'s' * (least > 1)}; got shape {shape}."
        )
    if isinstance(tokens, Tracer):
        return
    numbers = np.asarray(tokens)
    if not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(f"tokens must be integers, got dtype {numbers.dtype}.")
    for number in (int(numbers.min()), int(numbers.max())):
        if not 0 <= number < config.vocab_size:
            raise ValueError(
                f"tokens must be from 0 to {config.vocab_size - 1} (vocab_size="
                f"{config.vocab_size}), got {number}."
            )


def known_tokens(
    tokens: Integer[Array | np.ndarray, "*b"], size: int
) -> tuple[Bool[Array, "*b"], Int[Array, "*b"]]:
    """The mask of tokens from 0 to `size` - 1, and the tokens with 0 in place of the others.

    In 32 bits or more: integers of 8 or 16 do not hold the size of a vocabulary.
    """
    wide = jnp.asarray(tokens, jnp.promote_types(tokens.dtype, jnp.int32))
    known = (wide >= 0) & (wide < size)
    return known, jnp.where(known, wide, 0)


def check_window(config: ModelConfig, tokens: int, cache: Cache | None) -> None:
    """Raise `ValueError` if `tokens` more tokens exceed the window of the model."""
    end = tokens if cache is None else tokens + (stored_tokens(cache) or 0)
    window = config.sliding_window
    if window is not None and end > window:
        raise ValueError(
            f"tokens must be at most sliding_window={window} with those in the cache: attention is "
            f"over the whole text; got {end}."
        )


def check_room(cache: Cache, tokens: int) -> None:
    """Raise `ValueError` if the cache has no room for `tokens` more tokens."""
    stored = stored_tokens(cache) or 0
    if stored + tokens > cache.slots:
        held = f" after the {stored} that it holds" if stored else ""
        raise ValueError(
            f"the cache must have room for {tokens} tokens{held}, got slots={cache.slots}."
        )


def stored_tokens(cache: Cache) -> int | None:
    """Number of tokens that a cache holds, None where it is traced."""
    return None if isinstance(cache.length, Tracer) else int(cache.length)


def _check_cache(config: ModelConfig, batch: int, cache: Cache) -> None:
    """Raise `ValueError` unless the cache has the shapes for this model and batch."""

    def stacked(cache: Cache) -> Cache:
        layers = cache.layers
        if isinstance(layers, tuple):
            layers = jax.tree.map(lambda *parts: jnp.stack(parts), *layers)
        return Cache(layers, cache.length)

    def empty(stores: list[Any]) -> Cache:
        return new_cache(
            layers=config.num_hidden_layers, batch=batch, slots=cache.slots,
            kv_heads=config.num_key_value_heads, head_dim=config.head_dim,
            keys=stores[0], values=stores[1], rotated=given.layers.rotated,
        )  # fmt: skip

    given: Any = jax.eval_shape(stacked, cache)
    sides = (given.layers.keys, given.layers.values)
    want = jax.eval_shape(empty, [getattr(side, "store", None) for side in sides])
    for got, wanted in zip(jax.tree.leaves(given), jax.tree.leaves(want), strict=True):
        if got.shape != wanted.shape:
            raise ValueError(
                f"the cache must be of this model and batch: batch={batch}, layers="
                f"{config.num_hidden_layers}, kv_heads={config.num_key_value_heads}, head_dim="
                f"{config.head_dim}; got an array of shape {got.shape} in place of {wanted.shape}."
            )
