import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal
from scipy.linalg import hadamard

from isojax.metrics.block_mass import (
    block_mass,
    expected_peak,
    mass_concentration,
    mass_imbalance,
    rotation_bound,
    suppressed,
)
from isojax.transforms import Hadamard, block_hadamard

METRICS = (
    block_mass,
    mass_concentration,
    suppressed,
    rotation_bound,
    expected_peak,
    mass_imbalance,
)
every_metric = pytest.mark.parametrize("metric", METRICS, ids=lambda f: f.__name__)
DIM = 24
BLOCKS = (1, 2, 4, 12, 24)
X = jax.random.t(jax.random.key(0), 2.0, (5, DIM))

vectors = arrays(
    np.float32,
    (3, DIM),
    elements=st.one_of(
        st.just(0.0), st.floats(-1e4, 1e4, width=32), st.integers(-2, 2).map(float)
    ).map(lambda v: v if abs(v) > 1e-6 else 0.0),
)
signs = arrays(np.float32, (DIM,), elements=st.sampled_from([-1.0, 1.0]))
some_blocks = st.sampled_from([1, 4, 12])
slowly = settings(max_examples=40, deadline=None)


@functools.partial(jax.jit, static_argnames="block")
def metrics(x, block):
    return {metric.__name__: metric(x, block) for metric in METRICS}


@functools.partial(jax.jit, static_argnames="block")
def seen(x, signs, block):
    named = metrics(x, block)
    rotated = Hadamard(signs, block).apply(x)
    peaks = [jnp.abs(v).reshape(len(v), -1, block).max(-1) for v in (x, rotated)]
    return named | {"peak": peaks[0], "rotated peak": peaks[1]}


peak = jax.jit(expected_peak, static_argnums=1)
by_rows = jax.jit(jax.vmap(lambda x: metrics(x, 4)))


@slowly
@given(vectors, signs, some_blocks)
def test_no_rotation_exceeds_the_bound(x, signs, block):
    got = seen(x, signs, block)
    most = np.asarray(got["block_mass"]) / np.sqrt(block)
    assert np.all(got["rotated peak"] <= most * (1 + 1e-5))
    assert_allclose(got["rotation_bound"], most.max(-1), rtol=1e-6)


@slowly
@given(vectors, signs, some_blocks)
def test_a_suppressed_block_has_a_lower_peak_after_rotation(x, signs, block):
    got = jax.tree.map(np.asarray, seen(x, signs, block))
    lower = got["rotated peak"] <= got["peak"] * (1 + 1e-5)
    assert np.all(lower | ~got["suppressed"])


@slowly
@given(vectors, signs, some_blocks)
def test_concentration_imbalance_and_expected_peak_keep_to_their_ranges(x, signs, block):
    got = jax.tree.map(np.asarray, seen(x, signs, block))
    delta, imbalance = got["mass_concentration"], got["mass_imbalance"]
    assert np.all((delta >= (1 - 1e-6) / block) & (delta <= 1 + 1e-6))
    assert np.all((imbalance >= 1 - 1e-6) & (imbalance <= DIM / block * (1 + 1e-6)))
    energy = np.square(x, dtype=np.float64).reshape(3, -1, block).mean(-1)
    assert np.all(got["expected_peak"] >= np.sqrt(energy.max(-1)) * (1 - 1e-5))
    assert np.all(got["expected_peak"] <= got["rotation_bound"] * (1 + 1e-5))


@pytest.mark.parametrize("block", BLOCKS)
def test_by_numpy(block):
    blocks = np.abs(np.asarray(X, np.float64)).reshape(5, -1, block)
    mass = blocks.sum(-1)
    delta = mass / block / blocks.max(-1)
    got = metrics(X, block)
    assert_allclose(got["block_mass"], mass, rtol=1e-5)
    assert_allclose(got["mass_concentration"], delta, rtol=1e-5)
    assert_array_equal(got["suppressed"], delta < 1 / np.sqrt(block))
    assert_allclose(got["rotation_bound"], mass.max(-1) / np.sqrt(block), rtol=1e-5)
    assert_allclose(got["mass_imbalance"], mass.max(-1) / mass.mean(-1), rtol=1e-5)


@pytest.mark.parametrize("block", [2, 4, 12])
def test_a_row_of_the_hadamard_attains_the_bound(block):
    h = block_hadamard(None, DIM, block)
    x = 3 * np.sqrt(block) * h.inverse.matrix()[:1]
    assert_allclose(np.abs(h.apply(x)).max(), rotation_bound(x, block), rtol=1e-5)
    assert not suppressed(x, block).any()


def test_spikes_constants_and_zeros():
    x = jnp.array([[0.0, -5, 0, 0, 2, -2, 2, 2, 0, 0, 0, 0]])
    got, none = metrics(x, 4), metrics(0 * x, 4)
    assert_allclose(got["mass_concentration"], [[0.25, 1, 1]], rtol=1e-6)
    assert_array_equal(got["suppressed"], [[True, False, False]])
    assert_allclose(got["mass_imbalance"], [8 / (13 / 3)], rtol=1e-6)
    assert none["mass_imbalance"] == 1
    assert none["expected_peak"] == 0
    assert_allclose(peak(x[:, :4], 4), 2.5, rtol=1e-5)


def test_the_mean_may_be_level_where_no_token_is():
    x = 3 * jnp.eye(8)
    assert mass_imbalance(jnp.mean(x, 0), 2) == 1
    assert_array_equal(mass_imbalance(x, 2), np.full(8, 4.0))


def spiked(rng):
    return rng.standard_normal((12, 256)) + 30 * (np.arange(256) % 128 == 7)


VECTORS = {
    "gaussian": lambda rng: rng.standard_normal((12, 256)),
    "student": lambda rng: rng.standard_t(2, (12, 256)),
    "spiked": spiked,
    "constant": lambda rng: np.ones((1, 256)),
}


@pytest.mark.parametrize("block", [4, 16, 64])
@pytest.mark.parametrize("draw", VECTORS.values(), ids=VECTORS.keys())
def test_expected_peak_by_simulation(draw, block):
    rng = np.random.default_rng(1)
    x = draw(rng)
    flips = rng.choice([-1.0, 1.0], (300, 1, 256))
    rotated = (x * flips).reshape(300, len(x), -1, block) @ hadamard(block) / np.sqrt(block)
    ratio = peak(jnp.asarray(x, jnp.float32), block) / np.abs(rotated).max((2, 3)).mean(0)
    assert_allclose(ratio, 1, atol=0.12)
    assert_allclose(ratio.mean(), 1, atol=0.05)


@pytest.mark.parametrize("noise", [0.0, 1e-30, 1e-12, 1e-6, 1e-3, 1.0])
def test_expected_peak_of_a_massive_activation_is_its_share(noise):
    x = noise * np.random.default_rng(0).standard_normal((8, 64), np.float32)
    x[np.arange(8), np.arange(8)] = np.geomspace(1e3, 1e5, 8)
    got = np.asarray(peak(jnp.asarray(x), 16))
    assert_allclose(got, x.max(-1) / 4, rtol=2e-2)


def test_expected_peak_of_up_to_three_numbers_a_block_is_exact():
    x = jnp.zeros((1, 24)).at[0, jnp.array([0, 3, 7, 13])].set(jnp.array([5.0, -4, 2, 10]))
    for block in (2, 4, 12):
        rotated = np.asarray(block_hadamard(None, 24, block).apply(x))
        assert_allclose(peak(x, block), [np.abs(rotated).max()], rtol=1e-5)


@every_metric
def test_jit_and_vmap_equal_eager(metric):
    eager, name = metric(X, 4), metric.__name__
    assert_allclose(metrics(X, 4)[name], eager, rtol=1e-5)
    assert_allclose(by_rows(X)[name], eager, rtol=1e-5)
    assert_allclose(metrics(X[0], 4)[name], eager[0], rtol=1e-5)


@every_metric
def test_half_precision_is_computed_in_fp32(metric):
    for dtype in (jnp.bfloat16, jnp.float16):
        low, name = X.astype(dtype), metric.__name__
        got = metrics(low, 4)[name]
        assert got.dtype in (jnp.float32, jnp.bool_)
        assert_array_equal(got, metrics(low.astype(jnp.float32), 4)[name])


@every_metric
@pytest.mark.parametrize(
    "block, words",
    [(5, "block must divide d=24, got 5"), (0, "block must be a whole number of at least 1")],
)
def test_a_block_that_does_not_divide_is_refused(metric, block, words):
    with pytest.raises(ValueError, match=words):
        metric(X, block)
