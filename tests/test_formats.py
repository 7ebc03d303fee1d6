"""NF4 and eight-bit floats against their published tables and ml_dtypes."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from isojax import quantizers as q
from isojax.recipes import Recipe, Samples

Y = jax.random.t(jax.random.key(0), 4.0, (16, 64))
DTYPES = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}


def normal_map(offset=0.9677083):
    """The levels as bitsandbytes makes them: `create_normal_map`, written anew."""
    above = stats.norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    below = -stats.norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate([above, [0], below]))
    return levels / levels.max()


def test_levels_of_nf4_are_the_published_ones():
    levels = np.asarray(q.nf4().levels)
    # the table in bitsandbytes, functional.py, `get_4bit_type("nf4")`
    published = [-1.0, -0.69619280, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004,
                 0.0, 0.07958030, 0.16093020, 0.24611230, 0.33791524, 0.44070983, 0.56261700,
                 0.72295684, 1.0]  # fmt: skip
    assert_allclose(levels, published, atol=1e-7)
    assert_allclose(levels, normal_map(), atol=2e-6)


@pytest.mark.parametrize("size", [64, 16])
def test_nf4_is_the_nearest_level_over_the_largest_magnitude(size):
    blocks = np.asarray(Y, np.float64).reshape(-1, size)
    peak = np.abs(blocks).max(-1, keepdims=True)
    levels = np.asarray(q.nf4().levels, np.float64)
    nearest = levels[np.abs(blocks[..., None] / peak[..., None] - levels).argmin(-1)] * peak
    got = q.nf4("group", size).roundtrip(Y)
    assert_allclose(np.asarray(got).reshape(-1, size), nearest, rtol=1e-6)


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("size", [64, 16])
def test_eight_bit_floats_are_those_of_ml_dtypes(kind, size):
    dtype = DTYPES[kind]
    blocks = np.asarray(Y).reshape(-1, size)
    scale = np.abs(blocks).max(-1, keepdims=True) / np.float32(ml_dtypes.finfo(dtype).max)
    codes = q.fp8(kind, "group", size).encode(Y)
    want = (blocks / scale).astype(dtype)
    assert_array_equal(np.asarray(codes.values).reshape(-1, size), want.view(np.uint8))
    got = np.asarray(q.fp8(kind, "group", size).decode(codes)).reshape(-1, size)
    assert_allclose(got, want.astype(np.float32) * scale, rtol=3e-7)


@pytest.mark.parametrize("kind", DTYPES)
def test_all_codes_of_eight_bit_floats_come_back_and_larger_numbers_saturate(kind):
    quantizer, every = q.fp8(kind, "tensor"), np.arange(256, dtype=np.uint8).view(DTYPES[kind])
    numbers = every[np.isfinite(every.astype(np.float32))].astype(np.float32)
    codes = quantizer.encode(jnp.asarray(numbers))
    assert_array_equal(quantizer.decode(codes), numbers)
    beyond = quantizer.encode_like(jnp.array([1e30, -1e30]), codes)
    assert_array_equal(quantizer.decode(beyond), [numbers.max(), numbers.min()])


@pytest.mark.parametrize(
    "text, bits, most",
    [
        # of Gaussian vectors: NF4 by its own table, FP8 by its mantissa (2^-2p / 27 or so)
        ("haar/nf4", 4, 0.0135),
        ("haar/nf4:group:32", 4, 0.0095),
        ("haar/fp8", 8, 9e-4),
        ("haar/fp8:e5m2:group:32", 8, 3.6e-3),
        ("haar/lloyd_max:fitted:gain=peak", 4, 0.0125),
    ],
)
def test_they_stand_in_recipes(text, bits, most):
    recipe = Recipe.parse(text)
    assert str(recipe) == text
    x = jax.random.normal(jax.random.key(1), (512, 64))
    codec = recipe.fit(jax.random.key(0), Samples(x), bits)
    error = float(jnp.mean((codec.load(codec.store(x)) - x) ** 2))
    assert most / 2 < error < most


def test_other_kinds_and_bits_are_refused():
    with pytest.raises(ValueError, match="kind must be one of e4m3, e5m2; got 'e3m4'"):
        q.fp8("e3m4")
    with pytest.raises(ValueError, match="bits of nf4 must be one of 4; got 3"):
        Recipe.parse("nf4").fit(jax.random.key(0), Samples(Y), 3)
