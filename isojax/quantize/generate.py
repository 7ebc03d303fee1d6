"""Text of a model, quantized or as loaded."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from isojax import models
from isojax._core.checks import check_positive
from isojax.models import LanguageModel
from isojax.models.inputs import check_tokens
from isojax.quantize.quantized import Quantized
from isojax.quantize.score import running, tokenizer_of
from isojax.quantize.texts import token_prompts


def generate(
    model: LanguageModel | Quantized,
    prompts: Any,
    steps: int,
    *,
    end: Any = None,
) -> Int[np.ndarray, "n steps"]:
    """The `steps` most likely tokens after each prompt; see `isojax.models.generate`.

    Each text has a cache of its own and is read by itself, so that no scale is shared: its tokens
    are those that it has alone, save where rounding decides between two. Texts of one length go
    through one program, side by side; each length has a program of its own, since a cache in pages
    cannot hold what pads a text.

    Args:
        model: a quantized model, or one as loaded.
        prompts: token ids of each text, of any lengths, or strings; no mapping.
        steps: tokens to generate.
        end: a token that ends a text, or several, or None. All that follow it are the same token.

    Raises:
        ValueError: there are no prompts, one is empty, a token is out of range, or a text becomes
            longer than the window of the model.
    """
    check_positive("steps", steps)
    texts = token_prompts(tokenizer_of(model), prompts)
    if not texts or any(text.ndim != 1 for text in texts):
        shapes = [text.shape for text in texts]
        raise ValueError(f"prompts must be one or more texts [tokens], got shapes {shapes}.")
    bare = running(model)
    for text in texts:
        check_tokens(bare.config, text[None], least=1)
    ends = () if end is None else tuple(np.atleast_1d(end).tolist())
    found = np.zeros((len(texts), steps), np.int32)
    for length in sorted({len(text) for text in texts}):
        which = [i for i, text in enumerate(texts) if len(text) == length]
        ids = jnp.asarray(np.stack([texts[i] for i in which]), jnp.int32)
        found[which] = _generate(bare, ids, steps, ends)
    return found


@functools.partial(jax.jit, static_argnames=("steps", "end"))
def _generate(
    model: Quantized, prompts: Int[Array, "n t"], steps: int, end: tuple[int, ...]
) -> Int[Array, "n steps"]:
    sinks = (0 if side is None else side.sinks for side in (model.keys, model.values))
    slots = max(prompts.shape[1] + steps - 1, *sinks)
    cache = model.cache(1, slots, model.params["embedding"].dtype)

    def one(prompt: Int[Array, " t"]) -> Int[Array, " steps"]:
        tokens, _ = models.generate(
            model.params, model.config, prompt[None], steps, cache, hooks=model.hooks, end=end
        )
        return tokens[0]

    return jax.vmap(one)(prompts)
