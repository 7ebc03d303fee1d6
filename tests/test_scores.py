"""Scores of a model beside its loss: by hand, by the oracle, and what they hold and cost."""

import functools

import jax
import jax.numpy as jnp
import kl_oracle as oracle
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from small_models import random_tokens, small_config, small_model

from isojax import Codec, quantizers, transforms
from isojax.kvcache import store
from isojax.models import (
    SUMMARY_UNITS,
    Hooks,
    Reference,
    Scores,
    empty_cache,
    fold_norms,
    forward,
    init_params,
    logits,
    param_shapes,
    reference,
    rotate_residual,
    summary,
    token_kl,
    token_scores,
)

MODEL = small_model(num_hidden_layers=2)
PARAMS, CONFIG = MODEL.params, MODEL.config
TOKENS = jnp.asarray(random_tokens(2, 24))
SCORE = jax.jit(token_scores, static_argnames=("config", "hooks", "chunk"))
REFER = jax.jit(reference, static_argnames="config")
SUMMARIZE = jax.jit(summary)
EXACT = REFER(PARAMS, CONFIG, TOKENS)


@functools.partial(jax.jit, static_argnames=("config", "hooks"))
def hidden(params, config, tokens, **own):
    return forward(params, config, tokens, **own).hidden


@jax.jit
def perturbed(params, size):
    """`params`, each leaf with noise of `size` times its rms."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    sizes = [size * jnp.sqrt(jnp.mean(jnp.square(x))) for x in leaves]
    return tree.unflatten([x + s * n for x, s, n in zip(leaves, sizes, noise, strict=True)])


def statistics(exact, params, own, tokens=TOKENS):
    """Those of the oracle, each [b, t - 1]."""
    both = (logits(exact.params, exact.hidden[:, :-1]), logits(params, own[:, :-1]))
    rows = (np.asarray(x).reshape(-1, x.shape[-1]) for x in both)
    found = oracle.token_statistics(*rows, np.asarray(tokens)[:, 1:].ravel())
    return {name: x.reshape(tokens.shape[0], -1) for name, x in found.items()}


def assert_agree(scores, want):
    want = want | {"delta_nll": want["nll"] - want["nll_base"]}
    for name in ("nll", "delta_nll", "kl", "dp"):
        atol = 1e-5 if name == "delta_nll" else 1e-6  # a difference of logarithms, each to 1e-6
        assert_allclose(getattr(scores, name), want[name], rtol=1e-4, atol=atol, err_msg=name)
    assert_array_equal(scores.same_top, want["same_top"])
    assert np.median(want["kl"]) > 1e-4 and 0 < np.mean(want["same_top"]) < 1
    whole = SUMMARIZE(scores)
    for name, value in oracle.summarize(want).items():
        if name in whole:
            assert_allclose(whole[name], value, rtol=1e-4, err_msg=name)


def test_equal_models_diverge_by_nothing():
    found = SCORE(PARAMS, CONFIG, TOKENS, EXACT)
    assert_allclose(found.kl, 0, atol=1e-9)
    assert_allclose(found.delta_nll, 0, atol=1e-9)
    assert_allclose(found.dp, 0, atol=1e-6)
    assert found.same_top.all()
    whole = SUMMARIZE(found)
    assert whole["same_top1"] == 1
    for name in ("kl_mean", "kl_median", "kl_p99", "kl_p999", "rms_dp"):
        assert abs(whole[name]) < 1e-6, name


def test_each_model_is_read_by_its_own_head():
    folded, config = fold_norms(PARAMS, CONFIG)
    turn = transforms.haar(jax.random.key(3), CONFIG.hidden_size)
    turned = rotate_residual(folded, config, turn)
    found = SCORE(turned, config, TOKENS, EXACT)
    assert_allclose(found.kl, 0, atol=1e-6)
    assert np.min(found.kl) > -1e-9
    wrong = SCORE(turned, config, TOKENS, EXACT._replace(params=turned))
    assert np.min(wrong.kl) > 0.1


@pytest.mark.parametrize(
    "p, q, kl, same_top, dp",
    [
        ([1 / 2, 1 / 4, 1 / 8, 1 / 8], [1 / 4, 1 / 4, 1 / 4, 1 / 4], np.log(2) / 4, True, 0),
        ([1 / 8, 1 / 2, 1 / 4, 1 / 8], [1 / 2, 1 / 4, 1 / 8, 1 / 8], np.log(2) / 2, False, -1 / 4),
        ([1, 1e-99, 1e-99, 1e-99], [1 / 2, 1 / 4, 1 / 8, 1 / 8], np.log(2), True, 1 / 4),
        ([1 / 2, 1 / 2, 1e-99, 1e-99], [1, 1e-99, 1e-9, 1e-9], np.log(1e99 / 4) / 2, True, -1 / 2),
    ],
)
def test_distributions_by_hand(p, q, kl, same_top, dp):
    """A model of no layers' effect that predicts q after every token, the right one being 1."""
    config = small_config(vocab_size=4, tie_word_embeddings=False, num_hidden_layers=1)
    params = jax.tree.map(jnp.zeros_like, init_params(jax.random.key(0), config))
    head = jnp.eye(config.hidden_size, 4)
    scale = jnp.zeros(config.hidden_size).at[:4].set(np.log(q))
    params |= {"head": head, "norm": {"scale": scale}, "embedding": jnp.ones((4, 32))}
    known = jnp.broadcast_to(jnp.asarray(np.log(p), jnp.float32), (1, 3, 4))
    tokens = jnp.ones((1, 3), jnp.int32)
    found = SCORE(params, config, tokens, Reference(known, {"head": jnp.eye(4)}))
    assert_allclose(found.nll, np.full((1, 2), -np.log(q[1])), rtol=1e-5)
    assert_allclose(found.kl, np.full((1, 2), kl), rtol=1e-5)
    assert_allclose(found.dp, np.full((1, 2), dp), atol=1e-6)
    assert (found.same_top == same_top).all()


@pytest.mark.parametrize(("tied", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_scores_are_the_oracle_s(tied, dtype):
    model = small_model(num_hidden_layers=2, tie_word_embeddings=tied)
    exact, params = (
        jax.tree.map(lambda x: x.astype(dtype), p)
        for p in (model.params, perturbed(model.params, 0.2))
    )
    base = REFER(exact, model.config, TOKENS)
    found = SCORE(params, model.config, TOKENS, base, chunk=7)
    assert found.nll.dtype == found.kl.dtype == found.dp.dtype == jnp.float32
    assert_agree(found, statistics(base, params, hidden(params, model.config, TOKENS)))


def coarse(name, layer, x):
    return jnp.round(4 * x) / 4 if name == "input:o_proj" else x


def packed_cache():
    shape = (CONFIG.num_hidden_layers, CONFIG.num_key_value_heads)
    keys = jax.random.split(jax.random.key(0), shape)
    make = jax.vmap(jax.vmap(lambda key: Codec(transforms.haar(key, 8), quantizers.absmax(4))))
    kept = store(make(keys))
    return empty_cache(CONFIG, *TOKENS.shape, keys=kept, values=kept)


@pytest.mark.parametrize(
    "own", [{"hooks": Hooks(activation=coarse)}, {"cache": packed_cache()}], ids=["hooks", "cache"]
)
def test_hooks_and_caches_are_seen_by_the_model_and_not_by_the_reference(own):
    found = SCORE(PARAMS, CONFIG, TOKENS, EXACT, **own)
    assert_agree(found, statistics(EXACT, PARAMS, hidden(PARAMS, CONFIG, TOKENS, **own)))


def test_vmap_scores_many_models_and_many_windows():
    models = [perturbed(PARAMS, size) for size in (0.1, 0.3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)

    def one(params, tokens, exact):
        return token_scores(params, CONFIG, tokens, exact, chunk=5)

    windows = (TOKENS[:, None], Reference(EXACT.hidden[:, None], PARAMS))
    over_models = jax.jit(jax.vmap(one, (0, None, None)))(stacked, TOKENS, EXACT)
    over_windows = jax.jit(jax.vmap(one, (None, 0, Reference(0, None))))(models[0], *windows)
    want = [SCORE(params, CONFIG, TOKENS, EXACT) for params in models]
    for name in Scores._fields:
        close = functools.partial(assert_allclose, rtol=1e-4, atol=1e-6, err_msg=name)
        close(getattr(over_models, name), jnp.stack([getattr(x, name) for x in want]))
        close(getattr(over_windows, name)[:, 0], getattr(want[0], name))


def test_small_divergences_over_many_tokens_are_right_and_not_negative():
    config = small_config(vocab_size=50_000, num_hidden_layers=1)
    params = jax.tree.map(lambda x: 5 * x, init_params(jax.random.key(0), config))
    tokens = TOKENS[:1, :6]
    exact = REFER(params, config, tokens)
    for size in (1e-5, 1e-4, 1e-3):  # from 1e-9 nats, far below the rounding of log-probabilities
        near = perturbed(params, size)
        kl = SCORE(near, config, tokens, exact).kl
        want = statistics(exact, near, hidden(near, config, tokens), tokens)["kl"]
        assert_allclose(kl, want, rtol=1e-2)
        assert np.min(kl) >= 0


def test_the_gradient_of_the_divergence_is_that_of_its_definition():
    start = perturbed(PARAMS, 0.1)

    def defined(params):
        hidden = (EXACT.hidden, forward(params, CONFIG, TOKENS).hidden)
        p, q = (jax.nn.log_softmax(logits(params, h)) for h in hidden)
        return jnp.sum(jnp.exp(p) * (p - q), -1).mean()

    def chunked(params):
        return token_kl(params, CONFIG, EXACT.hidden, TOKENS, chunk=7).mean()

    got, want = jax.jit(lambda p: (jax.grad(chunked)(p), jax.grad(defined)(p)))(start)
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())


def test_the_likelihood_alone_needs_no_reference():
    alone = SCORE(PARAMS, CONFIG, TOKENS, None)
    assert alone.delta_nll is alone.kl is alone.same_top is alone.dp is None
    assert_allclose(alone.nll, SCORE(PARAMS, CONFIG, TOKENS, EXACT).nll, rtol=1e-6)
    assert SUMMARIZE(alone).keys() == {"nll"}


def test_unknown_tokens_make_their_scores_and_the_summary_nan():
    for number in (-1, 300):
        found = SCORE(PARAMS, CONFIG, TOKENS.at[1, 5].set(number), EXACT)
        for x in (found.nll, found.delta_nll, found.kl, found.dp):
            assert np.isnan(x[1, 4:]).all() and np.isfinite(x[0]).all()
        assert not found.same_top[1, 4:].any() and found.same_top[0].all()
        assert np.isnan([*SUMMARIZE(found).values()]).all()


def test_a_reference_of_other_texts_or_another_vocabulary_is_refused():
    other = Reference(EXACT.hidden[:, :-1], PARAMS)
    with pytest.raises(ValueError, match=r"of tokens of shape \(2, 24\), got .* \(2, 23, 32\)"):
        token_scores(PARAMS, CONFIG, TOKENS, other)
    other = EXACT._replace(params={"head": jnp.zeros((32, 299))})
    with pytest.raises(ValueError, match="vocab_size=300, got one of 299"):
        token_scores(PARAMS, CONFIG, TOKENS, other)
    with pytest.raises(ValueError, match="chunk must be"):
        token_scores(PARAMS, CONFIG, TOKENS, EXACT, chunk=0)


@pytest.mark.parametrize("shape", [(1, 2), (7, 151), (200_001,)])
def test_summary_is_numpy_s(shape):
    random = np.random.default_rng(0)
    nll, kl = (random.standard_t(2, shape).astype(np.float32) ** 2 for _ in range(2))
    dp = random.uniform(-1, 1, shape).astype(np.float32)
    same = random.uniform(size=shape) < 0.9
    delta = random.standard_normal(shape).astype(np.float32)
    got = SUMMARIZE(Scores(*map(jnp.asarray, (nll, delta, kl, same, dp))))
    base = nll.astype(np.float64) - delta
    given = {"nll": nll, "kl": kl, "same_top": same, "dp": dp, "nll_base": base}
    want = oracle.summarize({k: np.asarray(x, np.float64).ravel() for k, x in given.items()})
    want["delta_nll"] = want["nll"] - want["nll_base"]
    assert got.keys() == SUMMARY_UNITS.keys() <= want.keys()
    for name, value in got.items():
        assert_allclose(value, want[name], rtol=1e-6, err_msg=name)


def scores(config, params, tokens, exact):
    return token_scores(params, config, tokens, exact, chunk=2)


def gradient(config, params, tokens, exact):
    def loss(scale):
        hooks = Hooks(value=lambda layer, v: v * scale)
        return token_scores(params, config, tokens, exact, hooks=hooks, chunk=2).kl.mean()

    return jax.grad(loss)(1.0)


@pytest.mark.parametrize(
    ("call", "tied", "dtype"),
    [
        (scores, True, "float32"),
        (scores, True, "bfloat16"),
        (scores, False, "bfloat16"),
        (gradient, True, "float32"),
    ],
)
def test_neither_all_logits_nor_a_copy_of_a_head_are_held(call, tied, dtype):
    def memory(vocab):
        config = small_config(vocab_size=vocab, tie_word_embeddings=tied, num_hidden_layers=1)
        params = jax.tree.map(lambda x: x.update(dtype=jnp.dtype(dtype)), param_shapes(config))
        exact = Reference(jax.ShapeDtypeStruct((1, 64, 32), dtype), params)
        run = jax.jit(functools.partial(call, config))
        shapes = (params, jax.ShapeDtypeStruct((1, 64), jnp.int32), exact)
        return run.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    chunk_of_logits = 2 * 50_000 * 4
    all_logits, smallest_head = 64 * 50_000 * 4, 50_000 * 32 * 2
    grown = memory(50_000) - memory(300)
    assert grown < 6 * chunk_of_logits < min(all_logits, smallest_head)
