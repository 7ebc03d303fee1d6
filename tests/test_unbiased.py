"""Scales without shrinkage, against the plain definition and in what they are for: sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from isojax import quantizers as q
from isojax.transforms import haar

Y = jax.random.normal(jax.random.key(0), (50, 32)) * jnp.linspace(0.2, 3, 32)
MIXED = q.lloyd_max_channels(Y, np.arange(32) % 4, normalize="rms")
INNERS = {
    "token": q.lloyd_max_sphere(2, 32),
    "group": q.lloyd_max_gaussian(2, granularity="group", group=8),
    "channel": q.lloyd_max_samples(Y, 1, normalize="rms", granularity="channel"),
    "tensor": q.lloyd_max_gaussian(1, granularity="tensor"),
    "mixed": MIXED,
}
AXES = {"token": 2, "group": 2, "channel": (0, 1), "tensor": None, "mixed": 2}


@pytest.mark.parametrize("name", INNERS)
def test_what_is_decoded_reaches_as_far_along_y_as_y(name):
    inner, axes = INNERS[name], AXES[name]
    codes = q.unbiased(inner).encode(Y)
    assert_array_equal(codes.values, inner.encode(Y).values)
    y = np.asarray(Y, np.float64).reshape(50, -1, 8 if name == "group" else 32)
    y_hat = np.asarray(inner.decode(codes), np.float64).reshape(y.shape)
    assert_allclose(np.sum(y * y_hat, axes), np.sum(y * y, axes), rtol=1e-5)


def test_rounded_scales_lengthen_the_same_codes():
    quantizer = q.unbiased(q.lloyd_max_sphere(2, 32))
    packed = quantizer.unpack(quantizer.pack(quantizer.encode_rounded(Y)))
    assert_array_equal(packed.values, INNERS["token"].encode_rounded(Y).values)
    assert_allclose(jnp.sum(Y * quantizer.decode(packed), 1), jnp.sum(Y * Y, 1), rtol=1e-3)


def test_sums_over_many_codes_do_not_shrink():
    """One vector in many random coordinates: the mean of what is decoded is the vector."""
    x, turns = Y[0], jax.vmap(lambda key: haar(key, 32))(jax.random.split(jax.random.key(1), 2000))

    def mean(quantizer):
        seen = jax.vmap(lambda t: t.inverse.apply(quantizer.roundtrip(t.apply(x))))(turns)
        return float(jnp.mean(seen, 0) @ x / (x @ x)), float(jnp.mean(jnp.square(seen - x)))

    inner = q.lloyd_max_sphere(2, 32)
    (short, least), (right, more) = mean(inner), mean(q.unbiased(inner))
    assert 1 - short == pytest.approx(0.1175, abs=0.01) and right == pytest.approx(1, abs=1e-5)
    assert least < more < 1.25 * least


def test_what_has_no_scale_is_refused():
    with pytest.raises(ValueError, match="divides by a scale, got 'none'"):
        q.unbiased(q.lloyd_max_samples(Y, 2))
    with pytest.raises(ValueError, match="must be a Codebook that divides by a scale, got 'Uni"):
        q.unbiased(q.absmax(3))
