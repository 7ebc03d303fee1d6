import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
from jax.test_util import check_grads
from laws import KEY, OTHER, apply, quick_jit, vectors, views
from numpy.testing import assert_allclose

from isojax import transforms as tf

FREE = {
    "cayley": tf.cayley,
    "exponential": tf.exponential,
    "butterfly_planar": functools.partial(tf.butterfly, form="planar"),
    "butterfly_quaternion": functools.partial(tf.butterfly, form="quaternion"),
}
every_member = pytest.mark.parametrize("make", FREE.values(), ids=FREE)


@every_member
def test_without_a_key_it_is_the_identity(make):
    for dim in (1, 7, 12):
        identity = quick_jit(lambda dim=dim: make(None, dim).matrix())()
        assert_allclose(identity, np.eye(dim), atol=1e-6)


@every_member
def test_every_coordinate_reaches_every_other(make):
    matrix = quick_jit(lambda key: make(key, 12).matrix())(KEY)
    assert np.abs(matrix).min() > 0


@every_member
@pytest.mark.parametrize("rate", [0.01, 10.0])
def test_it_is_orthogonal_after_any_gradient_steps(make, rate):
    target, optimizer = tf.haar(OTHER, 8).matrix(), optax.adam(rate)

    def step(carry, _):
        t, state = carry
        gradient = jax.grad(lambda t: jnp.sum(jnp.square(t.matrix() - target)))(t)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(t, updates), state), None

    @quick_jit
    def learn(t):
        return jax.lax.scan(step, (t, optimizer.init(t)), None, 40)[0][0].matrix()

    m = np.asarray(learn(make(None, 8)), np.float64)
    assert np.abs(m - np.eye(8)).max() > 0.1
    assert_allclose(m.T @ m, np.eye(8), atol=1e-5)
    assert_allclose(np.linalg.det(m), 1, atol=1e-4)


@every_member
def test_the_gradient_is_that_of_finite_differences(make):
    with jax.enable_x64(True):
        t = jax.tree.map(lambda a: a.astype(jnp.float64), make(KEY, 4))
        x, weights = (jnp.asarray(v, jnp.float64) for v in vectors(4, 2))
        loss = jax.jit(lambda t: jnp.tanh(t.apply(x)) @ weights)
        check_grads(loss, (t,), order=1, modes=["rev"])


@every_member
def test_zero_parameters_can_be_learned_from(make):
    x, y = vectors(12, 2)
    t = quick_jit(lambda: make(None, 12))()
    gradient = quick_jit(jax.grad(lambda t: t.apply(jnp.asarray(x)) @ y))(t)
    assert all(np.abs(leaf).sum() > 0 for leaf in jax.tree.leaves(gradient))


def skew_of(t):
    """The skew-symmetric matrix of the parameters, by torch's order of a triangle."""
    lower = np.zeros((t.dim, t.dim))
    lower[np.tril_indices(t.dim, -1)] = t.free
    return lower - lower.T


def test_exponential_is_that_of_scipy():
    t = tf.exponential(KEY, 9)
    assert_allclose(views(t)["matrix"], scipy.linalg.expm(skew_of(t)), atol=1e-5)


def test_cayley_is_the_quotient_and_turns_by_twice_the_arc_tangent():
    t = tf.cayley(KEY, 9)
    a, eye = skew_of(t), np.eye(9)
    assert_allclose(t.matrix(), np.linalg.solve((eye + a).T, (eye - a).T).T, atol=1e-5)
    turned = np.sort(np.abs(np.angle(np.linalg.eigvals(t.matrix()))))
    assert_allclose(turned, np.sort(2 * np.arctan(np.abs(np.linalg.eigvals(a)))), atol=1e-4)


def test_the_start_is_kept_by_the_identity_behind_it():
    start = tf.hadamard(KEY, 12)
    assert_allclose((start @ tf.cayley(None, 12)).matrix(), start.matrix(), atol=1e-6)


def test_planar_butterfly_turns_pairs_at_strides_of_powers_of_two():
    t = quick_jit(lambda key: tf.butterfly(key, 8))(KEY)
    want = np.eye(8)
    for layer, stride in zip(t.factors, (1, 2, 4), strict=True):
        unit = np.asarray(layer.inner.phasor) / np.linalg.norm(layer.inner.phasor, axis=1)[:, None]
        givens = np.eye(8)
        first = [i for i in range(8) if not i & stride]
        for i, (c, s) in zip(first, unit, strict=True):
            givens[np.ix_([i, i + stride], [i, i + stride])] = [[c, s], [-s, c]]
        want = want @ givens
    assert_allclose(views(t)["matrix"], want, atol=1e-5)


@pytest.mark.parametrize(
    "form, dim, radices",
    [
        ("planar", 16, [2, 2, 2, 2]),
        ("planar", 90, [2, 3, 3, 5]),
        ("quaternion", 64, [4, 4, 4]),
        ("quaternion", 32, [4, 4, 2]),
        ("quaternion", 576, [4, 4, 4, 3, 3]),
        ("quaternion", 7, [7]),
    ],
)
def test_radices_of_a_butterfly_multiply_to_its_length(form, dim, radices):
    t = jax.eval_shape(lambda key: tf.butterfly(key, dim, form), KEY)
    layers = t.factors if isinstance(t, tf.Composed) else [t]
    assert [layer.block for layer in layers] == radices
    assert [layer.stride for layer in layers] == np.cumprod([1, *radices])[:-1].tolist()


def test_strided_blocks_are_those_of_the_reordered_vector():
    inner = tf.rotor(KEY, 12)
    x = vectors(12, 4)
    order = np.arange(12).reshape(2, 3, 2).swapaxes(1, 2).ravel()
    want = np.empty_like(x)
    want[:, order] = apply(inner, x[:, order])
    assert_allclose(apply(tf.strided(inner, 3, 2), x), want, atol=1e-6)
    assert_allclose(apply(tf.strided(inner, 3, 1), x), apply(inner, x), atol=1e-6)
