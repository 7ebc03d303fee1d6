import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from isojax.codec import Codec
from isojax.quantizers import absmax, ecsq, lloyd_max_gaussian, minmax, none, straight_through
from isojax.transforms import Identity, haar

DIM = 16
X = jax.random.t(jax.random.key(0), 4.0, (6, DIM))
ROTATION = haar(jax.random.key(1), DIM)
QUANTIZERS = {
    "absmax": absmax(3),
    "minmax": minmax(4, "token"),
    "lloyd_max": lloyd_max_gaussian(3),
    "ecsq": ecsq(0.25),
    "none": none(),
}
quantizers = pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS.keys())
transforms = pytest.mark.parametrize(
    "transform", [Identity(DIM), ROTATION], ids=["identity", "haar"]
)


@quantizers
def test_identity_leaves_the_quantizer_alone(quantizer):
    codec = Codec(Identity(DIM), quantizer)
    assert_array_equal(codec.roundtrip(X), quantizer.roundtrip(X))
    assert_array_equal(codec.encode(X).values, quantizer.encode(X).values)


@quantizers
@transforms
def test_roundtrip_is_decode_of_encode(transform, quantizer):
    codec = Codec(transform, quantizer)
    assert_allclose(codec.decode(codec.encode(X)), codec.roundtrip(X), rtol=1e-5, atol=1e-6)


@transforms
def test_no_quantization_returns_the_input(transform):
    assert_allclose(Codec(transform, none()).roundtrip(X), X, atol=1e-5)


@quantizers
def test_error_is_that_of_the_transformed_vectors(quantizer):
    y = ROTATION.apply(X)
    error = jnp.linalg.norm(Codec(ROTATION, quantizer).roundtrip(X) - X, axis=-1)
    assert_allclose(
        error, jnp.linalg.norm(quantizer.roundtrip(y) - y, axis=-1), rtol=1e-4, atol=1e-5
    )


def test_rotated_three_bit_absmax_by_numpy():
    # x_hat = Q(x R) R^T with Q(v) = clamp(round(v / s), -3, 3) * s and s = max|v| / 3.
    x, r = np.asarray(X, np.float64), np.asarray(ROTATION.matrix(), np.float64)
    y = x @ r
    s = np.abs(y).max() / 3
    expected = np.clip(np.round(y / s), -3, 3) * s @ r.T
    assert_allclose(Codec(ROTATION, absmax(3)).roundtrip(X), expected, atol=1e-5)


@quantizers
@transforms
def test_jit_equals_eager(transform, quantizer):
    codec = Codec(transform, quantizer)
    jitted = jax.jit(lambda codec, x: codec.roundtrip(x))
    assert_allclose(jitted(codec, X), codec.roundtrip(X), rtol=1e-5, atol=1e-5)


def test_batches_of_codecs_by_vmap():
    keys = jax.random.split(jax.random.key(2), 3)
    make = lambda key: Codec(haar(key, DIM), absmax(3, "token"))  # noqa: E731
    batch = jax.vmap(lambda key: make(key).roundtrip(X))(keys)
    codecs = jax.vmap(make)(keys)
    assert_allclose(jax.vmap(lambda codec: codec.roundtrip(X))(codecs), batch, atol=1e-5)
    assert_allclose(batch, jnp.stack([make(key).roundtrip(X) for key in keys]), atol=1e-5)


def test_new_leaves_do_not_recompile():
    jitted = jax.jit(lambda codec, x: codec.roundtrip(x))
    for i in range(2):
        jitted(Codec(haar(jax.random.key(i), DIM), absmax(3, clip=1.0 - i / 10)), X)
    assert jitted._cache_size() == 1


@quantizers
def test_bf16_is_computed_in_fp32(quantizer):
    codec, low = Codec(ROTATION, quantizer), X.astype(jnp.bfloat16)
    got = codec.roundtrip(low)
    assert got.dtype == jnp.bfloat16
    expected = codec.roundtrip(low.astype(jnp.float32)).astype(jnp.bfloat16)
    assert_array_equal(got.astype(jnp.float32), expected.astype(jnp.float32))


def test_straight_through_lets_gradients_reach_input_and_rotation():
    def loss(codec, x):
        return jnp.mean((codec.roundtrip(x) - 1) ** 2)

    codec = Codec(ROTATION, straight_through(absmax(3)))
    grad_codec, grad_x = jax.grad(loss, argnums=(0, 1))(codec, X)
    assert_allclose(grad_x, 2 * (codec.roundtrip(X) - 1) / X.size, atol=1e-6)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grad_codec.transform)) > 1e-3


def test_wrong_length_is_named():
    with pytest.raises(ValueError, match="last axis of length 16.*15"):
        Codec(ROTATION, absmax(3)).roundtrip(X[:, :15])
