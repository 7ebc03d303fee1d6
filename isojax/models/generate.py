"""Greedy generation."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Integer

from isojax._core.checks import check_positive
from isojax.kvcache import Cache
from isojax.models.config import ModelConfig
from isojax.models.decoder import Params, forward, logits
from isojax.models.hooks import Hooks
from isojax.models.inputs import check_room, check_tokens, check_window


def generate(
    params: Params,
    config: ModelConfig,
    prompt: Integer[Array, "b t"],
    steps: int,
    cache: Cache,
    *,
    hooks: Hooks = Hooks(),  # noqa: B008
    end: Sequence[int] = (),
) -> tuple[Int[Array, "b steps"], Cache]:
    """The `steps` most likely tokens after a prompt, one after the other.

    Pure; wrap it in `jax.jit` with `config` and `steps` static.

    Args:
        params: the tree of `init_params`.
        config: of the model.
        prompt: token ids, all texts of one length.
        steps: tokens to generate.
        cache: plain or packed, with room for `t + steps - 1` tokens; if it holds some, the
            prompt comes after them.
        hooks: as for `forward`.
        end: tokens that end a text; all tokens after one of these repeat it.

    Returns:
        The tokens, and the cache with all but the last of them. A token is -1 where there is no
        prediction: a traced prompt with an id out of range, or a cache of traced length without
        room.

    Raises:
        ValueError: the prompt is empty or has a token out of range, the cache is of another model,
            or the cache or the window of the model has no room for that many tokens.
    """
    check_positive("steps", steps)
    check_tokens(config, prompt, least=1)
    check_room(cache, prompt.shape[1] + steps - 1)
    check_window(config, prompt.shape[1] + steps - 1, cache)

    def read(cache: Cache, tokens: Integer[Array, "b t"]) -> tuple[Cache, Int[Array, " b"]]:
        out = forward(params, config, tokens, cache=cache, hooks=hooks)
        assert out.cache is not None
        scores = logits(params, out.hidden[:, -1])
        known = ~jnp.isnan(scores).any(axis=-1)
        return out.cache, jnp.where(known, jnp.argmax(scores, axis=-1), -1)

    def step(carry: tuple[Cache, Array], _: None) -> tuple[tuple[Cache, Array], Array]:
        cache, token = read(carry[0], carry[1][:, None])
        ended = jnp.isin(carry[1], jnp.asarray(end, carry[1].dtype))
        token = jnp.where(ended, carry[1], token)
        return (cache, token), token

    cache, first = read(cache, prompt)
    (cache, _), rest = jax.lax.scan(step, (cache, first), None, length=steps - 1)
    return jnp.concatenate([first[:, None], rest.T], axis=1), cache
