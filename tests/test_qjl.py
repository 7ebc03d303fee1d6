import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import quick_jit
from numpy.testing import assert_allclose, assert_array_equal

from isojax.codec import Codec, qjl
from isojax.quantizers import lloyd_max_sphere
from isojax.transforms import haar

DIM = 16
X = jax.random.t(jax.random.key(0), 4.0, (5, DIM))
Q = jax.random.normal(jax.random.key(1), (5, DIM))


def codec(bits):
    return Codec(haar(jax.random.key(2), DIM), lloyd_max_sphere(bits, DIM))


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_inner_products_are_unbiased_over_sketches(bits):
    rounds, together = 10, 2000
    first = codec(bits)

    @jax.jit
    def errors(key):
        def one(key):
            sketched = qjl(key, first)
            return sketched.inner(Q, sketched.store(X)) - (Q * X).sum(-1)

        found = jax.vmap(one)(jax.random.split(key, together))
        return found.mean(0), found.var(0)

    means, variances = jax.lax.map(errors, jax.random.split(jax.random.key(bits), rounds))
    error = means.mean(0) / jnp.sqrt(variances.mean(0) / (rounds * together))
    assert np.abs(error).max() < 4
    biased = (Q * first.load(first.store(X))).sum(-1) - (Q * X).sum(-1)
    assert np.abs(biased / jnp.sqrt(variances.mean(0) / (rounds * together))).max() > 8


def test_the_variance_is_that_of_the_lemma():
    # QJL, lemma 3.5: at most pi / (2 m) |r|^2 |q|^2, and for Gaussian rows
    # |r|^2 |q|^2 (pi / 2 - cos^2) / m.
    first, m = codec(2), 64
    r = X - first.load(first.store(X))

    @quick_jit
    def one(key):
        sketched = qjl(key, first, m)
        return sketched.inner(Q, sketched.store(X))

    found = jax.vmap(one)(jax.random.split(jax.random.key(3), 4000)).var(0)
    size = (r**2).sum(-1) * (Q**2).sum(-1)
    expected = (size * np.pi / 2 - (r * Q).sum(-1) ** 2) / m
    assert_allclose(found, expected, rtol=0.15)


def test_products_with_what_is_loaded_are_the_estimates():
    sketched = qjl(jax.random.key(4), codec(2), 24)
    kept = sketched.store(X)
    assert_allclose((Q * sketched.load(kept)).sum(-1), sketched.inner(Q, kept), rtol=1e-4)


def test_one_bit_a_sign_and_a_norm_are_stored_beside_the_codec():
    sketched = qjl(jax.random.key(4), codec(2), 24)
    kept = sketched.store(X)
    assert kept.nbytes == sketched.codec.store(X).nbytes + 5 * (24 // 8 + 2)
    assert kept.norm.dtype == jnp.float16


def test_stacks_of_sketches_by_vmap():
    keys = jax.random.split(jax.random.key(5), 3)
    stack = jax.vmap(lambda key: qjl(key, codec(2)))(keys)
    through = quick_jit(lambda sketched: sketched.load(sketched.store(X)))
    got = quick_jit(jax.vmap(lambda sketched: sketched.load(sketched.store(X))))(stack)
    for i in range(3):
        assert_allclose(got[i], through(jax.tree.map(lambda a, i=i: a[i], stack)), atol=1e-5)


def test_zeros_stay_zeros():
    sketched, zeros = qjl(jax.random.key(4), codec(2)), jnp.zeros((2, DIM))
    assert_array_equal(quick_jit(lambda s, x: s.load(s.store(x)))(sketched, zeros), zeros)


def test_the_number_of_signs_is_checked():
    with pytest.raises(ValueError, match="signs must be a whole number of at least 1, got 0"):
        qjl(jax.random.key(4), codec(2), 0)
