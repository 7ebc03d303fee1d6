"""Transforms learned by the error of a linear layer's output."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from laws import KEY, quick_jit
from numpy.testing import assert_allclose
from test_linear_fits import layer

from isojax import learn, quantizers
from isojax import transforms as tf
from isojax._core.samples import Samples
from isojax.recipes import Coordinates

LEVELS = quantizers.absmax(4, "token")
ERROR = jax.jit(lambda t, x, w: learn.output_error(t, x, w, LEVELS, LEVELS))


def rounded(rows):
    """Integers from -7 to 7 with a scale per row from its peak, in numpy."""
    scale = np.abs(rows).max(-1, keepdims=True) / 7
    return np.round(rows / scale) * scale


def numpy_error(t, x, w):
    """The same in fp64, by matrices."""
    there = np.asarray(t.matrix(), float)
    x, w = np.asarray(x, float), np.asarray(w, float)
    got = rounded(x @ there) @ rounded((np.linalg.inv(there) @ w).T).T
    return np.square(got - x @ w).sum() / np.square(x @ w).sum()


def scaled_layer(seed, n=1500):
    """A layer whose inputs and weights differ in size from channel to channel; seen and held out.

    The scale is that of a norm, which the weights undo.
    """
    rng = np.random.default_rng(seed)
    x, w = (jnp.asarray(a) for a in layer(seed, d=64, o=80, n=n + 400, outliers=0))
    scale = jnp.asarray(np.exp(1.2 * rng.standard_normal(64)), jnp.float32)
    x, w = x * scale, w / scale[:, None]
    return x[:n], x[n:], w


def test_output_error_is_numpy_s():
    x, _, w = scaled_layer(0)
    for t in (tf.identity(64), tf.hadamard(KEY, 64), learn.wush(x.T @ x / len(x), w @ w.T)):
        assert_allclose(ERROR(t, x, w), numpy_error(t, x, w), rtol=2e-2)


def test_factors_learned_from_a_hadamard_lose_less_for_every_seed():
    x, held, w = scaled_layer(1)
    moments = x.T @ x / len(x), w @ w.T
    closed = learn.kron_wush(*moments)

    def start(key):
        left, right = (tf.hadamard(k, 8) for k in jax.random.split(key))
        return tf.Kronecker(closed.left @ left, closed.right @ right)

    def both(key):
        first = start(key)
        plain = tf.Kronecker(*(tf.hadamard(k, 8) for k in jax.random.split(key)))
        learned = [learn.learned_kronecker(key, x, w, s, steps=60) for s in (plain, first)]
        return [ERROR(t, held, w) for t in (plain, first, *learned)]

    plain, closed_form, from_plain, from_closed = jax.jit(jax.vmap(both))(jax.random.split(KEY, 5))
    assert np.all(from_plain < 0.7 * plain)
    assert np.all(from_closed < closed_form)


def test_what_is_learned_is_never_worse_than_its_start():
    x, _, w = scaled_layer(2, n=400)
    start = tf.kronecker(jnp.eye(8), jnp.eye(8))
    learned = quick_jit(functools.partial(learn.learned_kronecker, steps=10), static_argnames=())
    for rate in (1e-3, 10.0):  # the second diverges
        t = learned(KEY, x, w, start, rate=rate)
        assert ERROR(t, x, w) <= ERROR(start, x, w) * (1 + 1e-4)
        assert_allclose(t.inverse.apply(t.apply(x)), x, atol=1e-3 * float(jnp.abs(x).max()))


def test_the_exponent_of_a_balance_is_that_of_least_error():
    x, held, w = scaled_layer(3)
    sizes = jnp.sqrt(jnp.mean(x**2, 0)), jnp.sqrt(jnp.mean(w**2, 1))
    flat = tf.hadamard(KEY, 64)
    every = {e: 1 / learn.balance_scale(*sizes, e) for e in np.linspace(0, 1, 5)}
    lost = {e: numpy_error(tf.Diagonal(s) @ flat, x[:2048], w) for e, s in every.items()}
    best = min(lost, key=lost.__getitem__)
    assert 0 < best < 1
    found = quick_jit(functools.partial(learn.best_balance, steps=4))(KEY, x, w)
    assert_allclose(1 / found, every[best], rtol=1e-4)
    assert ERROR(tf.Diagonal(1 / found) @ flat, held, w) < 0.6 * ERROR(flat, held, w)


def test_members_are_these_functions():
    x, _, w = scaled_layer(4, n=300)
    samples = Samples(x, w @ w.T, w, bits=4)
    t = Coordinates.parse("balance_search:steps=4").fit(KEY, samples)
    assert_allclose(1 / t.entries, learn.best_balance(KEY, x, w, steps=4), rtol=1e-5)
    t = Coordinates.parse("flatquant:identity:steps=3").fit(KEY, samples)
    key, *_ = jax.random.split(KEY, 3)
    start = tf.kronecker(jnp.eye(8), jnp.eye(8))
    want = learn.learned_kronecker(key, x, w, start, steps=3)
    assert_allclose(t.matrix(), want.matrix(), rtol=1e-3, atol=1e-5)


def test_numbers_that_are_not_finite_are_nan_where_traced():
    x, _, w = scaled_layer(5, n=64)
    bad = x.at[3, 4].set(jnp.nan)
    start = tf.kronecker(jnp.eye(8), jnp.eye(8))
    t = jax.jit(lambda x: learn.learned_kronecker(KEY, x, w, start, steps=1).matrix())(bad)
    assert np.isnan(t).all()
    assert np.isnan(jax.jit(lambda x: learn.best_balance(KEY, x, w, steps=2))(bad)).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, w, t: learn.learned_kronecker(KEY, x * jnp.inf, w, t), "mean square of x must"),
        (lambda x, w, t: learn.learned_kronecker(KEY, x, w[:3], t), "x must have a last axis of"),
        (lambda x, w, t: learn.learned_kronecker(KEY, x[:0], w, t), "x must"),
        (lambda x, w, t: learn.learned_kronecker(KEY, x, w, t, rate=0.0), "rate must be"),
        (lambda x, w, t: learn.learned_kronecker(KEY, x, w, t, steps=0), "steps must be"),
        (lambda x, w, t: learn.best_balance(KEY, x, w * jnp.nan), "mean squares of weight must"),
        (lambda x, w, t: learn.best_balance(KEY, x, w, steps=0), "steps must be"),
        (lambda x, w, t: learn.output_error(t, x, w[:3], LEVELS, LEVELS), "x must have"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, words, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    x, _, w = scaled_layer(6, n=8)
    with pytest.raises(ValueError, match=words) as caught:
        call(x, w, tf.kronecker(jnp.eye(8), jnp.eye(8)))
    assert "\n" not in str(caught.value)
