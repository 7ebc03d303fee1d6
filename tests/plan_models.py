"""Small models that plans are carried out on, and what these compute."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import random_tokens, small_model

from isojax.models import LanguageModel, Site, forward, logits
from isojax.models.hooks import INPUTS
from isojax.quantize import Plan, calibrate, quantize, unquantized

KEY = jax.random.key(3)
TOKENS = random_tokens(2, 24)
FORMS = {
    "qwen2": {},
    "qwen3": {"qk_norm": True, "qkv_bias": False, "head_dim": 16, "tie_word_embeddings": False},
    "llama": {"qkv_bias": False, "o_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
}


@functools.cache
def model_of(form, layers=2):
    """Every leaf random: scales around one, biases too."""
    model = small_model(num_hidden_layers=layers, **FORMS[form])
    rng = np.random.default_rng(0)

    def noisy(path, x):
        name = jax.tree_util.keystr(path)
        if "kernel" in name or "embedding" in name or "head" in name:
            return x / 3
        middle = 1.0 if "scale" in name else 0.0
        return jnp.asarray(middle + 0.3 * rng.standard_normal(x.shape), jnp.float32)

    params = jax.tree_util.tree_map_with_path(noisy, model.params)
    return dataclasses.replace(model, params=params)


@functools.partial(jax.jit, static_argnames="config")
def _logits(quantized, config, ids):
    hidden = forward(quantized.params, config, ids, hooks=quantized.hooks).hidden
    return logits(quantized.params, hidden)


def logits_of(model, ids=TOKENS):
    made = unquantized(model) if isinstance(model, LanguageModel) else model
    made = dataclasses.replace(made, codes={}, shared={}, keys=None, values=None)
    return np.asarray(_logits(made, made.config, jnp.asarray(ids)), np.float64)


@functools.partial(jax.jit, static_argnames="config")
def _inputs(quantized, config, ids):
    sites = tuple(Site(f"input:{s}", i) for s in dict.fromkeys(INPUTS.values()) for i in range(2))
    hooks = quantized.hooks
    return forward(quantized.params, config, ids, hooks=hooks, capture=sites).captured


def inputs_of(quantized):
    return _inputs(quantized, quantized.config, jnp.asarray(TOKENS))


def made(form, text, key=KEY, base=None):
    plan, model = Plan.parse(text), model_of(form)
    return quantize(key, base or model, plan, calibrate(model, TOKENS, plan))


def refuses(words, form, text, base=None):
    with pytest.raises(ValueError) as caught:
        made(form, text, base=base)
    message = str(caught.value)
    assert words in message and "\n" not in message, message
