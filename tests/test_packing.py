import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import quick_jit
from numpy.testing import assert_allclose, assert_array_equal

from isojax import quantizers as q

RNG = np.random.default_rng(0)
Y = jax.random.t(jax.random.key(0), 4.0, (6, 32)) + 0.1
WIDTHS = jnp.asarray(RNG.permutation([0, 1, 2, 3, 5, 8, 4, 1] * 4))
ROWS = jnp.sort(jax.random.normal(jax.random.key(1), (32, 256)))
FEW = jnp.minimum(WIDTHS, 4)

FIXED = {
    "absmax-2-token": q.absmax(2, "token"),
    "absmax-3-group-full": q.absmax(3, "group", 8, levels="full"),
    "absmax-8-balanced": q.absmax(8, levels="balanced"),
    "minmax-3-token": q.minmax(3, "token"),
    "kivi-2-channel": q.minmax(2, "channel", levels="affine"),
    "percentile-token": q.minmax(4, "token", range_rule="percentile"),
    "mse-token": q.absmax(4, "token", range_rule="mse", steps=8),
    "lloyd_max-3": q.lloyd_max_gaussian(3),
    "lloyd_max-6": q.lloyd_max_gaussian(6),
    "sphere-group": q.lloyd_max_sphere(1, 8, granularity="group", group=8),
    "seven-levels": q.nearest_level(jnp.arange(7.0) - 3),
    "rows": q.nearest_level(ROWS[:, :8], "norm", "group", 8),
    "mixed": q.mixed_codebook(ROWS, WIDTHS, normalize="rms"),
    "fp4-token": q.fp4("token"),
    "mxfp4": q.mxfp4(),
    "nvfp4": q.nvfp4(),
    "static-nvfp4": q.nvfp4(0.001),
    "zero": q.zero(),
    "through": q.straight_through(q.mixed_codebook(ROWS[:, :16], FEW)),
}
SPARSE = {
    "sparse-token": q.sparse(q.absmax(3, "token"), 0.05),
    "sparse-channel": q.sparse(q.minmax(3, "channel", levels="affine"), 0.2),
    "sparse-tensor": q.sparse(q.lloyd_max_gaussian(2, granularity="tensor"), 0.01),
    "sparse-group": q.sparse(q.minmax(2, "group", 8), 0.1),
    "sparse-mixed": q.sparse(q.mixed_codebook(ROWS, WIDTHS, normalize="rms"), 0.05),
}
MEMBERS = FIXED | SPARSE
OWN_SCALE = {
    name: m
    for name, m in MEMBERS.items()
    if any(
        by in name for by in ("token", "rows", "mixed", "lloyd_max-3", "group", "mxfp4", "static")
    )
}


@quick_jit
def stored(quantizer, y):
    """Codes at rounded scales, their bytes, and the codes of those."""
    codes = quantizer.encode_like(y, quantizer.encode(y).rounded(jnp.float16))
    packed = quantizer.pack(codes)
    return codes, packed, quantizer.unpack(packed), quantizer.decode(quantizer.unpack(packed))


@quick_jit
def coded(quantizer, y):
    codes = quantizer.encode(y)
    return codes, quantizer.roundtrip(y), quantizer.decode(codes)


def members(table):
    return pytest.mark.parametrize("quantizer", table.values(), ids=table.keys())


def bit_stream(values, widths):
    """The oracle: bits lowest first, packed by numpy."""
    bits = [(values[:, i, None] >> np.arange(w)) & 1 for i, w in enumerate(widths)]
    return np.packbits(np.concatenate(bits, axis=-1), axis=-1, bitorder="little")


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dim", [1, 20, 64, 129])
def test_the_bytes_are_those_of_numpy_packbits(bits, dim):
    values = RNG.integers(0, 2**bits, (3, dim), np.uint8)
    packed = q.pack_bits(jnp.asarray(values), bits)
    assert packed.shape[-1] == q.packed_bytes(dim, bits) == -(-dim * bits // 8)
    planes = {3: [2, 1], 5: [4, 1], 6: [4, 2], 7: [4, 2, 1]}.get(bits, [bits])
    lows = np.cumsum([0, *planes[:-1]])
    fields = np.concatenate([values >> low for low in lows], axis=-1)
    assert_array_equal(packed, bit_stream(fields, np.repeat(planes, dim)))
    assert_array_equal(q.unpack_bits(packed, bits, dim), values)
    none = q.pack_bits(jnp.asarray(values[:0]), bits)
    assert none.shape == (0, packed.shape[-1])
    assert q.unpack_bits(none, bits, dim).shape == (0, dim)


def test_mixed_bytes_are_those_of_numpy_packbits_under_vmap_with_traced_widths():
    widths = RNG.integers(0, 9, (4, 37))
    widths[0] = 0
    values = RNG.integers(0, 2 ** widths[:, None], (4, 3, 37)).astype(np.uint8)
    total = -(-widths.sum(-1).max() // 8)
    packed = jax.jit(jax.vmap(lambda v, w: q.pack_mixed(v, w, int(total))))(values, widths)
    assert packed.shape == (4, 3, total)
    for p, v, w in zip(packed, values, widths, strict=True):
        expected = bit_stream(v, w)
        assert_array_equal(p[:, : expected.shape[-1]], expected)
        assert not p[:, expected.shape[-1] :].any()
    assert_array_equal(jax.jit(jax.vmap(q.unpack_mixed))(packed, widths), values)


def test_mixed_bits_beyond_the_total_are_lost_and_nothing_else():
    values, widths = jnp.full((1, 3), 7, jnp.uint8), jnp.array([3, 4, 4])
    assert_array_equal(q.unpack_mixed(q.pack_mixed(values, widths, 1), widths), [[7, 7, 1]])


@members(MEMBERS)
def test_unpacking_returns_the_codes(quantizer):
    codes, packed, again, decoded = stored(quantizer, Y)
    assert_array_equal(again.values, codes.values)
    assert again.values.dtype == codes.values.dtype and again.bits == codes.bits
    for part in ("scale", "offset"):
        if getattr(codes, part) is not None:
            own = getattr(codes, part).dtype
            assert getattr(packed, part).dtype == (own if own.itemsize == 1 else jnp.float16)
            assert_array_equal(getattr(again, part), getattr(codes, part))
    # fp16 keeps 11 bits of the numbers that are stored apart
    assert_allclose(decoded, quantizer.decode(codes), rtol=2**-11 if codes.outliers else 1e-6)


@members(MEMBERS)
def test_the_rate_is_that_of_the_bytes(quantizer):
    codes, packed, *_ = stored(quantizer, Y)
    sizes = [np.asarray(a).nbytes for a in jax.tree.leaves(packed)]
    assert packed.nbytes == sum(sizes)
    assert_allclose(q.rate_bits(codes) * Y.size / 8, packed.nbytes, rtol=1e-6)
    shapes = jax.eval_shape(lambda y: quantizer.pack(quantizer.encode(y)), Y)
    assert shapes.nbytes == packed.nbytes


def test_the_rate_counts_whole_bytes_of_ragged_vectors():
    y = Y[:, :30]
    packed = q.absmax(3).pack(q.absmax(3).encode(y))
    assert packed.nbytes == 6 * 12 + 2
    assert_allclose(q.rate_bits(q.absmax(3).encode(y)) * y.size, 8 * packed.nbytes)


@members(OWN_SCALE)
def test_a_nan_vector_touches_no_other_and_a_zero_vector_stays_zero(quantizer):
    y = Y.at[1].set(0).at[3].set(jnp.nan)
    decoded = np.asarray(stored(quantizer, y)[-1])
    assert np.isnan(decoded[3]).all()
    assert_array_equal(decoded[1], np.zeros(32))
    clean = np.asarray(stored(quantizer, y.at[3].set(0))[-1])
    assert_array_equal(np.delete(decoded, 3, 0), np.delete(clean, 3, 0))


def test_scales_are_held_to_the_finite_range_of_their_dtype():
    for y, scale in ((1e10 * Y[:1], 65504.0), (1e-30 * Y[:1], 0.0)):
        packed, decoded = stored(q.lloyd_max_gaussian(3), y)[1::2]
        assert_array_equal(packed.scale, [[scale]])
        assert np.isfinite(decoded).all()


@pytest.mark.parametrize(
    "quantizer",
    [q.absmax(4, "token"), q.minmax(4, "token"), q.lloyd_max_gaussian(3), q.fp4("token")],
)
def test_an_infinity_does_not_come_back_as_a_number(quantizer):
    y = Y.at[3, 2].set(jnp.inf)
    decoded = stored(quantizer, y)[-1]
    assert np.isnan(decoded[3]).all() and np.isfinite(np.delete(decoded, 3, 0)).all()


@pytest.mark.parametrize("quantizer", [q.ecsq(0.1), q.none()])
def test_unbounded_codes_cannot_be_packed(quantizer):
    with pytest.raises(ValueError, match="codes must have a number of bits to be packed"):
        quantizer.pack(quantizer.encode(Y))


@pytest.mark.parametrize(
    "granularity, group, number", [("token", 0, 5), ("group", 8, 5), ("channel", 0, 40)]
)
def test_rows_of_levels_are_a_codebook_for_each_component(granularity, group, number):
    rows = jax.random.normal(jax.random.key(2), (32, number)).at[::3, 3:].set(jnp.inf)
    quantizer = q.nearest_level(rows, "rms", granularity, group)
    codes, got, decoded = coded(quantizer, Y)
    scale = np.broadcast_to(codes.scale, (6, 4, 8) if group else (6, 32)).reshape(6, 32)
    for i, row in enumerate(np.asarray(rows)):
        row = np.sort(row[np.isfinite(row)])
        at = np.abs(np.asarray(Y)[:, i, None] / scale[:, i, None] - row).argmin(1)
        assert_allclose(got[:, i], row[at] * scale[:, i], rtol=1e-5)
    assert_allclose(decoded, got, rtol=1e-6)


def test_mixed_codebooks_stack_over_heads_with_their_own_widths():
    widths = jnp.stack([FEW, FEW[::-1], jnp.full(32, 2)])
    total = int(-(-widths.sum(-1).max() // 8))

    @jax.vmap
    def through_bytes(widths):
        quantizer = q.mixed_codebook(ROWS[:, :16], widths, total)
        return quantizer.decode(quantizer.unpack(quantizer.pack(quantizer.encode(Y))))

    for w, got in zip(np.asarray(widths), quick_jit(through_bytes)(widths), strict=True):
        for i, row in enumerate(np.asarray(ROWS)):
            row = row[: 2 ** w[i]]
            assert_array_equal(got[:, i], row[np.abs(Y[:, i, None] - row).argmin(1)])


def test_sparse_keeps_the_outliers_and_takes_them_out_of_the_range():
    y = np.array(Y)
    y[2, 5], y[2, 9] = 300, -200
    codes, got, _ = coded(q.sparse(q.minmax(3, "token", levels="affine"), 2 / 32), y)
    rest = np.delete(y[2], [5, 9])
    assert_allclose(codes.scale[2], (rest.max() - rest.min()) / 7, rtol=1e-5)
    assert_array_equal(got[2, [5, 9]], [300, -200])
    assert np.abs(got - y)[2].max() <= codes.scale[2] / 2 * 1.001
    assert codes.outliers.index.dtype == jnp.uint8 and codes.outliers.index.shape == (6, 2)


@members({name: m for name, m in SPARSE.items() if name != "sparse-mixed"})
def test_sparse_beats_its_quantizer_where_there_are_outliers(quantizer):
    y = Y.at[::2, 7].multiply(40)
    error, plain = (jnp.mean((coded(m, y)[1] - y) ** 2) for m in (quantizer, quantizer.inner))
    assert error < plain / 2


@members(SPARSE)
def test_sparse_is_idempotent_at_the_same_scale(quantizer):
    codes, _, decoded = coded(quantizer, Y)
    again = quick_jit(lambda m, y, codes: m.decode(m.encode_like(y, codes)))
    assert_allclose(again(quantizer, decoded, codes), decoded, rtol=1e-6)


def test_channel_levels_move_with_the_offset_and_scale_of_their_channel():
    base = jax.random.t(jax.random.key(3), 5.0, (2048,))
    offset, scale = jnp.array([0.0, 3, 0, -400]), jnp.array([1.0, 1e-3, 1e4, 1])
    y = base[:, None] * scale + offset
    fitted, alone = quick_jit(
        lambda y: (q.lloyd_max_channels(y, 3).levels, q.lloyd_max_samples(y[:, 0], 3).levels)
    )(y)
    error = jnp.mean((q.nearest_level(alone).roundtrip(base) - base) ** 2)
    for i in range(4):  # of samples there are many minima next to each other
        levels = q.nearest_level((fitted[i] - offset[i]) / scale[i])
        assert_allclose(jnp.mean((levels.roundtrip(base) - base) ** 2), error, rtol=0.03)


def test_mixed_channel_levels_are_those_of_each_number_of_bits():
    bits = jnp.array([0, 1, 2, 4, 3])
    even = (jnp.arange(2048) + 0.5) / 2048
    y = jnp.tile(jax.scipy.stats.norm.ppf(even)[:, None], 5) + 1

    @quick_jit
    def fit(y, bits):
        fitted = q.lloyd_max_channels(y, bits, total_bytes=2, most_bits=4)
        return fitted.levels, fitted.decode(fitted.unpack(fitted.pack(fitted.encode(y))))

    levels, decoded = fit(y, bits)
    assert_array_equal(np.isfinite(levels).sum(-1), 2**bits)
    assert_allclose(levels[0, 0], 1, atol=1e-4)
    assert_allclose(levels[2, :4], [-0.510, 0.5472, 1.4528, 2.510], atol=0.01)
    errors = jnp.mean((decoded - y) ** 2, 0)
    assert_allclose(errors, [1, 0.3634, 0.1175, 0.009497, 0.03454], rtol=0.03)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: q.pack_bits(jnp.zeros(8, jnp.uint8), 9), "bits must be one of 0, .*got 9"),
        (lambda: q.unpack_bits(jnp.zeros(4, jnp.uint8), 3, 8), "packed.*length 3.*4"),
        (lambda: q.mixed_codebook(ROWS, WIDTHS, 8), "total_bytes must be at least 12.* got 8"),
        (lambda: q.mixed_codebook(ROWS[:, :4], WIDTHS), "bits must be integers from 0 to 2"),
        (lambda: q.mixed_codebook(ROWS, WIDTHS[:3]), r"one number per row.*\(3,\).*\(32, 256\)"),
        (lambda: jax.jit(lambda w: q.mixed_codebook(ROWS, w))(WIDTHS), "total_bytes.*traced"),
        (lambda: q.nearest_level(ROWS).encode(Y[:, :5]), "last axis of length 32.*5"),
        (lambda: q.lloyd_max_channels(Y, 9), "bits.*got 9"),
        (lambda: q.lloyd_max_channels(Y, WIDTHS, most_bits=4), "bits must be integers from 0 to 4"),
        (lambda: q.sparse(q.absmax(3), 1.0), "share must be above 0 and below 1, got 1.0"),
    ],
)
def test_errors_name_what_was_got_and_what_is_allowed(make, words):
    with pytest.raises(ValueError, match=words):
        make()
