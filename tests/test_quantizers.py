import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import qwix
import torch
from jax.flatten_util import ravel_pytree
from laws import quick_jit
from numpy.testing import assert_allclose, assert_array_equal
from scipy import integrate, stats

from isojax import quantizers as q
from isojax.metrics import code_entropy_bits

Y = jax.random.t(jax.random.key(0), 4.0, (6, 32)) + 0.1
GRANULARITIES = {"tensor": 0, "token": 0, "channel": 0, "group": 8}

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
    "samples-tensor": q.lloyd_max_samples(Y, 3, normalize="rms", granularity="tensor"),
    "unbiased-token": q.unbiased(q.lloyd_max_gaussian(2)),
    "unbiased-tensor": q.unbiased(q.lloyd_max_sphere(3, 8, granularity="tensor")),
}
FLOATS = {
    "fp4-tensor": q.fp4(),
    "fp4-channel": q.fp4("channel", clip=0.9),
    "mxfp4-group": q.mxfp4(),
    "nvfp4-group": q.nvfp4(),
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
fit_samples = jax.jit(q.lloyd_max_samples, static_argnums=1, static_argnames=("levels", "steps"))
fit_ecsq = jax.jit(q.ecsq_for_rate, static_argnames="per")


@quick_jit
def gradients(quantizer, y):
    """The square of the roundtrip with its gradient, and what `straight_through` gives."""
    through = q.straight_through(quantizer)
    square = jax.value_and_grad(lambda y: jnp.sum(quantizer.roundtrip(y) ** 2))(y)
    straight = jax.grad(lambda y: jnp.sum(WEIGHT * through.roundtrip(y)))(y)
    return square, straight, through.roundtrip(y)


def members(table):
    return pytest.mark.parametrize("quantizer", table.values(), ids=table.keys())


def gaussian(n):
    """Symmetric samples at equal shares of the normal distribution, with its tails."""
    half = stats.norm.ppf((np.arange(n // 2) + 0.5) / n).astype(np.float32)
    return jnp.asarray(np.concatenate([half, -half]))


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


@pytest.mark.parametrize("by, group", GRANULARITIES.items())
@pytest.mark.parametrize(
    "make, levels", [(q.absmax, "restricted"), (q.minmax, "zero_point"), (q.minmax, "affine")]
)
def test_error_is_at_most_half_a_step(make, levels, by, group):
    quantizer = make(4, by, group, levels=levels)
    codes = encode(quantizer, Y)
    step = jnp.broadcast_to(codes.scale, (6, 4, 8) if group else Y.shape).reshape(Y.shape)
    # The range of `zero_point` is moved by up to half a step to put a level at zero.
    slack = 1.0 if levels == "zero_point" else 0.5
    assert bool(jnp.all(jnp.abs(decode(quantizer, codes) - Y) <= slack * step * (1 + 1e-5) + 1e-7))


@pytest.mark.parametrize("by, group", GRANULARITIES.items())
def test_each_scale_is_the_absmax_of_what_shares_it(by, group):
    y = np.asarray(Y)
    shared = {
        "tensor": np.abs(y).max(keepdims=True),
        "token": np.abs(y).max(1, keepdims=True),
        "channel": np.abs(y).max(0, keepdims=True),
        "group": np.abs(y.reshape(6, 4, 8)).max(-1, keepdims=True),
    }[by]
    assert_allclose(q.absmax(3, by, group).encode(Y).scale, shared / 3, rtol=1e-6)


def test_three_bit_absmax_is_the_published_rule():
    y = torch.tensor(np.asarray(Y))
    s = y.abs().max() / 3
    assert_allclose(q.absmax(3).roundtrip(Y), torch.clamp(torch.round(y / s), -3, 3) * s, rtol=1e-6)


@pytest.mark.parametrize("levels, divisor", [("restricted", 3.0), ("balanced", 3.5), ("full", 4.0)])
def test_symmetric_levels_by_torch(levels, divisor):
    y = -torch.tensor(np.asarray(Y))
    s = float(y.abs().max()) / divisor
    expected = torch.fake_quantize_per_tensor_affine(y, s, 0, -3 if divisor == 3 else -4, 3)
    assert_allclose(q.absmax(3, levels=levels).roundtrip(-Y), expected, rtol=1e-5)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("shift", [-5.0, 0.0, 5.0])
def test_zero_point_levels_by_torch(bits, shift):
    y = torch.tensor(np.asarray(Y)) + shift
    low, high = min(float(y.min()), 0), max(float(y.max()), 0)
    s = (high - low) / (2**bits - 1)
    expected = torch.fake_quantize_per_tensor_affine(y, s, round(-low / s), 0, 2**bits - 1)
    got = q.minmax(bits).roundtrip(jnp.asarray(y.numpy()))
    assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_zero_is_exact_for_zero_point_levels_only():
    y = Y.at[0, 0].set(0.0)
    assert q.minmax(3).roundtrip(y)[0, 0] == 0
    assert q.minmax(3, levels="affine").roundtrip(y)[0, 0] != 0


@pytest.mark.parametrize("qtype, bits", [(jnp.int4, 4), (jnp.int8, 8), ("int3", 3)])
def test_balanced_absmax_is_qwix(qtype, bits):
    expected = qwix.dequantize(qwix.quantize(Y, qtype, channelwise_axes=(0,), tiled_axes={1: 8}))
    assert_allclose(q.absmax(bits, "group", 8, levels="balanced").roundtrip(Y), expected, rtol=1e-5)
    expected = qwix.dequantize(qwix.quantize(Y, qtype, channelwise_axes=(0,)))
    assert_allclose(q.absmax(bits, "token", levels="balanced").roundtrip(Y), expected, rtol=1e-5)


def test_percentile_and_std_ranges_by_numpy():
    y = np.asarray(Y)
    scale = q.absmax(3, range_rule="percentile", clip=0.95).encode(Y).scale
    assert_allclose(scale, np.quantile(np.abs(y), 0.95) / 3, rtol=1e-5)
    codes = q.minmax(3, "channel", levels="affine", range_rule="percentile", clip=0.9).encode(Y)
    assert_allclose(codes.offset[0], np.quantile(y, 0.1, axis=0), rtol=1e-4, atol=1e-6)
    assert_allclose(
        q.absmax(3, range_rule="std", clip=4.0).encode(Y).scale, 4 * y.std() / 3, rtol=1e-5
    )


@pytest.mark.parametrize(
    "bits, step, mse", [(2, 0.9957, 0.1188), (3, 0.5860, 0.03744), (4, 0.3352, 0.01154)]
)
def test_mse_clip_finds_the_optimal_uniform_quantizer_of_a_gaussian(bits, step, mse):
    # Max (1960), table II: 2^bits evenly spaced levels placed symmetrically, none of them zero.
    z = gaussian(100_000)
    quantizer = q.minmax(bits, levels="affine", range_rule="mse", steps=300)
    codes = quantizer.encode(z)
    assert_allclose(codes.scale, step, rtol=0.01)
    assert_allclose(jnp.mean((quantizer.decode(codes) - z) ** 2), mse, rtol=2e-3)


@pytest.mark.parametrize("by, group", GRANULARITIES.items())
def test_mse_clip_beats_every_fixed_clip_of_its_grid(by, group):
    def error(quantizer):
        square = jnp.square(roundtrip(quantizer, Y) - Y)
        return square.reshape(6, 4, 8).sum(-1) if group else square

    best = error(q.absmax(3, by, group, range_rule="mse", steps=20))
    axes = {"tensor": None, "token": 1, "channel": 0, "group": ()}[by]
    for clip in np.geomspace(1, 0.01, 20):
        other = error(q.absmax(3, by, group, clip=clip))
        assert bool(jnp.all(best.sum(axes) <= other.sum(axes) * (1 + 1e-4)))


@pytest.mark.parametrize("make", [q.absmax, q.minmax])
@pytest.mark.parametrize("rule, clip", [("max", 1.0), ("percentile", 0.999), ("std", 4.0)])
def test_each_range_rule_has_its_own_default_clip(make, rule, clip):
    default, given = make(3, range_rule=rule), make(3, range_rule=rule, clip=clip)
    assert_array_equal(roundtrip(default, Y), roundtrip(given, Y))


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


NAMED = {
    "absmax": q.absmax(4, "group", 8),
    "absmax_mse": q.absmax(4, "group", 8, range_rule="mse"),
    "minmax": q.minmax(4, "group", 8),
    "minmax_mse": q.minmax(4, "group", 8, range_rule="mse"),
    "kivi": q.minmax(4, "group", 8, levels="affine"),
    "lloyd_max": q.lloyd_max_gaussian(4, granularity="group", group=8),
    "fp4": q.fp4("group", 8),
    "mxfp4": q.mxfp4(),
    "nvfp4": q.nvfp4(),
    "zero": q.zero(),
    "none": q.none(),
}


@pytest.mark.parametrize("name", q.NAMES)
def test_a_name_is_its_factory(name):
    named, direct = q.from_name(name, 4, "group", 8), NAMED[name]
    assert_array_equal(roundtrip(named, Y), roundtrip(direct, Y))


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
        (lambda: q.from_name("absmix", 3), "name.*absmax.*lloyd_max.*'absmix'"),
    ],
)
def test_errors_name_what_was_got_and_what_is_allowed(make, words):
    with pytest.raises(ValueError, match=words):
        make()
