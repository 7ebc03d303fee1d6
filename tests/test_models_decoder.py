"""Laws of the decoder that need no other implementation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import rounded_products
from small_models import random_tokens, small_config, small_model

from isojax.models import (
    Hooks,
    Site,
    capture_tensors,
    empty_cache,
    forward,
    param_shapes,
    token_nll,
    unstack,
    weight,
)

MODEL = small_model()
TOKENS = jnp.asarray(random_tokens())


@functools.partial(jax.jit, static_argnames=("hooks", "capture"))
def run(tokens=TOKENS, cache=None, hooks=Hooks(), capture=()):  # noqa: B008
    return forward(MODEL.params, MODEL.config, tokens, cache=cache, hooks=hooks, capture=capture)


PLAIN = run()


def test_products_have_all_digits_on_gpus_too():
    read = functools.partial(token_nll, MODEL.params, MODEL.config)
    assert rounded_products(read, TOKENS) == []
    loss = jax.grad(lambda params: token_nll(params, MODEL.config, TOKENS).sum())
    assert rounded_products(loss, MODEL.params) == []
    cache = empty_cache(MODEL.config, 2, 40)
    assert rounded_products(lambda cache: read(TOKENS, cache=cache), cache) == []


def close(x, y, tolerance=1e-4):
    return np.allclose(x, y, rtol=tolerance, atol=tolerance * np.abs(y).max())


@pytest.mark.parametrize("lengths", [(40,), (39, 1), (13, 13, 14), (37, 1, 1, 1)])
def test_decoding_with_a_cache_equals_one_pass(lengths):
    cache = empty_cache(MODEL.config, batch=2, slots=48)
    parts, start = [], 0
    for length in lengths:
        out = run(TOKENS[:, start : start + length], cache)
        parts.append(out.hidden)
        start, cache = start + length, out.cache
    assert close(jnp.concatenate(parts, axis=1), PLAIN.hidden)
    assert int(cache.length) == 40


def test_layers_apart_decode_to_the_same_and_do_not_mix_with_stacked_ones():
    cache, apart = empty_cache(MODEL.config, batch=2, slots=48), unstack(MODEL.params)
    run_apart = jax.jit(lambda cache, tokens: forward(apart, MODEL.config, tokens, cache=cache))
    first = run_apart(cache.unstack(), TOKENS[:, :39])
    out = run_apart(first.cache, TOKENS[:, 39:])
    assert close(jnp.concatenate([first.hidden, out.hidden], axis=1), PLAIN.hidden)
    assert (out.cache.slots, out.cache.nbytes) == (cache.slots, cache.nbytes)
    with pytest.raises(ValueError, match="stacked"):
        forward(apart, MODEL.config, TOKENS, cache=cache)


def test_long_texts_go_by_in_blocks_without_a_seam():
    tokens = jnp.asarray(random_tokens(1, 600))
    cache = empty_cache(MODEL.config, batch=1, slots=600)
    first = run(tokens[:, :300], cache)
    second = run(tokens[:, 300:], first.cache)
    both = jnp.concatenate([first.hidden, second.hidden], axis=1)
    assert close(both, run(tokens).hidden)


def test_a_token_does_not_see_those_after_it():
    changed = run(TOKENS.at[:, 25:].set(7)).hidden
    np.testing.assert_allclose(changed[:, :25], PLAIN.hidden[:, :25], rtol=1e-5, atol=1e-5)
    assert not close(changed[:, 25:], PLAIN.hidden[:, 25:])


def test_identity_hooks_change_nothing():
    hooks = Hooks(
        activation=lambda name, layer, x: x,
        query=lambda layer, q: q,
        key=lambda layer, k: k,
        value=lambda layer, v: v,
        weight=lambda name, layer, w: w,
    )
    np.testing.assert_array_equal(run(hooks=hooks).hidden, PLAIN.hidden)


def test_zero_keys_and_zero_queries_both_make_attention_uniform():
    keys = run(hooks=Hooks(key=lambda layer, k: 0 * k)).hidden
    queries = run(hooks=Hooks(query=lambda layer, q: 0 * q)).hidden
    assert not close(keys, PLAIN.hidden)
    assert close(keys, queries)


def test_one_rotation_of_queries_and_keys_leaves_the_output():
    rotation = jax.random.orthogonal(jax.random.key(1), MODEL.config.head_dim)
    both = Hooks(query=lambda _, q: q @ rotation, key=lambda _, k: k @ rotation)
    assert close(run(hooks=both).hidden, PLAIN.hidden)
    assert not close(run(hooks=both._replace(query=None)).hidden, PLAIN.hidden)


def test_rotations_of_an_input_and_its_weights_cancel():
    width = {"input:q_proj": 32, "input:o_proj": 32, "input:gate_proj": 32, "input:down_proj": 64}
    reads = {
        "q_proj": "input:q_proj", "k_proj": "input:q_proj", "v_proj": "input:q_proj",
        "o_proj": "input:o_proj", "gate_proj": "input:gate_proj", "up_proj": "input:gate_proj",
        "down_proj": "input:down_proj",
    }  # fmt: skip
    # one rotation a layer, picked by the traced layer number
    stacks = {
        name: jax.random.orthogonal(jax.random.key(i), d, (3,))
        for i, (name, d) in enumerate(width.items())
    }

    def activation(name, layer, x):
        return x @ stacks[name][layer] if name in stacks else x

    def weight(name, layer, w):
        return stacks[reads[name]][layer].T @ w

    # twelve rotations and back; how near that comes depends on the processor
    turned = run(hooks=Hooks(activation=activation, weight=weight)).hidden
    assert close(turned, PLAIN.hidden, 3e-4)
    assert not close(run(hooks=Hooks(activation=activation)).hidden, PLAIN.hidden, 3e-4)


def test_a_hook_on_one_layer_acts_there_and_behind():
    hooks = Hooks(value=lambda layer, v: jnp.where(layer == 1, 0.0, 1.0) * v)
    sites = tuple(Site("hidden", layer) for layer in range(4))
    before, after = run(capture=sites).captured["hidden"], run(hooks=hooks, capture=sites).captured
    np.testing.assert_array_equal(after["hidden"][:2], before[:2])
    assert not close(after["hidden"][2], before[2])


def test_capture_shows_what_the_hooks_made():
    hooks = Hooks(key=lambda layer, k: jnp.full_like(k, layer))
    keys = run(hooks=hooks, capture=(Site("key", 2), Site("key", 1))).captured["key"]
    assert [float(k.min()) for k in keys] == [float(k.max()) for k in keys] == [1.0, 2.0]


def test_gradients_reach_what_hooks_close_over():
    def loss(scale):
        hooks = Hooks(value=lambda layer, v: v * scale[layer])
        return token_nll(MODEL.params, MODEL.config, TOKENS, hooks).mean()

    gradient = jax.jit(jax.grad(loss))(jnp.ones(3))
    assert np.isfinite(gradient).all() and (gradient != 0).all()


def test_the_program_does_not_grow_with_depth():
    def lines(layers):
        config = small_config(num_hidden_layers=layers)
        program = jax.make_jaxpr(lambda p: token_nll(p, config, TOKENS))(param_shapes(config))
        return len(str(program).splitlines())

    assert lines(2) == lines(8)


@pytest.mark.parametrize(
    ("tied", "dtype"), [(True, "float32"), (True, "bfloat16"), (False, "bfloat16")]
)
def test_likelihood_holds_neither_all_logits_nor_a_copy_of_the_head(tied, dtype):
    def memory(vocab):
        config = small_config(vocab_size=vocab, tie_word_embeddings=tied, num_hidden_layers=1)
        shapes = jax.tree.map(lambda x: x.update(dtype=jnp.dtype(dtype)), param_shapes(config))
        tokens = jax.ShapeDtypeStruct((1, 64), jnp.int32)
        nll = jax.jit(lambda p, t: token_nll(p, config, t, chunk=4))
        return nll.lower(shapes, tokens).compile().memory_analysis().temp_size_in_bytes

    chunk_of_logits = 4 * 50_000 * 4
    all_logits, smallest_head = 64 * 50_000 * 4, 50_000 * 32 * 2
    assert memory(50_000) - memory(300) < 3 * chunk_of_logits < min(all_logits, smallest_head)


def test_tensor_names_are_checked():
    tokens = np.arange(8, dtype=np.int32)
    for name, said in {
        "weight:wq:0": "must be one of q_proj",
        "weight:q_proj:3": "must be a number from 0 to 2",
        "hidden:4": "must be a number from 0 to 3",
        "logits": "must be one of hidden",
    }.items():
        with pytest.raises(ValueError) as caught:
            capture_tensors(MODEL, tokens, [name])
        assert name in str(caught.value) and said in str(caught.value)
    with pytest.raises(ValueError, match="layer must be from 0 to 2, got -1"):
        weight(MODEL.params, "q_proj", -1)
