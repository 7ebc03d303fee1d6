"""Axes in the metric of what reads the vectors: Oblique, and `aligned`."""

import jax
import jax.numpy as jnp
import jaxtyping
import laws
import numpy as np
import pytest
import scipy.linalg
from laws import quick_jit, vectors
from numpy.testing import assert_allclose

from isojax import Codec, learn, quantizers
from isojax import transforms as tf

DIM = 6
SCALE = np.array([5.0, 3.0, 2.0, 1.0, 0.5, 0.1], np.float32)


def samples(seed, n=400):
    mix = np.random.default_rng(seed).standard_normal((DIM, DIM), np.float32)
    x = np.random.default_rng(seed + 1).standard_normal((n, DIM), np.float32) * SCALE @ mix
    return jnp.asarray(x)


def moment(seed):
    return learn.second_moment(samples(seed))


@quick_jit
def fit(moment, metric, power=1.0):
    return learn.aligned(moment, metric, power=power, ridge=0.0)


def oblique(key):
    entries = jnp.eye(DIM) + 0.3 * jax.random.normal(key, (DIM, DIM))
    return tf.Oblique(entries, jnp.linalg.inv(entries))


def test_a_codec_turns_queries_so_that_logits_stay():
    codec = Codec(
        oblique(laws.KEY), quantizers.absmax(4, "token"), jnp.ones(DIM), jnp.arange(1.0, 7)
    )
    q, x = jnp.asarray(vectors(DIM, 2, 5))
    packed = codec.store(x)
    got = (codec.rotate_query(q) * codec.load_rotated(packed)).sum(-1) + q @ codec.offset
    assert_allclose(got, (q * codec.load(packed)).sum(-1), rtol=1e-4, atol=1e-4)


def test_axes_diagonalize_the_moment_and_measure_errors_in_the_metric():
    c, s = moment(0), moment(5)
    t = fit(c, s)
    a, back = np.asarray(t.entries, np.float64), np.asarray(t.inverse_entries, np.float64)
    assert_allclose(a @ back, np.eye(DIM), atol=1e-3)
    energy = a.T @ np.asarray(c, np.float64) @ a
    assert_allclose(energy, np.diag(np.diag(energy)), atol=1e-4 * energy.max())
    assert (np.diff(np.diag(energy)) < 0).all()
    # scipy solves the same problem: C v = w S^-1 v
    want = scipy.linalg.eigh(np.asarray(c, float), np.linalg.inv(np.asarray(s, float)))[0][::-1]
    assert_allclose(np.diag(energy), want, rtol=1e-2)
    e = jnp.asarray(vectors(DIM, 9))
    assert_allclose((t.apply(e) ** 2).sum(-1), np.einsum("ni,ij,nj->n", e, s, e), rtol=1e-3)


def test_without_a_metric_or_at_power_zero_it_is_pca():
    x = samples(0)
    want = tf.pca(x).entries
    for metric, power in ((None, 1.0), (moment(5), 0.0)):
        got = fit(learn.second_moment(x), metric, power).entries
        assert_allclose(jnp.abs(got.T @ want), np.eye(DIM), atol=5e-3)


def test_the_log_spectrum_is_the_matrix_logarithm():
    metric = np.asarray(moment(3), float)
    want = scipy.linalg.logm(np.eye(DIM) + metric / (np.trace(metric) / DIM)).real
    assert_allclose(quick_jit(learn.log_spectrum)(jnp.asarray(metric)), want, atol=1e-4)
    assert not learn.log_spectrum(jnp.zeros((DIM, DIM))).any()


def test_ridge_spares_directions_that_calibration_never_read():
    blind = jnp.diag(jnp.array([1.0, 1, 1, 1, 0, 0]))
    t = learn.aligned(jnp.eye(DIM), blind, ridge=1e-2)
    assert np.isfinite(t.inverse_entries).all() and np.abs(t.inverse_entries).max() < 20
    assert_allclose(t.inverse.apply(t.apply(jnp.eye(DIM))), np.eye(DIM), atol=1e-4)


def test_layers_and_heads_go_by_vmap():
    c = jnp.stack([moment(0), moment(1)])
    both = jax.vmap(lambda c: fit(c, moment(5)))(c)
    assert_allclose(both.entries[1], fit(c[1], moment(5)).entries, rtol=1e-3, atol=1e-3)


def test_what_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"metric must have shape \(6, 6\), got \(4, 4\)"):
        learn.aligned(jnp.eye(DIM), jnp.eye(4))
    with pytest.raises(ValueError, match="power must be at least 0 and finite, got -1"):
        learn.aligned(jnp.eye(DIM), jnp.eye(DIM), power=-1)
