"""All transforms: their laws, counts and names, and what they refuse."""

import jax
import jax.numpy as jnp
import jaxtyping
import laws
import numpy as np
import pytest
from laws import ISOMETRY_LAWS, KEY, TRANSFORM_LAWS, quick_jit
from numpy.testing import assert_allclose, assert_array_equal
from transform_members import DRAWN, ISOMETRIES, OTHERS, named

from isojax import transforms as tf

LAWS = [
    pytest.param(quick_jit(make), law, id=f"{law.__name__}-{name}")
    for members, laws_of in (
        (ISOMETRIES, ISOMETRY_LAWS + TRANSFORM_LAWS),
        (OTHERS, TRANSFORM_LAWS),
    )
    for name, make in members.items()
    for law in laws_of
]


@pytest.mark.parametrize("make, law", LAWS)
def test_law(make, law):
    law(make)


@pytest.mark.parametrize("make", [named("identity", 4), named("haar", 4), named("planar", 4)])
def test_integers_are_refused(make, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="x must have a floating dtype, got int32"):
        make(KEY).apply(jnp.arange(4))


def test_fp64_of_numpy_is_computed_in_fp32_without_a_warning(monkeypatch, recwarn):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    t, x = tf.haar(KEY, 24), laws.vectors(24, 4)
    y = t.apply(x.astype(np.float64))
    assert y.dtype == jnp.float32
    assert_allclose(y, laws.apply(t, x), atol=1e-5)
    assert not recwarn.list


@pytest.mark.parametrize(
    "name, params, fmas",
    [
        ("haar", 16384, 16384),
        ("rotor", 172, 2408),
        ("planar", 128, 256),
        ("quaternion_full", 256, 1024),
        ("quaternion_fast", 128, 512),
        ("hadamard", 128, 128 * 7),
        ("random_permutation", 128, 0),
        ("identity", 0, 0),
        ("random_permutation@planar", 256, 256),
        ("cayley", 8128, 16384),
        ("exponential", 8128, 16384),
        ("butterfly_planar", 128 * 7, 256 * 7),
        ("butterfly_quaternion", 256 * 3 + 128, 1024 * 3 + 256),
    ],
)
def test_counts_at_dimension_128_are_the_published_ones(name, params, fmas):
    t = jax.eval_shape(lambda key: tf.from_name(key, name, 128), KEY)
    assert (t.params, t.fmas) == (params, fmas)


@pytest.mark.parametrize("name", [*DRAWN, "random_permutation@block_hadamard:16"])
def test_params_count_what_is_stored(name):
    t = jax.eval_shape(lambda key: tf.from_name(key, name, 48), KEY)
    assert sum(leaf.size for leaf in jax.tree.leaves(t)) == t.params


def test_hadamard_counts_its_power_of_two_by_the_logarithm_and_its_base_densely():
    assert tf.hadamard(KEY, 1536).fmas == 1536 * (7 + 12)
    assert tf.block_hadamard(KEY, 1536, 64).fmas == 1536 * 6


@pytest.mark.parametrize("name", sorted(set(DRAWN) - {"hadamard"}))
def test_names_pad_to_whole_blocks(name):
    x = laws.vectors(10, 4)

    @quick_jit
    def make_and_invert(key, x):
        t = tf.from_name(key, name, 10)
        return t, t.inverse.apply(t.apply(x))

    t, back = make_and_invert(KEY, x)
    padded_dims = {
        "block_hadamard:4": 12,
        "rotor": 12,
        "quaternion_fast": 12,
        "quaternion_full": 12,
    }
    assert (t.dim, t.out_dim) == (10, padded_dims.get(name, 10))
    assert_allclose(back, x, atol=1e-5)


def test_a_single_name_is_its_factory():
    assert_array_equal(tf.from_name(KEY, "haar", 24).matrix(), tf.haar(KEY, 24).matrix())
    whole = tf.from_name(KEY, "block_hadamard:24", 24)
    assert_array_equal(whole.matrix(), tf.hadamard(KEY, 24).matrix())


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: tf.identity(0), "dim must be .* at least 1, got 0"),
        (lambda: tf.haar(KEY, 0), "dim must be .* at least 1, got 0"),
        (lambda: tf.permutation(KEY, -1), "dim must be .* at least 1, got -1"),
        (lambda: tf.planar(KEY, 5), "must divide dim=5, got 2"),
        (lambda: tf.rotor(KEY, 5), "must divide dim=5, got 3"),
        (lambda: tf.quaternion(KEY, 6), "must divide dim=6, got 4"),
        (lambda: tf.quaternion(KEY, 8, "half"), "form must be one of full, fast; got 'half'"),
        (lambda: tf.hadamard(KEY, 156), "got 156; blocks .* work: 52, 12, 4, 2, 1"),
        (lambda: tf.block_hadamard(KEY, 24, 6), "block must be one of 24, 12, 8, 4, 2, 1; got 6"),
        (lambda: tf.padded(tf.haar(KEY, 4), 5), "size must be at most inner.dim=4, got 5"),
        (lambda: tf.cayley(KEY, 0), "dim must be .* at least 1, got 0"),
        (lambda: tf.exponential(KEY, 0), "dim must be .* at least 1, got 0"),
        (lambda: tf.butterfly(KEY, 8, "rotor"), "form must be one of planar, quat.*; got 'rotor'"),
        (lambda: tf.strided(tf.planar(KEY, 8), 2, 3), "must divide inner.dim=8, got 6"),
        (lambda: tf.kronecker(jnp.eye(4), jnp.eye(4)[:3]), r"right must be .* got \(3, 4\)"),
        (lambda: tf.repeat(tf.haar(KEY, 4), 0), "count must be .* at least 1, got 0"),
        (lambda: tf.block_diagonal(tf.identity(4)), "block must have one leading axis"),
        (lambda: tf.pca(jnp.ones((0, 3))), r"samples must have shape .* got \(0, 3\)"),
        (lambda: tf.from_name(KEY, "haar@givens", 8), "coordinates must be one of .*'givens'"),
        (lambda: tf.from_name(KEY, "haar:4", 8), "haar takes no arguments"),
        (lambda: tf.from_name(KEY, "block_hadamard:0", 8), "block must be .* at least 1, got 0"),
        (lambda: tf.haar(KEY, 4) @ tf.haar(KEY, 5), "got 4 and 5"),
        (lambda: tf.haar(KEY, 4).apply(jnp.ones(5)), r"last axis of length 4, got shape \(5,\)"),
    ],
)
def test_bad_input_is_refused_with_what_was_got_and_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()
