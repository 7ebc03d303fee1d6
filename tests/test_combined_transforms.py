"""Transforms made of others: chains, blocks, Kronecker products and padding."""

import jax
import jax.numpy as jnp
import laws
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import KEY, OTHER
from numpy.testing import assert_allclose, assert_array_equal
from transform_members import oblique

from isojax import transforms as tf


def test_isometries_around_a_crop_are_none():
    rotor = tf.padded(tf.rotor(KEY, 12), 10)
    shrunk = rotor @ tf.haar(KEY, 12) @ rotor.inverse
    assert not shrunk.isometry
    assert_allclose(shrunk.T.matrix(), shrunk.matrix().T, atol=1e-6)


def test_permutation_gathers():
    t = tf.permutation(KEY, 24)
    x = np.arange(24.0, dtype=np.float32)
    assert_array_equal(t.apply(jnp.asarray(x)), x[np.asarray(t.indices)])
    assert_array_equal(np.sort(t.indices), np.arange(24))


def test_block_diagonal_is_the_block_diagonal_matrix_of_torch():
    keys = jax.random.split(KEY, 4)
    matrices = [torch.tensor(np.asarray(tf.haar(key, 6).matrix())) for key in keys]
    t = tf.block_diagonal(jax.vmap(lambda key: tf.haar(key, 6))(keys))
    assert_allclose(t.matrix(), torch.block_diag(*matrices).numpy(), atol=1e-6)
    assert (t.dim, t.params, t.fmas) == (24, 144, 144)


def test_repeat_stores_its_block_once():
    block = tf.haar(KEY, 6)
    t = tf.repeat(block, 4)
    assert_allclose(t.matrix(), np.kron(np.eye(4), block.matrix()), atol=1e-6)
    assert (t.dim, t.params, t.fmas) == (24, 36, 144)


def test_a_kronecker_product_is_that_of_numpy_and_of_blocks_and_strides():
    left, right = oblique(4)(KEY), tf.haar(OTHER, 6)
    t = tf.kronecker(left, right)
    parts = tf.repeat(right, 4) @ tf.strided(tf.repeat(left, 6), 4, 6)
    assert_allclose(t.matrix(), np.kron(left.matrix(), right.matrix()), atol=1e-6)
    x = jnp.asarray(laws.vectors(24, 5))
    assert_array_equal(t.apply(x), parts.apply(x))
    assert (t.fmas, t.params) == (parts.fmas, parts.params) == (24 * 10, 16 + 36)
    of_matrices = tf.kronecker(left.entries, right.entries)
    assert_allclose(of_matrices.matrix(), t.matrix(), atol=1e-6)
    assert_allclose(of_matrices.inverse.matrix(), t.inverse.matrix(), atol=1e-5)


def test_padding_appends_zeros_and_its_inverse_crops():
    inner = tf.haar(KEY, 12)
    t = tf.padded(inner, 10)
    assert_allclose(t.matrix(), inner.matrix()[:10], atol=1e-6)
    projection = t.inverse.matrix() @ t.matrix()
    assert_allclose(projection @ projection, projection, atol=1e-5)
    assert_allclose(jnp.trace(projection), 10, rtol=1e-5)


@settings(max_examples=5, deadline=None)
@given(st.permutations(["haar", "hadamard", "planar", "rotor", "random_permutation"]))
def test_composition_is_associative_and_reversed_by_its_transpose(names):
    a, b, c = (tf.from_name(KEY, name, 12) for name in names[:3])
    left, right = (a @ b) @ c, a @ (b @ c)
    assert jax.tree.structure(left) == jax.tree.structure(right)
    assert_allclose(left.T.matrix(), c.T.matrix() @ b.T.matrix() @ a.T.matrix(), atol=1e-5)


def test_joined_names_apply_in_order_with_a_key_each():
    first, second = jax.random.split(KEY)
    want = tf.permutation(first, 24).matrix() @ tf.planar(second, 24).matrix()
    assert_allclose(tf.from_name(KEY, "random_permutation @ planar", 24).matrix(), want, atol=1e-6)
