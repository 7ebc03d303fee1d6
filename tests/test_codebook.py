"""Codebooks: levels of densities and of samples, and those that an entropy coder wants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from k_means import best_error, error_and_cells
from laws import gaussian, quick_jit
from numpy.testing import assert_allclose, assert_array_equal
from scipy import integrate, stats

from isojax import quantizers as q
from isojax.metrics import code_entropy_bits

Y = jax.random.t(jax.random.key(0), 4.0, (6, 32)) + 0.1

roundtrip = jax.jit(lambda quantizer, y: quantizer.roundtrip(y))
fit_samples = jax.jit(q.lloyd_max_samples, static_argnums=1, static_argnames=("levels", "steps"))
fit_ecsq = jax.jit(q.ecsq_for_rate, static_argnames="per")

MAX_1960 = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}


@pytest.mark.parametrize("bits, mse", MAX_1960.items())
def test_gaussian_levels_are_those_of_max(bits, mse):
    z = gaussian(200_000)
    known = {1: [0.7980], 2: [0.4528, 1.510], 3: [0.2451, 0.7560, 1.344, 2.152]}
    quantizer = q.lloyd_max_gaussian(bits, normalize="none")
    assert_allclose(jnp.mean((quantizer.roundtrip(z) - z) ** 2), mse, rtol=2e-3)
    assert_array_equal(quantizer.levels, -quantizer.levels[::-1])
    if bits in known:
        assert_allclose(quantizer.levels[2 ** (bits - 1) :], known[bits], rtol=1e-3)


@pytest.mark.parametrize(
    "make", [lambda: q.lloyd_max_gaussian(3), lambda: q.lloyd_max_sphere(3, 11)]
)
def test_levels_of_a_density_are_found_once_and_read_only(make, monkeypatch):
    kept, asarray = [], jnp.asarray
    monkeypatch.setattr(jnp, "asarray", lambda a, *args: kept.append(a) or asarray(a, *args))
    first, second = make().levels, make().levels
    monkeypatch.undo()
    assert_array_equal(first, second)
    found = [a for a in kept if isinstance(a, np.ndarray)]
    assert found[0] is found[1] and not found[0].flags.writeable


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_sample_levels_converge_to_those_of_the_density(bits):
    z = gaussian(200_000)
    fitted, exact = fit_samples(z, bits), q.lloyd_max_gaussian(bits, normalize="none")
    errors = [jnp.mean((roundtrip(c, z) - z) ** 2) for c in (fitted, exact)]
    assert_allclose(errors[0], errors[1], rtol=2e-3)
    assert_allclose(fitted.levels, exact.levels, atol=2e-3 if bits < 4 else 0.2)


def lloyd_by_quadrature(dim, levels, end=1.0):
    """Lloyd's algorithm for the sphere marginal, each centroid by adaptive quadrature."""

    def moment(power, low, high):
        # z = sin t takes the singular ends of the arcsine law away.
        return integrate.quad(lambda t: np.sin(t) ** power * np.cos(t) ** (dim - 2), low, high)[0]

    for _ in range(150):
        borders = np.arcsin([-end, *(levels[1:] + levels[:-1]) / 2, end])
        cells = list(zip(borders[:-1], borders[1:], strict=True))
        levels = np.array([moment(1, a, b) / moment(0, a, b) for a, b in cells])
    return levels


@pytest.mark.parametrize("dim, bits", [(2, 2), (3, 2), (4, 2), (4, 3), (9, 2)])
def test_sphere_levels_by_quadrature(dim, bits):
    start = np.linspace(-0.9, 0.9, 2**bits) / np.sqrt(max(1, dim / 4))
    assert_allclose(
        q.lloyd_max_sphere(bits, dim).levels, lloyd_by_quadrature(dim, start), atol=2e-4
    )


def test_sphere_levels_are_gaussian_in_many_dimensions():
    gaussian_levels = q.lloyd_max_gaussian(3).levels
    assert_allclose(q.lloyd_max_sphere(3, 4096).levels * 64, gaussian_levels, rtol=1e-3)


def test_sphere_codebook_has_the_error_of_theory_on_random_unit_vectors():
    x = jax.random.normal(jax.random.key(3), (2000, 128))
    error = jnp.sum((q.lloyd_max_sphere(3, 128).roundtrip(x) - x) ** 2, -1) / jnp.sum(x**2, -1)
    assert_allclose(jnp.mean(error), 0.0342, rtol=0.01)


def test_sample_levels_are_a_fixed_point_of_lloyd_by_numpy():
    y = np.asarray(jax.random.laplace(jax.random.key(4), (20_000,)))
    levels = np.asarray(fit_samples(jnp.asarray(y), 3, levels=7, steps=400).levels)
    cell = np.abs(y[:, None] - levels).argmin(1)
    assert_allclose([y[cell == i].mean() for i in range(7)], levels, atol=2e-3)
    assert abs(levels[3]) < 0.03


def test_sample_levels_cover_a_far_outlier_and_keep_constants():
    fit = jax.jit(lambda y: q.lloyd_max_samples(y, 2))
    outlier = jnp.concatenate([gaussian(1000), jnp.full(24, 300.0)])
    assert_allclose(fit(outlier).levels[-1], 300, rtol=1e-3)
    constant = jnp.full(1024, 0.3)
    assert_allclose(fit(constant).roundtrip(constant), constant, rtol=1e-4)


def test_sample_fit_vmaps():
    batch = jnp.stack([Y, 3 * Y])
    fit = lambda y: q.lloyd_max_samples(y, 2, normalize="rms", granularity="tensor")  # noqa: E731
    fitted = quick_jit(jax.vmap(fit))(batch)
    assert fitted.levels.shape == (2, 4)
    assert_allclose(fitted.levels[0], fitted.levels[1], rtol=1e-4)
    y_hat = jax.vmap(roundtrip)(fitted, batch)
    assert_allclose(3 * y_hat[0], y_hat[1], rtol=1e-4)


def test_ecsq_has_the_high_rate_error_of_a_gaussian():
    # Gish and Pierce (1968): D = (pi e / 6) 2^(-2R) sigma^2.
    z = gaussian(200_000)
    quantizer = fit_ecsq(z, 4.0)
    codes = quantizer.encode(z)
    assert_allclose(code_entropy_bits(codes.values), 4.0, atol=1e-3)
    error = jnp.mean((quantizer.decode(codes) - z) ** 2)
    assert_allclose(error, np.pi * np.e / 6 * 2.0**-8, rtol=0.01)


@pytest.mark.parametrize("rate", [0.3, 1.28, 3.0])
def test_ecsq_meets_its_rate_with_one_step_for_all_channels(rate):
    spread = jax.random.normal(jax.random.key(5), (4096, 6)) * jnp.geomspace(0.01, 100, 6)
    codes = fit_ecsq(spread, rate, per="channel").encode(spread)
    mean = np.mean(
        [stats.entropy(np.unique(c, return_counts=True)[1], base=2) for c in codes.values.T]
    )
    assert_allclose(mean, rate, atol=5e-3)


def test_ecsq_fit_vmaps_over_rates():
    z = gaussian(4096)
    steps = jax.vmap(lambda rate: fit_ecsq(z, rate).step)(jnp.array([2.0, 3.0]))
    assert_allclose(steps, [fit_ecsq(z, rate).step for rate in (2.0, 3.0)], rtol=1e-5)


def hard_samples():
    rng = np.random.default_rng(0)
    z = rng.standard_normal(19_999, np.float32)
    cases = {f"one of {m:g}": (np.append(z, m), 4) for m in (1e3, 1e4, 1e5, 1e6, 1e30, -1e38)}
    cases["two modes"] = (np.append(z[:10_000] - 1000, z[10_000:] + 1000), 4)
    cases["one of 4096"] = (np.append(z[:4095], 3000), 3)
    hidden = z[:16_384].copy()
    hidden[[0, 1, 2, 3, 4, 5]] = 900, -300, 200, 5000, 4000, 2500
    cases["massive"] = (hidden, 2)
    cases["cauchy"] = (rng.standard_cauchy(20_000), 4)
    cases["1e20"] = (z * 1e20, 3)
    cases["gaussian"] = (z, 8)
    return {name: (np.asarray(v, np.float32), bits) for name, (v, bits) in cases.items()}


@pytest.mark.parametrize("v, bits", hard_samples().values(), ids=hard_samples().keys())
def test_sample_levels_are_as_good_as_the_best_of_k_means_and_all_used(v, bits):
    levels = fit_samples(jnp.asarray(v), bits).levels
    error, used = error_and_cells(v, levels)
    assert np.isfinite(levels).all() and used == 2**bits
    assert error < 1.05 * best_error(v, 2**bits)


def test_every_one_of_few_values_has_its_level():
    values = np.arange(-8, 8) ** 3 + 5000.0
    v = np.repeat(values, np.random.default_rng(0).integers(1, 900, 16)).astype(np.float32)
    assert_allclose(fit_samples(jnp.asarray(v), 4).levels, values, rtol=1e-6)
    few = fit_samples(jnp.asarray(v[v > 5100]), 4)
    assert_allclose(roundtrip(few, jnp.asarray(v[v > 5100])), v[v > 5100], rtol=1e-6)
