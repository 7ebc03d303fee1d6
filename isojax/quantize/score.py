"""Scores of texts by quantized models."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from isojax import models
from isojax.models import LanguageModel, ModelConfig, Reference, Scores, forward, token_scores
from isojax.models.inputs import check_tokens
from isojax.quantize.quantize import unquantized
from isojax.quantize.quantized import Origin, Quantized
from isojax.quantize.texts import LENGTH, token_windows


def reference(model: LanguageModel, texts: Any, *, length: int = LENGTH) -> Reference:
    """The reference of `score`: hidden states of the unquantized model on texts.

    Args:
        model: unquantized.
        texts: the texts of `score`; see `token_windows`.
        length: tokens per window, for texts that are not windows.

    Raises:
        ValueError: as `forward` and `token_windows`.
    """
    windows = token_windows(model.tokenizer, texts, length)
    check_tokens(model.config, windows, least=1)
    read = jax.jit(_hidden, static_argnames="config")
    hidden = [
        np.asarray(read(model.params, model.config, jnp.asarray(ids)[None])) for ids in windows
    ]
    head = {"head": model.params["head"]} if "head" in model.params else None
    head = head or {"embedding": model.params["embedding"]}
    return Reference(np.concatenate(hidden), head, windows)  # pyright: ignore[reportArgumentType]


def score(
    model: LanguageModel | Quantized,
    texts: Any,
    reference: Reference | None = None,
    *,
    length: int = LENGTH,
    chunk: int = 256,
) -> Scores:
    """Scores of each token but the first of texts; see `token_scores`.

    With a cache in codes, every token reads the codes, from the first token of its window on. Each
    window runs through one program, compiled once for all models of one structure.

    Args:
        model: a quantized model, or a loaded one.
        texts: independent windows of token ids [n, t], or strings; see `token_windows`.
        reference: of the same texts; None for only the likelihood.
        length: tokens per window, for texts that are not windows.
        chunk: tokens whose logits are held at once.

    Returns:
        Arrays [n, t - 1]; `summary` reduces them to scalars.

    Raises:
        ValueError: as `token_scores` and `token_windows`.
    """
    windows = token_windows(tokenizer_of(model), texts, length)
    bare = running(model)
    check_tokens(bare.config, windows, least=2)
    if reference is not None and len(reference.hidden) != len(windows):
        raise ValueError(
            f"reference must be of the {len(windows)} windows, got {len(reference.hidden)}."
        )
    kept = None if reference is None else reference.tokens
    if kept is not None and not np.array_equal(kept, windows):
        raise ValueError("reference must be of the same texts, got that of others.")
    found = []
    for i, ids in enumerate(windows):
        exact = None if reference is None else reference.window(i)
        found.append(_score(bare, jnp.asarray(ids)[None], exact, chunk))
    return jax.tree.map(lambda *a: jnp.concatenate(a), *found)


def summary(scores: Scores) -> dict[str, float]:
    """Scalars over all tokens of some scores; see `isojax.models.summary`."""
    return {name: float(value) for name, value in _summary(scores).items()}


_summary = jax.jit(models.summary)


def tokenizer_of(model: LanguageModel | Quantized) -> Any:
    """The tokenizer, or None where a quantized model has none."""
    return model.tokenizer if isinstance(model, LanguageModel) else model.origin.tokenizer


def running(model: LanguageModel | Quantized) -> Quantized:
    """The model without `origin`, for forward passes."""
    quantized = unquantized(model) if isinstance(model, LanguageModel) else model
    return dataclasses.replace(quantized, codes={}, codecs={}, shared={}, origin=Origin())


@functools.partial(jax.jit, static_argnames="chunk")
def _score(
    model: Quantized, ids: Integer[Array, "1 t"], reference: Reference | None, chunk: int
) -> Scores:
    cache = model.cache(1, ids.shape[1]) if model.stores else None
    return token_scores(
        model.params, model.config, ids, reference, hooks=model.hooks, cache=cache, chunk=chunk
    )


def _hidden(params: Any, config: ModelConfig, ids: Array) -> Float[Array, "1 t d"]:
    return forward(params, config, ids).hidden
