import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import quick_jit
from numpy.testing import assert_allclose, assert_array_equal
from scipy import integrate, optimize, stats

from isojax import metrics as m
from isojax import quantizers as q
from isojax.metrics.rate_distortion import LLOYD_MAX_MSE

RNG = np.random.default_rng(0)
SPECTRA = {
    "flat": np.full(6, 0.7),
    "one": np.array([3.0]),
    "geometric": np.geomspace(100, 1e-4, 24),
    "zeros": np.array([0.0, 2.0, 0.0, 1e-3]),
    "random": RNG.gamma(0.3, size=64),
}
RATES = (0.0, 0.1, 1.0, 2.5)
spectra = pytest.mark.parametrize("v", SPECTRA.values(), ids=SPECTRA.keys())
distortion = jax.jit(m.shannon_distortion)
rate = jax.jit(m.shannon_rate)


def f32(v):
    return jnp.asarray(v, jnp.float32)


def water_filling(v, level):
    """Rate and distortion at a water level."""
    v = v[v > 0]
    return np.maximum(np.log2(v / level) / 2, 0).sum(), np.minimum(v, level).sum()


@spectra
@pytest.mark.parametrize("bits", RATES)
def test_reverse_water_filling_is_that_of_a_root_finder(v, bits):
    low, high = np.log(v[v > 0].min()) - 50, np.log(v.max())
    at = optimize.brentq(lambda t: water_filling(v, np.exp(t))[0] - bits * len(v), low, high + 1e-9)
    expected = water_filling(v, np.exp(at))[1] / len(v)
    assert_allclose(distortion(f32(v), bits), expected, rtol=2e-5)
    assert_allclose(rate(f32(v), expected), bits, atol=1e-5)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_no_split_of_the_error_has_a_lower_rate(share):
    v = SPECTRA["random"][:5]
    total = share * v.sum()
    found = optimize.minimize(
        lambda logs: np.maximum(np.log2(v) - logs, 0).sum() / 2,
        np.log2(share * v),
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda logs: total - np.exp2(logs).sum()},
        bounds=[(None, np.log2(x)) for x in v],
    )
    assert found.success
    assert_allclose(rate(f32(v), total / len(v)), found.fun / len(v), rtol=1e-3)


@spectra
def test_rate_and_distortion_are_inverse_and_end_where_they_must(v):
    v = f32(v)
    for bits in RATES:
        assert_allclose(rate(v, distortion(v, bits)), bits, atol=1e-4)
    assert_allclose(distortion(v, 0.0), v.mean(), rtol=1e-6)
    assert rate(v, 1.1 * v.mean()) == 0 and rate(v, 0.0) == np.inf
    assert distortion(v, np.inf) == 0


def test_the_slope_is_the_water_level():
    v = f32(SPECTRA["geometric"])
    slope = quick_jit(jax.grad(lambda bits: m.shannon_distortion(v, bits)))(1.0)
    assert_allclose(water_filling(np.asarray(v, float), -slope / np.log(4))[0] / 24, 1.0, rtol=1e-4)


@spectra
def test_at_high_rate_the_gain_over_equal_variances_is_the_coding_gain(v):
    v = f32(v[v > 0])
    equal = jnp.full_like(v, v.mean())
    gain = 10 * np.log10(distortion(equal, 20.0) / distortion(v, 20.0))
    assert_allclose(m.coding_gain_db(v), gain, atol=1e-3)


def test_values_in_closed_form():
    v = f32([4.0, 1.0])
    assert_allclose(m.coding_gain_db(v), 10 * np.log10(2.5 / 2), rtol=1e-5)
    assert_allclose(distortion(v, 2.0), 2 / 2**4, rtol=1e-6)
    # one bit in all: the level is 1, so that the second component takes none
    assert_allclose(distortion(v, 0.5), 1.0, rtol=1e-6)
    assert_allclose(rate(v, 1.0), 0.5, rtol=1e-6)
    assert_allclose(m.distance_to_shannon_db(2.0, 0.5, v), 10 * np.log10(2), rtol=1e-5)
    assert m.coding_gain_db(f32([1.0, 0.0])) == np.inf


def test_gaussian_entropy_by_scipy():
    a = RNG.normal(size=(5, 5))
    covariance = a @ a.T
    expected = stats.multivariate_normal(cov=covariance).entropy() / np.log(2) / 5
    assert_allclose(m.gaussian_entropy_bits(f32(covariance)), expected, rtol=1e-4)
    v = SPECTRA["geometric"]
    expected = stats.norm(scale=np.sqrt(v)).entropy().mean() / np.log(2)
    assert_allclose(m.gaussian_entropy_bits(f32(v)), expected, rtol=1e-5)


def test_scalar_quantization_is_one_and_a_half_decibels_from_shannon():
    v = f32([1.0, 2.0, 4.0, 8.0])
    x = jax.random.normal(jax.random.key(0), (50_000, 4)) * jnp.sqrt(v)
    quantizer = jax.jit(lambda x: q.ecsq_for_rate(x, 4.0, "channel"))(x)
    distance = m.distance_to_shannon_db(m.mse(x, quantizer.roundtrip(x)), 4.0, v)
    assert_allclose(distance, 10 * np.log10(np.pi * np.e / 6), atol=0.03)


LAWS = {
    "uniform": stats.uniform(-3, 5),
    "gaussian": stats.norm(2, 0.01),
    "laplace": stats.laplace(scale=3),
    "exponential": stats.expon(),
    "student": stats.t(3),
}


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())
def test_the_entropy_of_samples_is_that_of_their_density(law):
    x = law.rvs((20_000, 4), random_state=np.random.default_rng(1))
    expected = law.entropy() / np.log(2)
    # the deviation of log2 of the density itself, which no estimator is below, and the bias
    noise = np.std(law.logpdf(x)) / np.log(2) / np.sqrt(x.size)
    assert_allclose(m.differential_entropy_bits(f32(x)), expected, atol=5 * noise + 0.01)


def test_the_entropy_of_few_uniform_samples_has_no_bias():
    x = jax.random.uniform(jax.random.key(2), (20_000, 12))
    for window in (1, 3, 11):
        assert_allclose(m.differential_entropy_bits(x, "token", window), 0, atol=0.02)


def test_entropy_moves_with_the_scale_and_is_averaged_over_what_shares_a_density():
    x = jax.random.normal(jax.random.key(3), (2000, 3))
    spread = x * f32([1.0, 8.0, 64.0]) - 5
    entropy = m.differential_entropy_bits(x, "channel")
    assert_allclose(m.differential_entropy_bits(spread, "channel"), entropy + 3, atol=1e-3)
    each = [m.differential_entropy_bits(column) for column in x.T]
    assert_allclose(entropy, np.mean(each), rtol=1e-5)
    assert_allclose(m.differential_entropy_bits(x.T, "token"), entropy, rtol=1e-6)
    assert m.differential_entropy_bits(jnp.zeros(100)) == -np.inf


def test_fine_steps_take_the_differential_entropy_less_the_log_of_the_step():
    x = jax.random.laplace(jax.random.key(4), (200_000,))
    entropy = m.code_entropy_bits(q.ecsq(0.1).encode(x).values)
    assert_allclose(m.differential_entropy_bits(x) - np.log2(0.1), entropy, atol=0.01)


@pytest.mark.parametrize("bits", range(9))
def test_the_table_holds_the_errors_of_lloyd_max_quantizers(bits):
    levels = np.zeros(1)
    if bits:
        levels = np.asarray(q.lloyd_max_gaussian(bits, normalize="none").levels, float)
    borders = np.concatenate([[-9], (levels[1:] + levels[:-1]) / 2, [9]])
    square = sum(
        integrate.quad(lambda x, y=y: (x - y) ** 2 * stats.norm.pdf(x), a, b)[0]
        for y, a, b in zip(levels, borders[:-1], borders[1:], strict=True)
    )
    assert_allclose(LLOYD_MAX_MSE[bits], square, rtol=2e-4)


@pytest.mark.parametrize("mean_bits", [0, 0.75, 2, 3.25, 4])
def test_allocation_is_that_of_exhaustive_search(mean_bits):
    table = np.asarray(LLOYD_MAX_MSE[:5])
    rows = [c for c in itertools.product(range(5), repeat=4) if sum(c) == 4 * mean_bits]
    choices = np.array(rows)
    for v in [*RNG.gamma(0.5, size=(5, 4)), np.ones(4), np.array([0.0, 0, 1, 0])]:
        bits = np.asarray(m.allocate_bits(f32(v), mean_bits, most=4))
        assert bits.sum() == 4 * mean_bits and bits.min() >= 0 and bits.max() <= 4
        best = (v * table[choices]).sum(-1).min()
        assert_allclose((v * table[bits]).sum(), best, rtol=1e-5)


def test_at_two_to_the_minus_two_bits_allocation_is_rounded_water_filling():
    # Variances that are powers of four: the water level leaves whole bits everywhere.
    v = f32(4.0 ** np.array([5, 0, 3, -7, 1]))
    bits = m.allocate_bits(v, 9 / 5, distortions=4.0 ** -np.arange(9))
    assert_array_equal(bits, [5, 0, 3, 0, 1])
    assert_allclose(distortion(v, 9 / 5), jnp.mean(jnp.minimum(v, 1)), rtol=1e-5)


def test_components_may_have_distortions_of_their_own():
    table = f32([[1.0, 0.5, 0.4], [1.0, 0.1, 0.05], [1.0, 0.95, 0.9]])
    assert_array_equal(m.allocate_bits(jnp.ones(3), 2 / 3, 2, table), [1, 1, 0])
    assert_array_equal(m.allocate_bits(f32([1, 1, 100]), 2 / 3, 2, table), [0, 0, 2])


def test_allocation_vmaps_over_layers_and_heads():
    v = f32(RNG.gamma(0.5, size=(2, 3, 16)))
    bits = jax.jit(jax.vmap(jax.vmap(lambda v: m.allocate_bits(v, 2.5))))(v)
    assert bits.shape == v.shape and np.all(bits.sum(-1) == 40)
    assert_array_equal(bits[1, 2], m.allocate_bits(v[1, 2], 2.5))


METRICS = {
    "gaussian_entropy_bits": m.gaussian_entropy_bits,
    "coding_gain_db": m.coding_gain_db,
    "shannon_distortion": lambda v: m.shannon_distortion(v, 1.5),
    "shannon_rate": lambda v: m.shannon_rate(v, 0.2),
    "distance": lambda v: m.distance_to_shannon_db(0.2, 1.5, v),
    "differential_entropy_bits": m.differential_entropy_bits,
}


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())
def test_vmap_is_a_loop_and_bf16_is_computed_in_fp32(metric):
    v = f32(RNG.gamma(2.0, size=(3, 24)))
    loop = [metric(row) for row in v]
    assert_allclose(jax.jit(jax.vmap(metric))(v), loop, rtol=1e-4)
    low = v[0].astype(jnp.bfloat16)
    assert_allclose(metric(low), metric(low.astype(jnp.float32)), rtol=1e-6)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: m.allocate_bits(jnp.ones(3), 0.5), "whole number of bits .* got 0.5 for 3"),
        (lambda: m.allocate_bits(jnp.ones(3), 5, most=4), "from 0 to 4 .* got 5"),
        (lambda: m.allocate_bits(jnp.ones(3), 2, most=9), r"reach most=9 bits.*\(9,\)"),
        (lambda: m.differential_entropy_bits(jnp.ones(8), window=8), "below the 8 .* got 8"),
        (lambda: m.differential_entropy_bits(jnp.ones(8), "group"), "per must be one of"),
    ],
)
def test_errors_name_what_was_got_and_what_is_allowed(make, words):
    with pytest.raises(ValueError, match=words):
        make()
