import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from isojax.learn.smoothquant import smooth, smooth_scale

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((64, 8)) * 2.0 ** np.arange(-4, 4), jnp.float32)
READ = tuple(jnp.asarray(RNG.standard_normal((8, n)), jnp.float32) for n in (5, 3))
PEAK = jnp.max(jnp.abs(X), 0)


def row_peaks(weights):
    return np.abs(np.concatenate(weights, 1)).max(1)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_products_stay_the_same(alpha):
    x, read = smooth(smooth_scale(PEAK, READ, alpha), X, READ)
    for w, smoothed in zip(READ, read, strict=True):
        assert_allclose(x @ smoothed, X @ w, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_ranges_are_shared_out_as_published(alpha):
    x, read = smooth(smooth_scale(PEAK, READ, alpha), X, READ)
    both = PEAK * row_peaks(READ)
    assert_allclose(np.abs(x).max(0), PEAK ** (1 - alpha) * row_peaks(READ) ** (1 - alpha), 1e-5)
    assert_allclose(row_peaks(read), both**alpha, rtol=1e-5)


def test_half_equalises_the_ranges_of_activations_and_weights():
    x, read = smooth(smooth_scale(PEAK, READ), X, READ)
    assert_allclose(np.abs(x).max(0), row_peaks(read), rtol=1e-5)


def test_channels_that_are_zero_on_either_side_are_left_alone():
    read = tuple(w.at[2].set(0) for w in READ)
    scale = smooth_scale(PEAK.at[1].set(0), read)
    assert_array_equal(scale[1:3], [1, 1])
    others = np.array([0, 3, 4, 5, 6, 7])
    assert_array_equal(scale[others], smooth_scale(PEAK, READ)[others])


def test_it_merges_into_the_norm_in_front():
    gamma, normed = jnp.linspace(0.5, 2, 8), X / PEAK
    scale = smooth_scale(jnp.max(jnp.abs(normed * gamma), 0), READ)
    merged, read = smooth(scale, gamma, READ)
    assert_allclose((normed * merged) @ read[0], (normed * gamma) @ READ[0], rtol=1e-4, atol=1e-5)


def test_it_merges_into_up_proj_in_front_of_down_proj():
    gate, up = jax.nn.silu(X), {"kernel": READ[0].T, "bias": jnp.arange(8.0)}
    hidden = lambda up: gate[:, :5] @ up["kernel"] + up["bias"]  # noqa: E731
    scale = smooth_scale(jnp.max(jnp.abs(gate * hidden(up)), 0), READ)
    smoothed, (down, _) = smooth(scale, up, READ)
    want = (gate * hidden(up)) @ READ[0]
    assert_allclose((gate * hidden(smoothed)) @ down, want, rtol=1e-4, atol=1e-4)


def test_layers_stack_and_vmap():
    peaks, read = jnp.stack([PEAK, 3 * PEAK]), tuple(jnp.stack([w, w**2]) for w in READ)
    stacked = smooth_scale(peaks, read)
    assert_allclose(stacked, jax.vmap(smooth_scale)(peaks, read), rtol=1e-6)
    assert_allclose(stacked[0], smooth_scale(PEAK, READ), rtol=1e-6)
    assert_allclose(smooth(stacked, peaks, read)[1][0][0], smooth(stacked[0], X, READ)[1][0])


def test_bf16_is_computed_in_fp32():
    low = [w.astype(jnp.bfloat16) for w in READ]
    scale = smooth_scale(PEAK.astype(jnp.bfloat16), low)
    wide = [w.astype(jnp.float32) for w in low]
    assert_array_equal(scale, smooth_scale(PEAK.astype(jnp.bfloat16).astype(jnp.float32), wide))
    got, want = (smooth(scale, X, w)[1][0] for w in (low, wide))
    assert got.dtype == jnp.bfloat16
    assert_array_equal(got, want.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: smooth_scale(PEAK, READ, 1.5), "alpha must be from 0 to 1, got 1.5"),
        (lambda: smooth_scale(PEAK, ()), "weights must be at least one array"),
        (lambda: smooth_scale(PEAK, [READ[0][:7]]), r"weights must have shape \(8, 'out'\).*7, 5"),
        (lambda: smooth(PEAK, X[:, :7], READ), "written.*last axis of length 8.*64, 7"),
        (lambda: smooth(PEAK, X, READ[0].T), "read must have 8 rows.*5, 8"),
    ],
)
def test_errors_name_what_was_got_and_what_is_allowed(make, words, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=words):
        make()
