"""The likelihood that a decoder gives to a text."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from isojax._core.checks import check_positive
from isojax.kvcache import Cache
from isojax.models.config import ModelConfig
from isojax.models.decoder import Params, forward, logits
from isojax.models.hooks import Hooks
from isojax.models.inputs import check_tokens


def token_nll(
    params: Params,
    config: ModelConfig,
    tokens: Int[Array, "b t"],
    hooks: Hooks = Hooks(),  # noqa: B008
    chunk: int = 256,
    cache: Cache | None = None,
) -> Float[Array, "b t-1"]:
    """Negative log-likelihood of every token but the first, in nats, computed in fp32.

    Logits are made for `chunk` tokens at once and never held for a whole window, so memory beyond
    the forward pass is [chunk, vocab]. The mean over a text, exponentiated, is its perplexity.

    Args:
        params: the tree of `init_params`.
        config: static.
        tokens: texts of at least two tokens; hooks see all of them. Where they are traced, a
            text with a number out of range gives NaN.
        hooks: as for `forward`.
        chunk: tokens a step; static.
        cache: read the tokens through it, from an empty one: with a packed cache this is what
            its codes make of the likelihood.

    Raises:
        ValueError: `chunk` is not a whole number of at least 1, a text has fewer than two tokens
            or one out of range, or the cache does not fit (see `forward`).
    """
    check_tokens(config, tokens, least=2)
    hidden = forward(params, config, tokens, hooks=hooks, cache=cache).hidden[:, :-1]

    def nll(hidden: Array, targets: Array) -> Array:
        scores = logits(params, hidden)
        known = (targets >= 0) & (targets < config.vocab_size)
        places = jnp.where(known, targets, 0)[:, None]
        target = jnp.take_along_axis(scores, places, axis=-1)[:, 0]
        return jnp.where(known, jax.nn.logsumexp(scores, axis=-1) - target, jnp.nan)

    return _by_chunks(nll, chunk, hidden, tokens[:, 1:])


def token_kl(
    params: Params,
    config: ModelConfig,
    hidden: Float[Array, "b t width"],
    tokens: Int[Array, "b t"],
    hooks: Hooks = Hooks(),  # noqa: B008
    chunk: int = 256,
) -> Float[Array, "b t"]:
    """Kullback-Leibler divergence of what is predicted with `hooks` from what `hidden` predicts.

    KL(p || q) after every token, in nats, p by `hidden` and q with hooks: the loss of learning a
    quantized model from itself (Liu et al. 2023, LLM-QAT, arXiv 2305.17888). In fp32. Gradients
    reach what the hooks close over, and logits are computed again for them rather than kept.

    Args:
        params: the tree of `init_params`, of both.
        config: static.
        hidden: what `forward` returns for the tokens without hooks.
        tokens: texts.
        hooks: as for `forward`.
        chunk: tokens a step; static.

    Raises:
        ValueError: `hidden` is not of these tokens, or `chunk` not a whole number of at least 1.
    """
    own = forward(params, config, tokens, hooks=hooks).hidden
    if hidden.shape != own.shape:
        raise ValueError(f"hidden must have shape {own.shape}, got {hidden.shape}.")

    @jax.checkpoint
    def kl(exact: Array, own: Array) -> Array:
        p, q = (jax.nn.log_softmax(logits(params, h)) for h in (exact, own))
        return jnp.sum(jnp.exp(p) * (p - q), axis=-1)

    return _by_chunks(kl, chunk, hidden, own)


def _by_chunks(f: Callable[..., Array], chunk: int, *parts: Array) -> Array:
    """`f` of rows of the parts [b, t, ...], `chunk` of them at once: [b, t]."""
    batch, length = parts[0].shape[:2]
    total = batch * length
    steps = -(-total // check_positive("chunk", chunk))

    def split(part: Array) -> Array:
        rows = part.reshape(total, *part.shape[2:])
        pads = [(0, steps * chunk - total), *[(0, 0)] * (rows.ndim - 1)]
        return jnp.pad(rows, pads).reshape(steps, chunk, *rows.shape[1:])

    values = jax.lax.map(lambda rows: f(*rows), tuple(map(split, parts)))
    return values.reshape(-1)[:total].reshape(batch, length)
