"""Laws of all quantizers, their names, and what they refuse."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from laws import quick_jit
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from isojax import quantizers as q

Y = jax.random.t(jax.random.key(0), 4.0, (6, 32)) + 0.1

UNIFORM = {
    "restricted-tensor": q.absmax(3),
    "restricted-group-mse": q.absmax(3, "group", 8, range_rule="mse", steps=8),
    "balanced-token-percentile": q.absmax(2, "token", levels="balanced", range_rule="percentile"),
    "full-channel-std": q.absmax(8, "channel", levels="full", range_rule="std", clip=2.0),
    "zero_point-token": q.minmax(4, "token", clip=0.9),
    "zero_point-channel-mse": q.minmax(3, "channel", range_rule="mse", steps=8),
    "affine-group": q.minmax(2, "group", 8, levels="affine"),
    "affine-tensor-percentile": q.minmax(3, levels="affine", range_rule="percentile", clip=0.9),
    "affine-token-std": q.minmax(8, "token", levels="affine", range_rule="std", clip=2.0),
}
LEVELS = jnp.array([0.5, -1.0, 2.0, 0.0, 0.1])
NORMALIZED = {
    "gaussian-token": q.lloyd_max_gaussian(4),
    "sphere-group": q.lloyd_max_sphere(3, 8, granularity="group", group=8),
    "levels-channel": q.nearest_level(LEVELS, "norm", "channel"),
    "samples-peak": q.lloyd_max_samples(Y, 3, normalize="peak"),
    "samples-tensor": q.lloyd_max_samples(Y, 3, normalize="rms", granularity="tensor"),
    "unbiased-token": q.unbiased(q.lloyd_max_gaussian(2)),
    "unbiased-tensor": q.unbiased(q.lloyd_max_sphere(3, 8, granularity="tensor")),
}
FLOATS = {
    "fp4-tensor": q.fp4(),
    "fp4-channel": q.fp4("channel", clip=0.9),
    "mxfp4-group": q.mxfp4(),
    "nvfp4-group": q.nvfp4(),
    "nf4-token": q.nf4(),
    "nf4-group": q.nf4("group", 8),
    "e4m3-tensor": q.fp8("e4m3", "tensor"),
    "e5m2-group": q.fp8("e5m2", "group", 8),
}
SCALED = UNIFORM | NORMALIZED | FLOATS
STORED = SCALED | {
    "levels": q.nearest_level(LEVELS),
    "nvfp4-group-static": q.nvfp4(0.001),
    "ecsq": q.ecsq(0.25),
    "zero": q.zero(),
    "none": q.none(),
}
MEMBERS = STORED | {"noise": q.gaussian_noise(jax.random.key(1), Y.shape, 0.1)}

WEIGHT = jnp.arange(Y.size, dtype=jnp.float32).reshape(Y.shape)

roundtrip = jax.jit(lambda quantizer, y: quantizer.roundtrip(y))
encode = quick_jit(lambda quantizer, y: quantizer.encode(y))
encode_like = quick_jit(lambda quantizer, y, codes: quantizer.encode_like(y, codes))
decode = quick_jit(lambda quantizer, codes: quantizer.decode(codes))


@quick_jit
def gradients(quantizer, y):
    """The square of the roundtrip with its gradient, and what `straight_through` gives."""
    through = q.straight_through(quantizer)
    square = jax.value_and_grad(lambda y: jnp.sum(quantizer.roundtrip(y) ** 2))(y)
    straight = jax.grad(lambda y: jnp.sum(WEIGHT * through.roundtrip(y)))(y)
    return square, straight, through.roundtrip(y)


def members(table):
    return pytest.mark.parametrize("quantizer", table.values(), ids=table.keys())


@members(MEMBERS)
def test_shape_is_kept_and_decoding_is_fp32(quantizer):
    codes = encode(quantizer, Y)
    decoded = decode(quantizer, codes)
    assert codes.values.shape == decoded.shape == Y.shape
    assert decoded.dtype == jnp.float32
    assert_allclose(roundtrip(quantizer, Y), decoded, rtol=1e-6, atol=1e-6)


@members(STORED)
def test_idempotent_at_the_same_scale(quantizer):
    codes = encode(quantizer, Y)
    decoded = decode(quantizer, codes)
    again = encode_like(quantizer, decoded, codes)
    assert_array_equal(again.values, codes.values)
    assert_array_equal(decode(quantizer, again), decoded)


@members(STORED)
def test_codes_fit_their_bits(quantizer):
    codes = encode(quantizer, Y)
    if codes.bits is None:
        assert quantizer in (STORED["ecsq"], STORED["none"])
    else:
        codes = encode_like(quantizer, 100 * Y, codes)
        assert np.ptp(np.asarray(codes.values, int)) <= 2**codes.bits - 1


@members({name: m for name, m in STORED.items() if "-" not in name or "tensor" in name})
def test_monotone_where_all_share_a_scale(quantizer):
    line = jnp.linspace(-8, 8, Y.size).reshape(Y.shape)
    values = decode(quantizer, encode_like(quantizer, line, encode(quantizer, Y)))
    assert bool(jnp.all(jnp.diff(values.ravel()) >= 0))


@members(MEMBERS)
def test_jit_equals_eager(quantizer):
    assert_allclose(roundtrip(quantizer, Y), quantizer.roundtrip(Y), rtol=1e-5, atol=1e-6)


@members(MEMBERS)
def test_vmap_equals_loop(quantizer):
    batch = np.stack([Y, -2 * Y, Y[::-1]])
    looped = [roundtrip(quantizer, jnp.asarray(y)) for y in batch]
    got = quick_jit(jax.vmap(quantizer.roundtrip))(batch)
    assert_allclose(got, looped, rtol=1e-5, atol=1e-6)


@members(MEMBERS)
def test_bf16_is_computed_in_fp32(quantizer):
    low = Y.astype(jnp.bfloat16)
    got = roundtrip(quantizer, low)
    assert got.dtype == jnp.bfloat16
    expected = roundtrip(quantizer, low.astype(jnp.float32)).astype(jnp.bfloat16)
    assert_array_equal(got.astype(jnp.float32), expected.astype(jnp.float32))


@members(MEMBERS)
def test_zeros_and_their_gradients_are_finite(quantizer):
    for y in (jnp.zeros_like(Y).at[0].set(Y[0]), jnp.zeros_like(Y)):
        value, grad = gradients(quantizer, y)[0]
        assert np.isfinite(value) and np.isfinite(grad).all()


@members(SCALED)
def test_zeros_stay_zeros(quantizer):
    assert_array_equal(roundtrip(quantizer, jnp.zeros_like(Y)), jnp.zeros_like(Y))


@members(SCALED)
def test_scale_equivariant(quantizer):
    assert_array_equal(roundtrip(quantizer, 4 * Y), 4 * roundtrip(quantizer, Y))


@members(MEMBERS)
def test_new_leaves_do_not_recompile(quantizer):
    roundtrip(quantizer, Y)
    compiled = roundtrip._cache_size()
    roundtrip(jax.tree.map(lambda leaf: 0.5 * leaf, quantizer), 0.5 * Y)
    assert roundtrip._cache_size() == compiled


@members(MEMBERS)
def test_straight_through_has_the_gradient_of_the_identity(quantizer):
    _, gradient, value = gradients(quantizer, Y)
    assert_array_equal(gradient, WEIGHT)
    assert_allclose(value, roundtrip(quantizer, Y), atol=1e-5)


def test_learned_scales_move_the_error_with_the_peak():
    y, weight = jnp.array([0.3, -1.1, 2.0, 7.3]), jnp.array([1.0, -2.0, 0.5, 3.0])
    through = q.straight_through(q.absmax(3), scales="learned")
    error = through.roundtrip(y) - y
    # the peak is 3 steps: a larger one lengthens every error in proportion
    want = np.asarray(weight) + np.array([0, 0, 0, error @ weight / y[3]])
    got = jax.grad(lambda y: through.roundtrip(y) @ weight)(y)
    assert_allclose(got, want, rtol=1e-5)
    assert_allclose(through.roundtrip(y), q.absmax(3).roundtrip(y), rtol=1e-6)
    with pytest.raises(ValueError, match="scales must be real numbers"):
        q.straight_through(q.ecsq(1.0), "learned").roundtrip(y)
    with pytest.raises(ValueError, match="scales must be one of held, learned"):
        q.straight_through(q.absmax(3), "free")


@members({name: m for name, m in MEMBERS.items() if name != "zero"})
def test_integers_are_refused(quantizer, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="y must have a floating dtype, got int32"):
        quantizer.encode(Y.astype(jnp.int32))


def test_fp64_of_numpy_is_computed_in_fp32_without_a_warning(monkeypatch, recwarn):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    y = q.absmax(3).roundtrip(np.asarray(Y, np.float64))
    assert y.dtype == jnp.float32
    assert_allclose(y, q.absmax(3).roundtrip(Y), rtol=1e-6)
    assert not recwarn.list


def test_entropy_coding_needs_integer_codes(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="codes must have an integer dtype, got float32"):
        q.rate_bits(q.none().encode(Y), "entropy")


def test_gaussian_noise_has_the_given_energy():
    y = jnp.ones((400, 500))
    noisy = q.gaussian_noise(jax.random.key(6), y.shape, 0.3).roundtrip(y)
    assert_allclose(jnp.mean((noisy - y) ** 2), 0.3, rtol=0.02)
    keys = jax.random.split(jax.random.key(7), 3)
    batch = jax.vmap(lambda key: q.gaussian_noise(key, (8,), 0.3))(keys)
    assert np.unique(ravel_pytree(batch)[0]).size == 24


@pytest.mark.parametrize(
    "quantizer, bits",
    [
        (q.absmax(3), 3 + 16 / 192),
        (q.absmax(4, "group", 8), 4 + 16 / 8),
        (q.minmax(4, "token"), 4 + 32 / 32),
        (q.lloyd_max_gaussian(3, granularity="channel"), 3 + 16 / 6),
        (q.nearest_level(jnp.arange(7.0)), 3),
        (q.fp4("group", 8), 4 + 16 / 8),
        (q.mxfp4(), 4 + 8 / 32),
        (q.nvfp4(), 4 + 8 / 16 + 32 / 192),
        (q.nvfp4(0.001), 4 + 8 / 16),
        (q.nf4("group", 8), 4 + 16 / 8),
        (q.fp8("e5m2", "token"), 8 + 16 / 32),
        (q.zero(), 0),
    ],
)
def test_fixed_rate_counts_scales_and_offsets(quantizer, bits):
    assert_allclose(q.rate_bits(quantizer.encode(Y)), bits, rtol=1e-6)


def test_entropy_rate_is_below_the_fixed_rate():
    codes = q.absmax(4, "token").encode(Y)
    counts = np.unique(codes.values, return_counts=True)[1]
    expected = stats.entropy(counts, base=2) + 16 / 32
    assert_allclose(q.rate_bits(codes, "entropy"), expected, rtol=1e-5)
    assert expected < q.rate_bits(codes)


def test_encode_like_keeps_calibrated_scales():
    quantizer = q.absmax(4, "channel")
    calibrated = quantizer.encode(Y)
    codes = quantizer.encode_like(10 * Y[:2], calibrated)
    assert_array_equal(codes.scale, calibrated.scale)
    assert int(jnp.max(jnp.abs(codes.values))) == 7


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: q.absmax(1), "bits.*got 1"),
        (lambda: q.absmax(3, "row"), "granularity.*tensor, token, channel, group.*'row'"),
        (lambda: q.absmax(3, "group"), "group.*got 0"),
        (lambda: q.absmax(3, "token", 8), "group must be 0.*got 8"),
        (lambda: q.absmax(3, "group", 5).encode(Y), "group must divide.*32.*got 5"),
        (lambda: q.absmax(3, levels="affine"), "levels.*restricted, balanced, full"),
        (lambda: q.minmax(3, range_rule="absmax"), "range_rule.*max, percentile, std, mse"),
        (lambda: q.nearest_level(jnp.zeros(1)), "levels.*2 to 256"),
        (lambda: q.lloyd_max_sphere(3, 1), "dim.*at least 2.*got 1"),
        (lambda: q.lloyd_max_samples(Y, 3, levels=1), "levels.*got 1"),
        (lambda: q.ecsq(0.0), "step.*above zero"),
        (lambda: q.ecsq_for_rate(Y, 12.0), "rate_bits.*got 12"),
        (lambda: q.ecsq_for_rate(Y, 0.0), "rate_bits must be above 0 .*got 0.0"),
        (lambda: q.ecsq_for_rate(Y, -1.0), "rate_bits must be above 0 .*got -1.0"),
        (lambda: q.absmax(3, clip=0.0), "clip must be above 0 and at most 1 for 'max', got 0.0"),
        (lambda: q.minmax(3, clip=1.5), "clip must be above 0 and at most 1 for 'max', got 1.5"),
        (lambda: q.absmax(3, range_rule="std", clip=0.0), "clip must be above 0 for 'std', got 0"),
        (lambda: q.absmax(3, range_rule="percentile", clip=99.0), "above 0 and at most 1 .*99.0"),
        (lambda: q.minmax(3, range_rule="percentile", clip=0.5), "above 0.5 and at most 1 .*0.5"),
        (lambda: q.rate_bits(q.ecsq(1.0).encode(Y)), "coding.*unbounded"),
    ],
)
def test_errors_name_what_was_got_and_what_is_allowed(make, words):
    with pytest.raises(ValueError, match=words):
        make()
