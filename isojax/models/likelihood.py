"""The likelihood that a decoder gives to a text."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from isojax._core.checks import check_positive
from isojax.kvcache import Cache
from isojax.models.config import ModelConfig
from isojax.models.decoder import Params, forward, logits
from isojax.models.hooks import Hooks


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
        tokens: texts of at least two tokens; hooks see all of them.
        hooks: as for `forward`.
        chunk: tokens a step; static.
        cache: read the tokens through it, from an empty one: with a packed cache this is what
            its codes make of the likelihood.
    """
    check_positive("chunk", chunk)
    hidden = forward(params, config, tokens, hooks=hooks, cache=cache).hidden[:, :-1]
    batch, length, width = hidden.shape
    total = batch * length
    steps = -(-total // chunk)
    pad = steps * chunk - total
    rows = jnp.pad(hidden.reshape(total, width), ((0, pad), (0, 0)))
    targets = jnp.pad(tokens[:, 1:].reshape(total), (0, pad))

    def nll(step: tuple[Array, Array]) -> Array:
        rows, targets = step
        scores = logits(params, rows)
        target = jnp.take_along_axis(scores, targets[:, None], axis=-1)[:, 0]
        return jax.nn.logsumexp(scores, axis=-1) - target

    values = jax.lax.map(nll, (rows.reshape(steps, chunk, width), targets.reshape(steps, chunk)))
    return values.reshape(-1)[:total].reshape(batch, length)
