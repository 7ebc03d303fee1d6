"""Block rotations and random ones: their definitions, distributions and other implementations."""

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
import scipy.stats
import torch
from laws import KEY, quick_jit
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.transform import Rotation

from isojax import transforms as tf


def left_matrix(q):
    w, x, y, z = q
    return np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]])


def right_matrix(q):
    w, x, y, z = q
    return np.array([[w, -x, -y, -z], [x, w, z, -y], [y, -z, w, x], [z, y, -x, w]])


def test_haar_entries_have_the_moments_of_the_haar_measure():
    n, d = 4000, 6
    r = np.asarray(jax.vmap(lambda key: tf.haar(key, d).entries)(jax.random.split(KEY, n)))
    assert np.abs(r.mean(0)).max() < 4.5 / np.sqrt(n * d)
    assert_allclose((r**2).mean(0), np.full((d, d), 1 / d), rtol=0.1)
    assert_allclose((r**2).mean(), 1 / d, rtol=1e-5)
    assert_allclose((r**4).mean(), 3 / (d * (d + 2)), rtol=0.02)
    assert_allclose((r[:, 0, 0] ** 2 * r[:, 1, 1] ** 2).mean(), 7 / 240, rtol=0.08)


@pytest.mark.parametrize(
    "name, size, marginal",
    [
        ("planar", 2, scipy.stats.arcsine(-1, 2)),
        ("rotor", 3, scipy.stats.uniform(-1, 2)),
        ("quaternion_fast", 4, scipy.stats.semicircular()),
        ("quaternion_full", 4, scipy.stats.semicircular()),
    ],
)
def test_coordinates_of_a_turned_unit_block_have_the_marginal_of_the_sphere(name, size, marginal):
    n = 4000
    unit = laws.vectors(size, 1)[0]
    unit /= np.linalg.norm(unit)
    blocks = laws.apply(tf.from_name(KEY, name, n * size), np.tile(unit, n)).reshape(n, size)
    for coordinate in np.asarray(blocks).T:
        assert scipy.stats.kstest(coordinate, marginal.cdf).pvalue > 1e-3


@pytest.mark.parametrize("form", ["fast", "full"])
def test_quaternion_is_left_and_right_multiplication(form):
    t = tf.quaternion(KEY, 24, form)
    v = laws.vectors(24, 1).reshape(6, 4)
    blocks = laws.apply(t, v.reshape(24)).reshape(6, 4)
    for i, (u, got) in enumerate(zip(v, blocks, strict=True)):
        want = left_matrix(t.left[i] / jnp.linalg.norm(t.left[i])) @ u
        if t.right is not None:
            w, x, y, z = t.right[i] / jnp.linalg.norm(t.right[i])
            want = right_matrix((w, -x, -y, -z)) @ want
        assert_allclose(got, want, atol=1e-6)


def test_both_signs_of_a_quaternion_pair_are_one_rotation():
    t = tf.quaternion(KEY, 24)
    assert_allclose(tf.Quaternion(-t.left, -t.right).matrix(), t.matrix(), atol=1e-6)
    assert_allclose(tf.Quaternion(3 * t.left, t.right / 7).matrix(), t.matrix(), atol=1e-6)


@pytest.mark.parametrize("member, size", [(tf.Planar, 2), (tf.Quaternion, 4), (tf.Rotor, 4)])
def test_zero_parameters_are_the_identity_with_finite_gradient(member, size):
    u = jnp.zeros((2, size))
    t = member(u)
    x = laws.vectors(t.dim, 1)[0]
    assert_array_equal(laws.apply(t, x), x)
    gradient = quick_jit(jax.grad(lambda u: member(u).apply(jnp.asarray(x)) @ x[::-1]))
    assert np.isfinite(gradient(u)).all()


def test_rotor_is_the_rotation_of_scipy():
    t = tf.rotor(KEY, 24)
    v = laws.vectors(24, 1).reshape(8, 3)
    w, x, y, z = np.asarray(t.spinor).T
    want = Rotation.from_quat(np.stack([x, y, z, w], 1)).apply(v)
    assert_allclose(laws.apply(t, v.reshape(24)).reshape(8, 3), want, atol=1e-6)


def test_planar_is_the_rotation_of_scipy():
    t = tf.planar(KEY, 8)
    angle = np.arctan2(t.phasor[:, 1], t.phasor[:, 0])
    about_z = Rotation.from_rotvec(np.outer(angle, [0, 0, 1])).as_matrix()[:, :2, :2]
    want = torch.block_diag(*torch.tensor(about_z)).numpy()
    assert_allclose(t.matrix().T, want, atol=1e-6)


@pytest.mark.parametrize("name", ["planar", "rotor", "quaternion_fast", "quaternion_full"])
def test_block_rotations_have_determinant_one(name):
    matrix = quick_jit(lambda key: tf.from_name(key, name, 12).matrix())(KEY)
    assert_allclose(np.linalg.det(matrix), 1, atol=1e-5)
