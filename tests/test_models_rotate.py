"""Merged rotations and permutations: logits stay, and what flows inside is turned as asked."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import quick_jit
from numpy.testing import assert_allclose, assert_array_equal
from small_models import random_tokens, small_config

from isojax import transforms as tf
from isojax.models import (
    Site,
    forward,
    logits,
    param_shapes,
)
from isojax.models.rotate import (
    fold_norms,
    rotate_residual,
)

KEY = jax.random.key(3)
TOKENS = jnp.asarray(random_tokens(2, 12))
LAYERS, GROUPS, WIDTH, INNER, HEAD = 3, 2, 32, 64, 16
MODELS = {
    "everything": {"qk_norm": True, "o_bias": True, "mlp_bias": True, "head_dim": HEAD},
    "qwen2-tied": {"tie_word_embeddings": True},
    "qwen3": {"qk_norm": True, "qkv_bias": False, "head_dim": HEAD},
    "llama-tied-bias": {"o_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
}
KINDS = {
    "haar": tf.haar,
    "hadamard": tf.hadamard,
    "block-hadamard": lambda key, d: tf.block_hadamard(key, d, 4),
    "permutation": tf.permutation,
    "quaternion": tf.quaternion,
}


def oblique(key, dim, condition=10):
    left, right = (tf.haar(part, dim).matrix() for part in jax.random.split(key))
    size = jnp.geomspace(1, condition, dim) / condition**0.5
    return tf.Oblique((left * size) @ right, (right.T / size) @ left.T)


READ = "q_proj.kernel k_proj.kernel v_proj.kernel gate_proj.kernel up_proj.kernel"
WRITTEN = "o_proj.kernel o_proj.bias down_proj.kernel down_proj.bias"
FFN = "gate_proj.kernel gate_proj.bias up_proj.kernel up_proj.bias down_proj.kernel"
SITES = tuple(
    Site(kind, layer)
    for kind in ("hidden", "value", "query", "key", "input:down_proj")
    for layer in range(LAYERS)
)


@functools.cache
def random_model(case="everything", **changes):
    """Every leaf random: scales around one, biases too."""
    config = small_config(**{"tie_word_embeddings": False} | MODELS[case] | changes)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape, np.float32)
        return jnp.asarray((path[-1].key == "scale") + 0.3 * noise)

    return jax.tree_util.tree_map_with_path(draw, param_shapes(config)), config


@functools.cache
def folded_model(case="everything"):
    return fold_norms(*random_model(case))


@functools.partial(quick_jit, static_argnames="config")
def _run(params, config):
    out = forward(params, config, TOKENS, capture=SITES)
    return logits(params, out.hidden), out.captured


def run(params, config):
    """Logits and captured tensors."""
    return jax.tree.map(np.asarray, _run(params, config))


@functools.partial(quick_jit, static_argnums=(0, 2))
def merge(function, params, config, *transform):
    return function(params, config, *transform)


def leaves(params):
    return {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(params)}


def swapped(params, name, value):
    """The tree with another leaf `name`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: value if jax.tree_util.keystr(path) == name else x, params
    )


def named(inner, *top):
    """Names of leaves, given as `o_proj.kernel`."""
    pairs = (name.split(".") for name in inner.split())
    return {f"['layers']['{a}']['{b}']" for a, b in pairs} | {f"['{name}']" for name in top}


def error(got, want):
    return np.abs(got - want).max() / np.abs(want).max()


def check_merge(before, after, config, changed):
    """Logits stay; the leaves `changed` did, no others, and none of them could be left out.

    Returns what flowed before and after the merge.
    """
    (want, seen), (got, found) = run(before, config), run(after, config)
    assert error(got, want) < 1e-4
    old, new = leaves(before), leaves(after)
    assert {name for name in old if not np.array_equal(old[name], new[name])} == changed
    for name in changed:
        assert error(run(swapped(after, name, old[name]), config)[0], want) > 1e-2, name
    return seen, found


def assert_close(got, want):
    assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("case", MODELS)
def test_folded_norms_are_one_and_leave_the_logits(case):
    params, config = random_model(case)
    folded, changed = fold_norms(params, config)
    assert changed == dataclasses.replace(config, tie_word_embeddings=False)
    assert jax.tree.structure(folded) == jax.tree.structure(param_shapes(changed))
    want = run(params, config)[0]
    assert error(run(folded, changed)[0], want) < 1e-4
    norms = named("input_norm.scale post_norm.scale") | {"['norm']['scale']"}
    old, new = leaves(params), leaves(folded)
    for name in norms:
        assert (new[name] == 1).all()
        assert error(run(swapped(folded, name, old[name]), changed)[0], want) > 1e-2
    kept = {name for name in old if np.array_equal(old[name], new[name])}
    assert kept == old.keys() - norms - named(READ, "head")


@pytest.mark.parametrize("kind", KINDS)
def test_a_turned_residual_stream_leaves_the_logits(kind):
    folded, config = folded_model()
    turn = KINDS[kind](KEY, WIDTH)
    after = merge(rotate_residual, folded, config, turn)
    changed = named(f"{READ} {WRITTEN}", "embedding", "head")
    seen, found = check_merge(folded, after, config, changed)
    assert_close(found["hidden"], seen["hidden"] @ np.asarray(turn.matrix()))
    assert_close(found["value"], seen["value"])


def test_a_tied_model_without_scales_stays_tied():
    params, config = random_model("qwen2-tied")
    for name in ("['norm']['scale']", *named("input_norm.scale post_norm.scale")):
        params = swapped(params, name, jnp.ones_like(leaves(params)[name]))
    after = rotate_residual(params, config, tf.haar(KEY, WIDTH))
    assert after.keys() == params.keys()
    assert error(after["embedding"], params["embedding"]) > 1e-2
    assert error(run(after, config)[0], run(params, config)[0]) < 1e-4


def test_bf16_is_computed_in_fp32_and_stays_bf16():
    params, config = random_model()
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), folded_model()[0])
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    for function, transform in (
        (lambda params, config: fold_norms(params, config)[0], ()),
        (rotate_residual, (tf.haar(KEY, WIDTH),)),
    ):
        got, exact = (merge(function, p, config, *transform) for p in (half, wide))
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(exact), strict=True):
            assert x.dtype == jnp.bfloat16
            assert_allclose(x.astype(jnp.float32), y, rtol=2**-8, atol=1e-5)


def test_the_given_parameters_are_left_as_they_are():
    params, config = random_model("llama-tied-bias")
    before = jax.tree.map(np.array, params)
    structure = jax.tree.structure(params)
    folded, untied = fold_norms(params, config)
    rotate_residual(folded, untied, tf.haar(KEY, WIDTH))
    assert jax.tree.structure(params) == structure
    jax.tree.map(assert_array_equal, params, before)


def test_unfolded_norms_are_refused_by_name():
    (params, config), (folded, _) = random_model(), folded_model()
    turn = tf.haar(KEY, WIDTH)
    for name in ("input_norm", "post_norm", "norm"):
        where = "['norm']['scale']" if name == "norm" else next(iter(named(f"{name}.scale")))
        mixed = swapped(folded, where, leaves(params)[where])
        with pytest.raises(ValueError, match=f"^{name} must have scale one: .* fold_norms"):
            rotate_residual(mixed, config, turn)


@pytest.mark.parametrize("shape", [(4,), (5, WIDTH), (GROUPS, LAYERS, WIDTH)])
def test_wrong_transforms_are_refused(shape):
    params, config = folded_model()
    longer = tf.padded(tf.identity(WIDTH + 3), WIDTH)
    for turn in (tf.Permutation(jnp.zeros(shape, jnp.int32)), longer):
        with pytest.raises(ValueError, match=f"one that keeps the length hidden_size={WIDTH}, got"):
            rotate_residual(params, config, turn)


@pytest.mark.parametrize("kind", ["oblique", "diagonal", "composed"])
def test_the_norms_of_the_residual_stream_refuse_what_is_no_isometry(kind):
    folded, config = folded_model()
    scale = tf.Diagonal(jnp.full(WIDTH, 2.0))
    turns = {
        "oblique": oblique(KEY, WIDTH),
        "diagonal": scale,
        "composed": tf.haar(KEY, WIDTH) @ scale,
    }
    with pytest.raises(ValueError, match="transform must be an isometry, since RMSNorm .* got"):
        rotate_residual(folded, config, turns[kind])
