"""Text of quantized models: what a text is alone, whatever stands beside it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from small_models import random_tokens, small_model

from isojax import models
from isojax.models import forward, logits
from isojax.quantize import Plan, calibrate, generate, quantize, unquantized

pytestmark = pytest.mark.slow

KEY = jax.random.key(11)
STEPS = 7
TEXTS = [random_tokens(3, 8)[i, :length] for i, length in enumerate((5, 8, 5))]
SHARED = "a scale for all numbers"
PLANS = {
    "exact": "",
    "online": "residual: hadamard; input: hadamard/absmax bits=4; weight: absmax bits=4",
    SHARED: "input: absmax:tensor bits=4; weight: haar/lloyd_max bits=3",
    "packed": "cache: haar/lloyd_max bits=3; queries_keys: hadamard",
    "sinks and recent": "cache:keys: hadamard/absmax bits=3 sinks=3 recent=4 offset=pre_rope; "
    "cache:values: minmax bits=2 recent=2",
    "pages": "cache:keys: minmax:channel bits=2 page=4 sinks=20; cache:values: minmax bits=2",
    "before": "cache:keys: haar/absmax bits=3 rope=before; input:down_proj[0]: hadamard",
}


@functools.cache
def model_of(name):
    model = small_model(num_hidden_layers=2)
    plan = Plan.parse(PLANS[name])
    return quantize(KEY, model, plan, calibrate(model, random_tokens(), plan))


@jax.jit
def best(model, ids):
    """The most likely token after each of a text, all read in one call."""
    out = forward(model.params, model.config, ids, cache=model.cache(1, 20), hooks=model.hooks)
    return jnp.argmax(logits(model.params, out.hidden[0]), axis=-1)


@pytest.mark.parametrize("name", PLANS)
def test_each_text_is_what_it_is_alone(name):
    model = model_of(name)
    texts = (
        TEXTS if name in ("exact", "pages") else TEXTS[::2]
    )  # each length has a program of its own
    together = generate(model, texts, STEPS)
    assert together.shape == (len(texts), STEPS)
    for text, tokens in zip(texts, together, strict=True):
        assert_array_equal(generate(model, [text], STEPS)[0], tokens)
    assert len(np.unique(together)) > STEPS  # no model that says the same whatever it reads


@pytest.mark.parametrize("name", [n for n in PLANS if n != SHARED])
def test_each_token_is_the_most_likely_one_after_those_before_it(name):
    """Read in one call; which would give a scale that all numbers share other numbers."""
    model = model_of(name)
    for text, tokens in zip(TEXTS[::2], generate(model, TEXTS[::2], STEPS), strict=True):
        want = best(model, jnp.concatenate([text, tokens[:-1]])[None])
        assert_array_equal(tokens, np.asarray(want)[len(text) - 1 :])


@pytest.mark.parametrize("name", ["exact", "online"])
def test_all_that_follows_an_end_is_that_end(name):
    model = model_of(name)
    free = generate(model, TEXTS, STEPS)
    ends = [int(free[0, 2]), int(free[1, 0])]
    for end in (ends, ends[0], np.int32(ends[0])):
        allowed = np.atleast_1d(end)
        for before, after in zip(free, generate(model, TEXTS, STEPS, end=end), strict=True):
            at = np.flatnonzero(np.isin(before, allowed))
            first = at[0] if len(at) else STEPS - 1
            assert_array_equal(after[: first + 1], before[: first + 1])
            assert (after[first:] == after[first]).all()


def test_an_end_in_a_prompt_ends_nothing():
    model = model_of("exact")
    end = int(TEXTS[0][-1])
    free = generate(model, TEXTS[:1], 1)
    assert free[0, 0] != end
    assert_array_equal(generate(model, TEXTS[:1], 1, end=end), free)


def test_a_model_as_loaded_generates_what_it_does_in_one_batch():
    model = small_model(num_hidden_layers=2)
    ids = random_tokens(3, 8)
    cache = models.empty_cache(model.config, 3, 8 + STEPS)
    want, _ = models.generate(model.params, model.config, jnp.asarray(ids), STEPS, cache)
    assert_array_equal(generate(model, ids, STEPS), want)
    assert_array_equal(generate(unquantized(model), list(ids), STEPS), want)


def test_bfloat16_models_generate():
    model = small_model(num_hidden_layers=2)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params)
    plan = Plan.parse("cache: haar/absmax bits=4; input: hadamard/absmax bits=4")
    made = quantize(KEY, dataclasses.replace(model, params=params), plan)
    tokens = generate(made, TEXTS, STEPS)
    assert ((tokens >= 0) & (tokens < model.config.vocab_size)).all()


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([], "prompts must be one or more texts"),
        ([[[1, 2]]], r"rows of shape \[\(1, 2\)\]"),
        ([[1, 2], []], "at least one"),
        ([[1, 300]], "tokens must be from 0 to 299"),
        ([[1.0]], "tokens must be integers"),
    ],
)
def test_prompts_that_are_no_texts_are_refused(prompts, words):
    with pytest.raises(ValueError, match=words):
        generate(model_of("exact"), prompts, 2)


def test_texts_beyond_the_window_are_refused():
    model = small_model(
        num_hidden_layers=2, architecture="mistral", qkv_bias=False, sliding_window=9
    )
    assert generate(model, [[1, 2, 3]], 7).min() >= 0
    with pytest.raises(ValueError, match="sliding_window=9"):
        generate(model, [[1, 2, 3]], 8)
