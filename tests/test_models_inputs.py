"""What `forward`, `generate` and the likelihoods say to tokens and caches that do not fit."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import random_tokens, small_config, small_model, tokenizer

from isojax import Codec, quantizers, transforms
from isojax.kvcache import store
from isojax.models import (
    Reference,
    capture_tensors,
    empty_cache,
    encode,
    forward,
    generate,
    token_kl,
    token_nll,
    token_scores,
    unstack,
)
from isojax.models.inputs import check_tokens

MODEL = small_model(num_hidden_layers=2)
PARAMS, CONFIG = MODEL.params, MODEL.config
TOKENS = jnp.asarray(random_tokens(2, 12))


def with_token(number):
    return jnp.where(jnp.arange(12) == 5, jnp.int32(number), TOKENS)


def cache(batch=2, slots=32, config=CONFIG, packed=False):
    if not packed:
        return empty_cache(config, batch, slots)
    shape = (config.num_hidden_layers, config.num_key_value_heads)
    keys = jax.random.split(jax.random.key(0), shape)
    make = jax.vmap(jax.vmap(lambda key: Codec(transforms.haar(key, 8), quantizers.absmax(4))))
    kept = store(make(keys))
    return empty_cache(config, batch, slots, keys=kept, values=kept)


GENERATE = jax.jit(generate, static_argnums=(1, 3))
APPEND = jax.jit(lambda tokens, cache: forward(PARAMS, CONFIG, tokens, cache=cache).cache)
CALLS = {
    "forward": lambda tokens: forward(PARAMS, CONFIG, tokens).hidden,
    "token_nll": lambda tokens: token_nll(PARAMS, CONFIG, tokens),
    "token_kl": lambda tokens: token_kl(PARAMS, CONFIG, jnp.zeros((*tokens.shape, 32)), tokens),
    "token_scores": lambda tokens: (
        token_scores(PARAMS, CONFIG, tokens, Reference(jnp.zeros((*tokens.shape, 32)), PARAMS)).nll
    ),
    "generate": lambda tokens: generate(PARAMS, CONFIG, tokens, 2, cache(max(len(tokens), 1)))[0],
    "capture": lambda tokens: capture_tensors(MODEL, tokens[0], ["key:0"])["key:0"],
}
JITTED = {name: jax.jit(call) for name, call in CALLS.items()}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("number", [-1, 300, 2**31 - 1, -(2**31)])
def test_a_token_out_of_range_is_an_error_where_it_is_known(call, number):
    with pytest.raises(ValueError, match=f"tokens must be from 0 to 299 .*got {number}"):
        CALLS[call](with_token(number))


@pytest.mark.parametrize("number", [-1, 300, 2**31 - 1, -(2**31)])
def test_a_token_out_of_range_is_nan_where_it_is_traced(number):
    tokens = TOKENS.at[1, 5].set(number)
    read, nll, say = (JITTED[name] for name in ("forward", "token_nll", "generate"))
    hidden = read(tokens)
    assert np.isnan(hidden[1, 5:]).all()
    np.testing.assert_array_equal(hidden[0], read(TOKENS)[0])
    assert np.isnan(nll(tokens)[1]).any() and np.isfinite(nll(tokens)[0]).all()
    last = TOKENS.at[:, -1].set(number)  # a target that is never read
    assert np.isnan(nll(last)[:, -1]).all()
    said = say(tokens)
    assert (said[1] == -1).all() and (said[0] >= 0).all()


@pytest.mark.parametrize("call", CALLS)
def test_no_text_and_an_empty_text_are_refused(call):
    for shape in ((1, 0), (0, 12), (0, 0)):
        if call == "capture" and shape[0] == 0:
            continue
        with pytest.raises(ValueError, match="tokens must have shape .* got shape"):
            CALLS[call](jnp.zeros(shape, jnp.int32))


def test_an_empty_text_has_no_tokens_and_one_token_no_likelihood():
    ids = encode(tokenizer(), "")
    assert ids.shape == (0,) and ids.dtype == np.int32
    with pytest.raises(ValueError, match=r"of at least 1 token; got shape \(1, 0\)"):
        forward(PARAMS, CONFIG, jnp.asarray(ids)[None])
    with pytest.raises(ValueError, match=r"of at least 2 tokens; got shape \(1, 1\)"):
        token_nll(PARAMS, CONFIG, TOKENS[:1, :1])


@pytest.mark.parametrize("tokens", [np.zeros((1, 4)), np.zeros(4, int), np.zeros((1, 1, 4), int)])
def test_tokens_must_be_integers_in_two_axes(tokens):
    with pytest.raises(ValueError, match="tokens must (be integers|have shape)"):
        check_tokens(CONFIG, tokens, least=1)
    with pytest.raises(ValueError, match="tokens must be an array, got list"):
        check_tokens(CONFIG, tokens.tolist(), least=1)


@pytest.mark.parametrize("packed", [False, True])
def test_a_cache_of_another_batch_or_model_is_refused(packed):
    for other in (
        cache(batch=1, packed=packed),
        cache(config=small_config(num_hidden_layers=3), packed=packed),
        cache(config=small_config(num_hidden_layers=2, num_key_value_heads=4), packed=packed),
    ):
        with pytest.raises(ValueError, match="layers|batch=2"):
            forward(PARAMS, CONFIG, TOKENS, cache=other)
    for call in (forward, functools.partial(_generate, steps=1), token_nll):
        with pytest.raises(ValueError, match="layers|batch=2"):
            jax.eval_shape(lambda t, c, call=call: call(PARAMS, CONFIG, t, cache=c), TOKENS, other)


def test_the_cache_of_another_model_is_refused_where_layers_are_apart_too():
    apart = unstack(PARAMS)
    for other in (cache(batch=1), cache(config=small_config(num_hidden_layers=3))):
        with pytest.raises(ValueError, match="the cache must be of this model and batch"):
            forward(apart, CONFIG, TOKENS, cache=other.unstack())
    with pytest.raises(ValueError, match="room for 12 tokens.* got slots=8"):
        forward(apart, CONFIG, TOKENS, cache=cache(slots=8).unstack())


def _generate(params, config, tokens, *, cache, steps):
    return generate(params, config, tokens, steps, cache)


def test_a_cache_with_other_heads_than_the_model_names_them():
    other = cache(config=small_config(num_hidden_layers=2, num_key_value_heads=4))
    with pytest.raises(ValueError, match=r"kv_heads=2, head_dim=8; got an array of shape"):
        forward(PARAMS, CONFIG, TOKENS, cache=other)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("traced", [False, True])
def test_more_tokens_than_a_cache_has_room_for_are_refused(packed, traced):
    small = cache(slots=8, packed=packed)
    for call in (forward, functools.partial(_generate, steps=1), token_nll):
        run = functools.partial(call, PARAMS, CONFIG)
        with pytest.raises(ValueError, match="room for 12 tokens.* got slots=8"):
            if traced:
                jax.eval_shape(lambda t, c, run=run: run(t, cache=c), TOKENS, small)
            else:
                run(TOKENS, cache=small)


def test_generating_goes_on_from_a_cache_and_marks_what_has_no_room():
    whole, full = GENERATE(PARAMS, CONFIG, TOKENS, 2, cache(slots=16))
    started = APPEND(TOKENS[:, :7], cache(slots=16))
    again, _ = GENERATE(PARAMS, CONFIG, TOKENS[:, 7:], 2, started)
    np.testing.assert_array_equal(again, whole)
    assert int(full.length) == 13
    said = "room for 6 tokens after the 13 that it holds, got slots=16"
    with pytest.raises(ValueError, match=said):
        generate(PARAMS, CONFIG, TOKENS[:, :5], 2, full)
    with pytest.raises(ValueError, match=said.replace("6", "5", 1)):
        forward(PARAMS, CONFIG, TOKENS[:, :5], cache=full)
    late, _ = GENERATE(PARAMS, CONFIG, TOKENS[:, :5], 2, full)  # where the length is traced
    assert (late == -1).all()


def test_a_text_beyond_the_window_is_refused_or_nan():
    config = dataclasses.replace(CONFIG, sliding_window=12)
    with pytest.raises(ValueError, match="at most sliding_window=12 .* got 13"):
        forward(PARAMS, config, jnp.asarray(random_tokens(2, 13)))
    step = jax.jit(lambda tokens, cache: forward(PARAMS, config, tokens, cache=cache))
    out = step(TOKENS, cache(slots=24))
    assert np.isfinite(out.hidden).all()
    assert np.isnan(step(TOKENS, out.cache).hidden).all()
    with pytest.raises(ValueError, match="at most sliding_window=12 .* got 13"):
        forward(PARAMS, config, TOKENS[:, :1], cache=out.cache)
