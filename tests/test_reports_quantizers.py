"""Public reports of this field on quantizers and transforms, tried on small inputs.

Each test names the report: repository and number.
"""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from small_models import random_tokens, small_model

from isojax import quantizers as q
from isojax import transforms
from isojax.quantize import Plan, calibrate, quantize
from isojax.quantizers.float4 import to_e2m1

SINGLE_SIGN = {
    "openvinotoolkit/nncf 4074": ([-22, -21, -20, -19, -18, -17, -16, -15], 8),
    "mit-han-lab/llm-awq 193": ([10.5, 11, 11.5, 12, 12.5, 13, 13.5, 14], 4),
    "unslothai/unsloth 10841": ([1, 2], 4),
}


@pytest.mark.parametrize("report", SINGLE_SIGN)
def test_groups_of_one_sign_lose_no_more_than_half_a_step(report):
    numbers, bits = SINGLE_SIGN[report]
    v = jnp.asarray([numbers, [-x for x in numbers]], jnp.float32)
    peak = max(abs(x) for x in numbers)
    span = max(numbers) - min(numbers)
    for levels, reach in (("zero_point", peak), ("affine", span)):
        quantizer = q.minmax(bits, "group", len(numbers), levels=levels)
        half = reach / (2**bits - 1) / 2
        assert_allclose(quantizer.roundtrip(v), v, atol=half * (1 + 1e-5))
        codes = quantizer.encode_rounded(v)
        stored = quantizer.decode(quantizer.unpack(quantizer.pack(codes)))
        assert_allclose(stored, v, atol=half + 2**-10 * peak)  # scales and offsets of fp16


@pytest.mark.parametrize("levels", ["restricted", "balanced", "full"])
def test_symmetric_levels_reach_positive_weights(levels):
    """AutoGPTQ/AutoGPTQ 293: weights of one sign, of which half of the levels were cut off."""
    v = jnp.array([[0.8315, 0.4567], [0.4362, 0.2019]])
    divisor = {"restricted": 7, "balanced": 7.5, "full": 8}[levels]
    step = np.float32([[0.8315], [0.4362]]) / np.float32(divisor)
    want = np.clip(np.round(v / step), -8, 7) * step
    assert_allclose(q.absmax(4, "token", levels=levels).roundtrip(v), want, rtol=1e-6)


def test_numbers_of_all_sixteen_levels_are_their_own():
    """ModelTC/LightCompress 334: weights that are quantized already, quantized once more."""
    v = 0.3 * jnp.arange(-8.0, 8.0)[None]
    full = q.absmax(4, "token", levels="full")
    assert_array_equal(full.encode(v).values[0], np.arange(-8, 8))
    assert_allclose(full.roundtrip(v), v, rtol=1e-6)


def test_mxfp4_is_what_the_hardware_converts_to():
    """ROCm/aiter 974: packed codes at scale 126, and numbers that round to the least of E2M1."""
    x = [
        0.3463, -0.0499, 0.3794, -2.3764, 0.3960, 0.5989, -0.6250, -0.4239, -0.6192, 0.2761,
        -0.3746, 0.1462, 0.5216, -0.5194, -0.8497, -0.8237, 0.5145, 0.3508, 0.0298, -0.3462, 0.3917,
        0.1096, 1.4494, 1.7009, -0.5473, -2.0851, 1.8099, 0.3587, 1.4622, -2.3143, 0.3412, -0.8931,
    ]  # fmt: skip
    quantizer = q.mxfp4()
    packed = quantizer.pack(quantizer.encode(jnp.asarray([x])))
    assert packed.scale is not None and int(packed.scale.squeeze()) == 126
    want = [129, 226, 34, 170, 26, 25, 162, 187, 18, 144, 2, 85, 234, 22, 229, 193]
    assert_array_equal(packed.data[0], want)
    least = np.uint32([0x3F000000, 0x3F000003]).view(np.float32) / 2
    assert_array_equal(to_e2m1(jnp.asarray(least)), [0, 1])


def test_fp64_is_rounded_once():
    """jax-ml/ml_dtypes 401, openxla/xla 17324: fp64 to eight bits by way of fewer bits."""
    with jax.enable_x64(True):
        v = jnp.array([[-431.99999999999994, 448.0, 1.0625 + 2.0**-40, 1.0625, 1.1875 - 2.0**-40]])
        assert_array_equal(q.fp8("e4m3", "token").roundtrip(v)[0], [-416, 448, 1.125, 1, 1.125])
        middles = jnp.array([0.25 + 2.0**-40, 0.75 - 2.0**-40, 5 + 2.0**-45])
        assert_array_equal(to_e2m1(middles), [1, 1, 7])


@pytest.mark.parametrize("size", [1e-2, 1e-6, 1e-20])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_small_weights_use_all_levels(size, dtype):
    """pytorch/ao 4362, 4326 and 4534: scales of bf16, or no smaller than its epsilon."""
    w = (size * jax.random.normal(jax.random.key(0), (64, 256))).astype(dtype)
    exact = np.asarray(w, np.float64)
    for quantizer in (q.absmax(8, "group", 32), q.minmax(8, "group", 32)):
        codes = quantizer.encode(w)
        assert int(codes.values.max()) in (127, 255) and codes.scale.dtype == jnp.float32
        lost = np.asarray(quantizer.decode(codes), np.float64) - exact
        assert 10 * np.log10(np.mean(exact**2) / np.mean(lost**2)) > 42


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_a_tensor_scale_is_applied_to_numbers_and_scales_alike(size):
    """jax-ml/jax 30467: a global scale that left zeros of almost all numbers."""
    y = size * np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    t = np.abs(y).max() / np.float32(6 * 448)
    blocks = y.reshape(8, 4, 16)
    scale = np.abs(blocks).max(-1, keepdims=True) / (6 * t)
    step = scale.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * t
    want = (blocks / step).astype(ml_dtypes.float4_e2m1fn).astype(np.float32) * step
    for quantizer in (q.nvfp4(float(t)), q.nvfp4()):
        assert_allclose(quantizer.roundtrip(jnp.asarray(y)), want.reshape(y.shape), rtol=1e-6)


def test_hadamard_of_widths_that_tables_lack():
    """spcl/QuaRot 41 and 44: the intermediate sizes 29568 and 13696."""
    x = jax.random.normal(jax.random.key(0), (2, 29568))
    turn = transforms.hadamard(jax.random.key(1), 29568)
    y = turn.apply(x)
    assert_allclose(y @ y.T, x @ x.T, rtol=1e-4, atol=0.5)
    assert_allclose(turn.T.apply(y), x, atol=1e-4)
    peak = jnp.zeros(29568).at[12345].set(1)
    assert_allclose(jnp.abs(turn.apply(peak)), 29568**-0.5, rtol=1e-4)
    with pytest.raises(ValueError, match="13696; blocks that divide it and work: 128, 64"):
        transforms.hadamard(jax.random.key(1), 13696)


def test_groups_that_do_not_divide_are_refused_and_longer_ones_are_the_vector():
    """Blaizzy/mlx-vlm 2061, bitsandbytes-foundation/bitsandbytes 1884: groups of 64 in 96."""
    with pytest.raises(ValueError, match="group must divide the last axis=96, got 64"):
        q.nf4("group", 64).encode(jnp.ones((2, 96)))
    model = small_model(num_hidden_layers=1, head_dim=24)

    def group(length):
        plan = Plan.parse(f"cache: identity/minmax:group:{length} bits=4")
        stats = calibrate(model, random_tokens(1, 8), plan)
        made = quantize(jax.random.key(0), model, plan, stats, progress=False)
        return made.keys.codec.quantizer.group

    with pytest.raises(ValueError, match="group must divide 24, .* as 12 does; got 16"):
        group(16)
    assert group(8) == 8 and group(128) == 24


def test_as_many_outliers_are_kept_as_are_counted_where_all_are_alike():
    """rajveer43/VeloxQuant-MLX 167: all numbers of a constant channel kept as outliers."""
    y = jnp.concatenate([jnp.full((1, 40), 3.0), jnp.tile(jnp.array([1.0, -1.0]), 20)[None]])
    quantizer = q.sparse(q.minmax(3, "token", levels="affine"), 0.1)
    codes = quantizer.encode(y)
    assert codes.outliers is not None and codes.outliers.values.shape == (2, 4)
    assert all(len(set(row)) == 4 for row in np.asarray(codes.outliers.index).tolist())
    assert_allclose(quantizer.decode(codes), y, atol=1e-6)
    assert_allclose(q.rate_bits(codes), 3 + (2 * 16 + 4 * (16 + 8)) / 40)
