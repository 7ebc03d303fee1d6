import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import torch
from laws import rounded_products
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from isojax import metrics as m
from isojax._core.quantile import quantile

X = jax.random.t(jax.random.key(0), 3.0, (40, 24))
X_HAT = jnp.round(X) + 0.05 * jax.random.normal(jax.random.key(1), X.shape)
AT = m.thresholds(X)
NP, NP_HAT = np.asarray(X, np.float64), np.asarray(X_HAT, np.float64)

PAIRS = {
    "outlier_mse": lambda x, h: m.outlier_mse(x, h, AT.outlier),
    "noise_floor_mse": lambda x, h: m.noise_floor_mse(x, h, AT.floor),
    "mse": m.mse,
    "nmse": m.nmse,
    "relative_error": m.relative_error,
    "cosine": m.cosine,
    "false_firings": m.false_firings,
    "missed_firings": m.missed_firings,
    "firing_precision": m.firing_precision,
    "firing_recall": m.firing_recall,
    "firing_f1": m.firing_f1,
}
ALONE = {
    "quantile": lambda x: m.quantile_threshold(x, 0.9),
    "entropy": lambda x: m.code_entropy_bits(jnp.round(x).astype(int), bins=64),
    "kurtosis": m.kurtosis,
    "peak_to_rms": m.peak_to_rms,
    "effective_rank": m.effective_rank,
    "top_k_energy": lambda x: m.top_k_energy(x, 3),
    "effective_coordinates": m.effective_coordinates,
    "top_k_coordinates": lambda x: m.top_k_coordinates(x, 3),
    "rms": m.rms,
}
METRICS = PAIRS | {name: lambda x, h, f=f: f(x) for name, f in ALONE.items()}
every_name = pytest.mark.parametrize("name", METRICS)
SCALES = jnp.array([1.0, 0.7])


@jax.jit
def all_metrics(x, x_hat):
    return {name: metric(x, x_hat) for name, metric in METRICS.items()}


all_scaled = jax.jit(jax.vmap(lambda s: all_metrics(s * X, X_HAT)))


@every_name
def test_products_have_all_digits_on_gpus_too(name):
    assert rounded_products(METRICS[name], X, X_HAT) == []


@every_name
def test_jit_and_vmap_equal_eager(name):
    metric = METRICS[name]
    eager = [metric(s * X, X_HAT) for s in SCALES]
    assert eager[0].shape == ()
    assert_allclose(all_metrics(X, X_HAT)[name], eager[0], rtol=1e-5)
    assert_allclose(all_scaled(SCALES)[name], eager, rtol=2e-5)


@every_name
def test_bf16_is_computed_in_fp32(name):
    low = X.astype(jnp.bfloat16), X_HAT.astype(jnp.bfloat16)
    high = (a.astype(jnp.float32) for a in low)
    assert_allclose(all_metrics(*low)[name], all_metrics(*high)[name], rtol=1e-6)


@pytest.mark.parametrize("rows", [40, 7])
def test_measure_is_each_metric(rows, monkeypatch):
    # Blocks of 16 vectors, so that one is left incomplete.
    monkeypatch.setattr("isojax.metrics.summary.BLOCK", 16 * 24)
    measured = jax.jit(m.measure)(X[:rows], X_HAT[:rows], AT)
    assert measured.keys() == PAIRS.keys()
    for name, metric in PAIRS.items():
        assert_allclose(measured[name], metric(X[:rows], X_HAT[:rows]), rtol=1e-5, err_msg=name)


def test_measure_takes_thresholds_per_channel_and_more_axes():
    at = m.thresholds(X, pooled=False)
    assert at.outlier.shape == (24,)
    measure = jax.jit(m.measure)
    flat = measure(X, X_HAT, at)
    assert_allclose(flat["outlier_mse"], m.outlier_mse(X, X_HAT, at.outlier), rtol=1e-5)
    deep = measure(X.reshape(5, 8, 24), X_HAT.reshape(5, 8, 24), at)
    assert all(np.isclose(deep[name], flat[name], rtol=1e-5) for name in flat)


LEVELS = (0.0, 0.123, 0.5, 0.9, 0.99, 1.0)


@pytest.mark.parametrize("pooled", [True, False])
def test_threshold_is_the_quantile_of_torch(pooled):
    got = jax.jit(lambda x: [m.quantile_threshold(x, level, pooled) for level in LEVELS])(X)
    magnitude = torch.tensor(np.asarray(X)).abs()
    for level, threshold in zip(LEVELS, got, strict=True):
        expected = torch.quantile(magnitude, level, dim=None if pooled else 0)
        assert_allclose(threshold, expected, rtol=1e-6)


@pytest.mark.parametrize("axis", [None, (1,), (0, 2)])
def test_quantile_is_that_of_numpy_with_signs_ties_and_zeros(axis):
    x = np.random.default_rng(0).integers(-3, 4, (5, 6, 7)).astype(np.float32) * 1e-3
    x[0, 0] = [-0.0, 0.0, 1e30, -1e30, 1e-40, 0.0, -0.0]
    expected = np.quantile(x.astype(np.float64), LEVELS, axis)
    exact = jax.jit(lambda x: [quantile(x, level, axis) for level in LEVELS])(x)
    assert_allclose(jnp.stack(exact), expected, rtol=1e-4, atol=1e-37)
    traced = jax.jit(jax.vmap(lambda x, q: quantile(x, q, axis), (None, 0)))
    assert_allclose(traced(x, jnp.array(LEVELS)), expected, rtol=1e-2, atol=1e-8)


def test_quantile_of_one_number_is_it():
    assert quantile(jnp.array([-2.5]), 0.3) == -2.5


def test_outliers_and_noise_floor_by_numpy():
    square, size = (NP_HAT - NP) ** 2, np.abs(NP)
    top = square[size >= np.quantile(size, 0.99)].mean()
    bottom = square[size <= np.quantile(size, 0.90)].mean()
    assert_allclose(m.outlier_mse(X, X_HAT, AT.outlier), top, rtol=1e-4)
    assert_allclose(m.noise_floor_mse(X, X_HAT, AT.floor), bottom, rtol=1e-4)


def test_thresholds_in_units_of_the_rms():
    at = m.thresholds(X, silent=0.2, fired=0.4, unit="rms")
    rms = np.sqrt((NP**2).mean())
    assert_allclose([at.silent, at.fired], [0.2 * rms, 0.4 * rms], rtol=1e-5)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"unit": "sd"}, "unit.*abs, rms.*'sd'"),
        ({"top": 99.0}, r"top must be in \[0, 1\], got 99.0"),
        ({"bottom": -0.1}, r"bottom must be in \[0, 1\], got -0.1"),
        ({"silent": 1.0, "fired": 0.5}, "silent must be at most fired=0.5, got 1.0"),
    ],
)
def test_bad_thresholds_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        m.thresholds(X, **arguments)


def test_entropy_is_of_integers(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="codes must have an integer dtype, got float32"):
        m.code_entropy_bits(X)


def test_cosine_by_torch():
    x, x_hat = torch.tensor(NP), torch.tensor(NP_HAT)
    x_hat[3] = 0
    expected = torch.nn.functional.cosine_similarity(x, x_hat, dim=-1).mean()
    assert_allclose(m.cosine(X, X_HAT.at[3].set(0)), expected, rtol=1e-5)


def test_errors_by_numpy():
    square = ((NP_HAT - NP) ** 2).mean()
    assert_allclose(m.mse(X, X_HAT), square, rtol=1e-5)
    assert_allclose(m.nmse(X, X_HAT), square / (NP**2).mean(), rtol=1e-5)
    relative = np.linalg.norm(NP_HAT - NP) / np.linalg.norm(NP)
    assert_allclose(m.relative_error(X, X_HAT), relative, rtol=1e-5)


def test_firings_by_hand():
    #                 false  kept   missed  margin  lost   silent  margin
    x = jnp.array([[0.4, 2.0, -3.0, 0.7, 1.5, 0.1, 0.5]])
    h = jnp.array([[-1.1, 5.0, 0.2, 1.2, 0.8, 0.4, 1.4]])
    assert m.false_firings(x, h) == 1
    assert m.missed_firings(x, h) == 1
    assert_allclose(m.firing_precision(x, h), 1 / 4)
    assert_allclose(m.firing_recall(x, h), 1 / 3)
    assert_allclose(m.firing_f1(x, h), 2 / 7)
    assert m.false_firings(x, h, silent=0.6) == 2


def test_thresholds_are_strict_for_firing_and_inclusive_for_quantiles():
    x, h = jnp.array([[0.5, 1.0, 0.4]]), jnp.array([[2.0, 0.0, 1.0]])
    assert m.false_firings(x, h) == 0
    assert m.missed_firings(x, h) == 0
    assert_allclose(m.outlier_mse(x, h, 1.0), 1.0)
    assert_allclose(m.noise_floor_mse(x, h, 0.4), 0.36, rtol=1e-6)


def test_zero_predictor():
    measured = jax.jit(m.measure)(X, jnp.zeros_like(X), AT)
    assert measured["nmse"] == 1
    assert measured["cosine"] == measured["false_firings"] == measured["firing_recall"] == 0
    assert measured["firing_precision"] == 1
    assert measured["firing_f1"] == 0
    assert measured["missed_firings"] == np.sum(np.abs(NP) > 1)


def test_thresholds_are_not_rounded_to_bf16():
    # In bf16, 0.7 is 0.6992 and 0.6 is 0.6016.
    low, high = jnp.array([0.7, 0.6], jnp.bfloat16), jnp.array([2.0, 2.0], jnp.bfloat16)
    assert m.false_firings(low, high, silent=0.7) == 2
    assert m.missed_firings(high, low, silent=0.7) == 2
    assert m.firing_recall(low, 0 * low, 0.6) == 0
    assert m.firing_precision(high, low, 0.6) == 1
    assert m.firing_f1(low, low, 0.6) == m.firing_f1(low, high, 0.6) == 1


def test_firing_scores_are_one_where_nothing_fires():
    measured = jax.jit(m.measure)(0 * X, 0 * X, AT)
    assert all(measured[f"firing_{name}"] == 1 for name in ("precision", "recall", "f1"))


@pytest.mark.parametrize("per, axis", [("tensor", None), ("token", 1), ("channel", 0)])
def test_kurtosis_and_peak_by_scipy_and_numpy(per, axis):
    expected = np.mean(stats.kurtosis(NP, axis=axis, fisher=False))
    assert_allclose(m.kurtosis(X, per), expected, rtol=1e-4)
    expected = np.mean(np.abs(NP).max(axis) / np.sqrt((NP**2).mean(axis)))
    assert_allclose(m.peak_to_rms(X, per), expected, rtol=1e-5)


def test_effective_rank_counts_equal_directions():
    basis = jax.random.orthogonal(jax.random.key(2), 16)
    assert_allclose(m.effective_rank(basis[:5]), 5, rtol=1e-4)
    assert_allclose(m.effective_rank(basis), 16, rtol=1e-4)
    assert_allclose(m.top_k_energy(basis[:5], 2), 0.4, rtol=1e-4)


def test_coordinates_are_as_concentrated_as_the_axes_only_along_them():
    x = np.random.default_rng(3).standard_normal((500, 8)) * np.geomspace(1, 5, 8)
    axes = np.linalg.eigh(x.T @ x)[1]
    aligned = jnp.asarray(x @ axes)
    assert_allclose(m.effective_coordinates(aligned), m.effective_rank(aligned), rtol=1e-4)
    assert_allclose(m.top_k_coordinates(aligned, 3), m.top_k_energy(aligned, 3), rtol=1e-4)
    turned = jnp.asarray(x @ np.linalg.qr(axes + 1)[0])
    assert m.effective_coordinates(turned) > m.effective_rank(aligned)
    share = np.sort((x**2).mean(0)) / (x**2).mean(0).sum()
    assert_allclose(
        m.effective_coordinates(jnp.asarray(x)), np.exp(stats.entropy(share)), rtol=1e-4
    )
    assert_allclose(m.top_k_coordinates(jnp.asarray(x), 2), share[-2:].sum(), rtol=1e-4)


def test_effective_rank_by_numpy():
    share = np.linalg.svd(NP)[1] ** 2
    share = share / share.sum()
    assert_allclose(m.effective_rank(X), np.exp(stats.entropy(share)), rtol=1e-4)
    assert_allclose(m.top_k_energy(X, 3), share[:3].sum(), rtol=1e-5)


def entropy_by_scipy(codes):
    return stats.entropy(np.unique(codes, return_counts=True)[1], base=2)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int32])
def test_entropy_by_scipy(dtype):
    codes = jax.random.randint(jax.random.key(3), (50, 6), 0, 9, dtype) ** 2
    assert_allclose(m.code_entropy_bits(codes), entropy_by_scipy(codes), rtol=1e-5)
    channels = np.mean([entropy_by_scipy(c) for c in np.asarray(codes).T])
    assert_allclose(m.code_entropy_bits(codes, "channel"), channels, rtol=1e-5)
    tokens = np.mean([entropy_by_scipy(c) for c in np.asarray(codes)])
    assert_allclose(m.code_entropy_bits(codes, "token"), tokens, rtol=1e-5)


def test_entropy_wraps_codes_by_the_number_of_bins():
    codes = jnp.arange(-500, 500)
    assert_allclose(m.code_entropy_bits(codes, bins=8), 3.0, rtol=1e-6)
    assert_allclose(m.code_entropy_bits(codes), np.log2(1000), rtol=1e-6)
    assert m.code_entropy_bits(jnp.zeros(10, int)) == 0
    assert_array_equal(m.code_entropy_bits(codes + 77), m.code_entropy_bits(codes))


def test_cross_entropy_is_that_of_smoothed_frequencies():
    rng = np.random.default_rng(0)
    seen, codes = (rng.integers(-low, 6, (50, 3)) for low in (2, 5))
    bits = []
    for column, own in zip(seen.T, codes.T, strict=True):
        count = np.array([np.sum(column == c) for c in own])
        bits.append(-np.log2((count + 2 / 16) / (50 + 2)))
    got = m.cross_entropy_bits(jnp.asarray(codes), jnp.asarray(seen), bins=16, prior=2)
    assert_allclose(got, np.mean(bits), rtol=1e-5)


def test_a_code_with_tables_of_its_own_takes_the_entropy_and_with_others_more():
    rng = np.random.default_rng(0)
    own, other = (jnp.asarray(np.round(s * rng.standard_normal((9000, 2)))) for s in (3, 5))
    own, other = own.astype(int), other.astype(int)
    entropy = m.code_entropy_bits(own, "channel")
    assert_allclose(m.cross_entropy_bits(own, own), entropy, atol=0.01)
    # KL of two Gaussians, in bits: log2(5 / 3) - (1 - (3 / 5)^2) / (2 ln 2)
    more = np.log2(5 / 3) - (1 - 0.36) / (2 * np.log(2))
    assert_allclose(m.cross_entropy_bits(own, other) - entropy, more, atol=0.02)
    with pytest.raises(ValueError, match="prior"):
        m.cross_entropy_bits(own, other, prior=0)


@pytest.mark.parametrize(
    "call", [lambda: m.kurtosis(X, "row"), lambda: m.code_entropy_bits(X.astype(int), "row")]
)
def test_sharing_is_tensor_token_or_channel(call):
    with pytest.raises(ValueError, match="per.*tensor, token, channel.*'row'"):
        call()
