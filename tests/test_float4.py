import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import qwix
from laws import quick_jit
from numpy.testing import assert_allclose, assert_array_equal

from isojax import quantizers as q
from isojax.quantizers.float4 import from_e2m1, from_e8m0, to_e2m1, to_e8m0

RNG = np.random.default_rng(0)
WIDE = (RNG.standard_t(3, (8, 64)) * 2.0 ** RNG.integers(-12, 12, (8, 1))).astype(np.float32)
GAUSSIAN = RNG.standard_normal((8, 64), np.float32)
MEMBERS = {
    "fp4-tensor": q.fp4(),
    "fp4-token": q.fp4("token"),
    "fp4-channel": q.fp4("channel"),
    "fp4-group": q.fp4("group", 8, clip=0.9),
    "mxfp4": q.mxfp4(),
    "nvfp4": q.nvfp4(),
    "nvfp4-static": q.nvfp4(0.002),
}


@quick_jit
def coded(quantizer, y):
    """Codes, what they stand for, and their bytes."""
    codes = quantizer.encode(y)
    return codes, quantizer.decode(codes), quantizer.pack(codes)


@quick_jit
def loaded(quantizer, packed):
    codes = quantizer.unpack(packed)
    return codes, quantizer.decode(codes), quantizer.pack(codes)


def members(table):
    return pytest.mark.parametrize("quantizer", table.values(), ids=table.keys())


def e2m1_blocks(y, scale):
    """The oracle: E2M1 numbers by ml_dtypes, times scales [..., blocks, 1]."""
    v = y.reshape(*scale.shape[:-1], -1) / scale
    return (v.astype(ml_dtypes.float4_e2m1fn).astype(np.float32) * scale).reshape(y.shape)


def peaks(y, size):
    return np.abs(y.reshape(len(y), -1, size)).max(-1, keepdims=True)


def test_e2m1_has_the_levels_of_the_specification():
    levels = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    got = from_e2m1(jnp.arange(16, dtype=jnp.uint8))
    assert_array_equal(got, levels + [-level for level in levels])
    assert_array_equal(np.signbit(got), np.arange(16) > 7)


@pytest.mark.parametrize("convert", [to_e2m1, quick_jit(to_e2m1)], ids=["eager", "jit"])
def test_e2m1_rounds_every_fp16_number_as_ml_dtypes_does(convert):
    numbers = np.arange(2**16, dtype=np.uint16).view(np.float16)
    numbers = numbers[~np.isnan(numbers)].astype(np.float32)
    want = numbers.astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    assert_array_equal(convert(jnp.asarray(numbers)), want)


def test_e2m1_rounds_to_even_in_the_very_middle_alone():
    middles = np.float32([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5])
    below, above = (np.nextafter(middles, np.float32(end)) for end in (0, 9))
    got = from_e2m1(to_e2m1(jnp.stack([below, middles, above])))
    assert_array_equal(got[0], [0, 0.5, 1, 1.5, 2, 3, 4])
    assert_array_equal(got[1], [0, 1, 1, 2, 2, 4, 4])
    assert_array_equal(got[2], [0.5, 1, 1.5, 2, 3, 4, 6])


def test_e8m0_bits_are_exponents_biased_by_127():
    bits = np.arange(1, 256, dtype=np.uint8)
    got = from_e8m0(jnp.asarray(bits))
    assert_array_equal(got, bits.view(ml_dtypes.float8_e8m0fnu).astype(np.float32))
    assert_array_equal(got, [*2.0 ** np.arange(-126, 128), np.nan])


def test_e8m0_is_the_largest_power_of_two_up_to_a_number():
    powers = 2.0 ** np.arange(-126, 128)
    numbers = np.outer([1, 1 + 2**-23, 1.5, 2 - 2**-23], powers).astype(np.float32)
    got = from_e8m0(to_e8m0(jnp.asarray(numbers)))
    assert_array_equal(got, np.broadcast_to(powers, numbers.shape))
    special = jnp.array([0.0, 1e-45, 2.0**-127, jnp.inf, jnp.nan, -jnp.nan])
    assert_array_equal(to_e8m0(special), [1, 1, 1, 255, 255, 255])


def test_the_mx_scale_leaves_the_exponent_of_the_peak_at_two():
    peak = np.float32([1, 3.99, -4, 6, 7.99, 8, -0.5, 1e30])
    y = np.zeros_like(WIDE)
    y[:, 5] = peak
    scale = from_e8m0(coded(q.mxfp4(), y)[0].scale)[:, 0, 0]
    assert_array_equal(scale, [0.25, 0.5, 1, 1, 1, 2, 0.125, 2.0**97])


def test_mxfp4_is_the_rule_of_the_specification_by_ml_dtypes():
    scale = 2.0 ** (np.floor(np.log2(np.float64(peaks(WIDE, 32)))) - 2)
    assert_array_equal(coded(q.mxfp4(), WIDE)[1], e2m1_blocks(WIDE, scale.astype(np.float32)))


def test_nvfp4_is_the_rule_of_two_levels_by_ml_dtypes():
    tensor = np.abs(WIDE).max() / np.float32(6 * 448)
    scale = np.maximum(peaks(WIDE, 16) / (6 * tensor), 2**-9).astype(ml_dtypes.float8_e4m3fn)
    codes, decoded, packed = coded(q.nvfp4(), WIDE)
    assert_allclose(codes.tensor_scale, tensor, rtol=1e-6)
    assert_array_equal(np.asarray(packed.scale).view(np.uint8), scale.view(np.uint8))
    assert_array_equal([scale.max(), scale.min()], [448, 2**-9])
    assert_allclose(decoded, e2m1_blocks(WIDE, scale.astype(np.float32) * tensor), rtol=1e-6)


@pytest.mark.parametrize("by, group, size", [("tensor", 0, 512), ("token", 0, 64), ("group", 8, 8)])
def test_fp4_takes_the_clipped_absmax_to_six(by, group, size):
    scale = np.float32(0.5) * peaks(WIDE.reshape(-1, size), size) / 6
    got = coded(q.fp4(by, group, clip=0.5), WIDE)[1]
    assert_allclose(got, e2m1_blocks(WIDE, scale), rtol=1e-6)


def by_qwix(y, qtype, size):
    quantized = qwix.quantize(y, qtype, channelwise_axes=(0,), tiled_axes={1: size})
    return quantized.scale[..., None], qwix.dequantize(quantized)


def test_fp4_is_qwix_and_so_is_nvfp4_at_a_tensor_scale_of_one():
    fp4, nvfp4 = coded(q.fp4("group", 8), WIDE)[1], coded(q.nvfp4(1.0), GAUSSIAN)[1]
    assert_allclose(fp4, by_qwix(WIDE, "float4_e2m1fn", 8)[1], rtol=1e-6)
    want = np.asarray(by_qwix(GAUSSIAN, "nvfp4", 16)[1])
    off, x = nvfp4 != want, np.asarray(GAUSSIAN)
    # XLA may go by fp16 from qwix's quotients to E2M1, and round those twice that are near a tie
    assert_allclose(x[off], (nvfp4 + want)[off] / 2, rtol=2**-11)
    assert np.all(np.abs(x - nvfp4)[off] < np.abs(x - want)[off]) and off.mean() < 0.005


def test_mxfp4_is_qwix_but_for_blocks_that_saturate():
    # The scale of qwix 0.1.8 is rounded up, to 2^ceil(log2(max|v| / 6)).
    scale, want = by_qwix(WIDE, "mxfp4", 32)
    codes, got, _ = coded(q.mxfp4(), WIDE)
    own = from_e8m0(codes.scale)
    saturated = peaks(WIDE, 32) > 6 * own
    assert 0 < saturated.sum() < saturated.size
    assert_array_equal(scale, np.where(saturated, 2, 1) * own)
    got, want = (np.where(saturated, 0, np.reshape(v, (8, 2, 32))) for v in (got, want))
    assert_array_equal(got, want)


@members(MEMBERS)
def test_odd(quantizer):
    codes, decoded, _ = coded(quantizer, WIDE)
    negative, negated, _ = coded(quantizer, -WIDE)
    assert_array_equal(negative.values, codes.values ^ 8)
    assert_array_equal(negated, -decoded)


@members({name: m for name, m in MEMBERS.items() if name != "nvfp4-static"})
@pytest.mark.parametrize("power", [-60, 60])
def test_a_power_of_two_moves_scales_alone(quantizer, power):
    codes, decoded, _ = coded(quantizer, WIDE)
    other, moved, _ = coded(quantizer, WIDE * np.float32(2.0**power))
    assert_array_equal(other.values, codes.values)
    assert_array_equal(moved, decoded * 2.0**power)


@members({name: m for name, m in MEMBERS.items() if name != "fp4-group"})
def test_error_is_a_fifth_of_a_number_or_half_the_least_level(quantizer):
    codes, decoded, _ = coded(quantizer, GAUSSIAN)
    ones = dataclasses.replace(codes, values=jnp.full_like(codes.values, 2))
    step, size, error = quantizer.decode(ones), np.abs(GAUSSIAN), np.abs(decoded - GAUSSIAN)
    share = 0.25 if quantizer is MEMBERS["mxfp4"] else 0.2  # a quarter from 8 to 6
    assert (error <= np.maximum(share * size, step / 4) * (1 + 1e-5)).all()
    assert (error > 0.16 * size)[size > step].any()


@members({name: MEMBERS[name] for name in ("fp4-group", "mxfp4", "nvfp4-static")})
def test_a_block_keeps_its_nan_and_its_zeros_to_itself(quantizer):
    y, group = WIDE.copy(), quantizer.group
    y[0, 0], y[0, group : 2 * group] = np.nan, 0
    got, clean = coded(quantizer, y)[1], coded(quantizer, WIDE)[1]
    assert np.isnan(got[0, :group]).all()
    assert_array_equal(got[0, group : 2 * group], np.zeros(group))
    assert_array_equal(got[1:], clean[1:])


def test_a_nan_is_one_of_all_blocks_that_share_a_tensor_scale():
    y = WIDE.copy()
    y[3, 3] = np.nan
    assert np.isnan(coded(q.nvfp4(), y)[1]).all()


@members(MEMBERS)
def test_infinity_saturates_where_the_range_is_given_and_is_nan_elsewhere(quantizer):
    infinite, lost = WIDE.copy(), WIDE.copy()
    infinite[0, 3], lost[0, 3] = -np.inf, np.nan
    got = np.asarray(coded(quantizer, infinite)[1])
    if quantizer is MEMBERS["nvfp4-static"]:
        assert_allclose(got[0, 3], -6 * 448 * 0.002, rtol=1e-6)
        assert np.isfinite(got).all()
    else:
        assert_array_equal(np.isnan(got), np.isnan(coded(quantizer, lost)[1]))


@members(MEMBERS)
@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e-37, 3e38])
def test_the_ends_of_fp32_become_no_larger(quantizer, size):
    y = (size * np.resize([-1, 0.5, 1], WIDE.shape)).astype(np.float32)
    assert (np.abs(coded(quantizer, y)[1]) / 1.25 <= np.abs(y)).all()


def test_mxfp4_reaches_down_to_the_least_normal_number():
    y = np.resize(2.0 ** np.float32([-124, -125, -126]) * [1, -1, 1], WIDE.shape)
    codes, decoded, _ = coded(q.mxfp4(), y.astype(np.float32))
    assert_array_equal(codes.scale, np.ones((8, 2, 1)))
    assert_array_equal(decoded, y)


@members(MEMBERS)
def test_bytes_hold_two_codes_the_first_one_low_and_load_as_stored(quantizer):
    codes, decoded, packed = coded(quantizer, WIDE)
    values = np.asarray(codes.values)
    assert_array_equal(packed.data, values[:, ::2] | values[:, 1::2] << 4)
    again, loaded_values, repacked = loaded(quantizer, packed)
    assert_array_equal(again.values, codes.values)
    assert repacked.nbytes == packed.nbytes
    if packed.scale.dtype.itemsize == 1:
        assert_array_equal(loaded_values, decoded)


@pytest.mark.parametrize("name, bytes_", [("mxfp4", 17), ("nvfp4-static", 18), ("nvfp4", 18.25)])
def test_bytes_of_32_numbers(name, bytes_):
    assert coded(MEMBERS[name], WIDE)[2].nbytes == bytes_ * WIDE.size / 32


@members(MEMBERS)
def test_bytes_that_are_zero_load_as_zeros(quantizer):
    blank = jax.tree.map(jnp.zeros_like, coded(quantizer, WIDE)[2])
    assert_array_equal(loaded(quantizer, blank)[1], np.zeros_like(WIDE))


@members({name: MEMBERS[name] for name in ("mxfp4", "nvfp4", "nvfp4-static")})
def test_rounding_scales_to_fp16_leaves_those_of_one_byte_alone(quantizer):
    codes, _, _ = coded(quantizer, WIDE * np.float32(2.0**60))
    rounded = codes.rounded(jnp.float16)
    assert rounded.scale is codes.scale and rounded.tensor_scale is codes.tensor_scale


def test_tensor_scales_from_calibration_vmap_and_learn():
    def loss(tensor_scale):
        return jnp.mean((q.nvfp4(tensor_scale).roundtrip(jnp.asarray(GAUSSIAN)) - GAUSSIAN) ** 2)

    scales = np.abs(GAUSSIAN).max() / 2688 * jnp.array([1.0, 0.1])
    losses, slopes = quick_jit(jax.vmap(jax.value_and_grad(loss)))(scales)
    own = np.mean((coded(q.nvfp4(), GAUSSIAN)[1] - GAUSSIAN) ** 2)
    assert_allclose(losses[0], own, rtol=1e-5)
    assert losses[1] > 10 * losses[0]
    assert slopes[1] < 0 and np.isfinite(slopes).all()


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: q.mxfp4().encode(jnp.ones((2, 48))), "group must divide the last axis=48, got 32"),
        (lambda: q.nvfp4().encode(jnp.ones((2, 24))), "group must divide the last axis=24, got 16"),
        (lambda: q.fp4("row"), "granularity must be one of tensor, token, channel, group.*'row'"),
        (lambda: q.fp4("group"), "group.*got 0"),
        (lambda: q.fp4(clip=0.0), "clip must be above 0 and at most 1, got 0.0"),
        (lambda: q.fp4(clip=1.5), "clip must be above 0 and at most 1, got 1.5"),
        (lambda: q.nvfp4(0.0), "tensor_scale must be above zero and finite, got 0.0"),
    ],
)
def test_errors_name_what_was_got_and_what_is_allowed(make, words):
    with pytest.raises(ValueError, match=words):
        make()
