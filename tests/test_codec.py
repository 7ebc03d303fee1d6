import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import quick_jit
from numpy.testing import assert_allclose, assert_array_equal

from isojax.codec import Codec
from isojax.quantizers import (
    absmax,
    ecsq,
    lloyd_max_gaussian,
    minmax,
    mixed_codebook,
    none,
    sparse,
    straight_through,
)
from isojax.recipes import COORDINATES
from isojax.transforms import Diagonal, Identity, Oblique, from_name, haar

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


roundtrip = quick_jit(lambda codec, x: codec.roundtrip(x))
encode = quick_jit(lambda codec, x: codec.encode(x))


@quantizers
def test_identity_leaves_the_quantizer_alone(quantizer):
    codec = Codec(Identity(DIM), quantizer)
    assert_array_equal(roundtrip(codec, X), roundtrip(quantizer, X))
    assert_array_equal(encode(codec, X).values, encode(quantizer, X).values)


@quantizers
@transforms
def test_roundtrip_is_decode_of_encode(transform, quantizer):
    codec = Codec(transform, quantizer)
    decoded = quick_jit(Codec.decode)(codec, encode(codec, X))
    assert_allclose(decoded, roundtrip(codec, X), rtol=1e-5, atol=1e-6)


@transforms
def test_no_quantization_returns_the_input(transform):
    assert_allclose(roundtrip(Codec(transform, none()), X), X, atol=1e-5)


@quantizers
def test_error_is_that_of_the_transformed_vectors(quantizer):
    y = ROTATION.apply(X)
    error = np.linalg.norm(roundtrip(Codec(ROTATION, quantizer), X) - X, axis=-1)
    rotated = np.linalg.norm(roundtrip(quantizer, y) - y, axis=-1)
    assert_allclose(error, rotated, rtol=1e-4, atol=1e-5)


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
    assert_allclose(roundtrip(codec, X), codec.roundtrip(X), rtol=1e-5, atol=1e-5)


def test_batches_of_codecs_by_vmap():
    keys = jax.random.split(jax.random.key(2), 3)
    make = lambda key: Codec(haar(key, DIM), absmax(3, "token"))  # noqa: E731
    batch = quick_jit(jax.vmap(lambda key: make(key).roundtrip(X)))(keys)
    codecs = jax.vmap(make)(keys)
    assert_allclose(jax.vmap(roundtrip, (0, None))(codecs, X), batch, atol=1e-5)
    assert_allclose(batch, [roundtrip(make(key), X) for key in keys], atol=1e-5)


def test_new_leaves_do_not_recompile():
    jitted = jax.jit(lambda codec, x: codec.roundtrip(x))
    for i in range(2):
        jitted(Codec(haar(jax.random.key(i), DIM), absmax(3, clip=1.0 - i / 10)), X)
    assert jitted._cache_size() == 1


@quantizers
def test_bf16_is_computed_in_fp32(quantizer):
    codec, low = Codec(ROTATION, quantizer), X.astype(jnp.bfloat16)
    got = roundtrip(codec, low)
    assert got.dtype == jnp.bfloat16
    expected = roundtrip(codec, low.astype(jnp.float32)).astype(jnp.bfloat16)
    assert_array_equal(got.astype(jnp.float32), expected.astype(jnp.float32))


def test_straight_through_lets_gradients_reach_input_and_rotation():
    def loss(codec, x):
        return jnp.mean((codec.roundtrip(x) - 1) ** 2)

    codec = Codec(ROTATION, straight_through(absmax(3)))
    grad_codec, grad_x = quick_jit(jax.grad(loss, argnums=(0, 1)))(codec, X)
    assert_allclose(grad_x, 2 * (roundtrip(codec, X) - 1) / X.size, atol=1e-6)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grad_codec.transform)) > 1e-3


def test_wrong_length_is_named():
    with pytest.raises(ValueError, match="last axis of length 16.*15"):
        Codec(ROTATION, absmax(3)).roundtrip(X[:, :15])


OFFSET, SCALE = jnp.linspace(-20, 20, DIM), jnp.geomspace(0.1, 10, DIM)
ROWS = jnp.sort(jax.random.normal(jax.random.key(3), (DIM, 16)))
STORED = {
    "absmax": absmax(3),
    "minmax": minmax(4, "token"),
    "lloyd_max": lloyd_max_gaussian(3),
    "mixed": mixed_codebook(ROWS, jnp.arange(DIM) % 5, normalize="rms"),
    "sparse": sparse(minmax(3, "token"), 0.1),
}
stored = pytest.mark.parametrize("quantizer", STORED.values(), ids=STORED.keys())


@quick_jit
def views(codec, x, query):
    packed = codec.store(x)
    return {
        "load": codec.load(packed),
        "inner": codec.rotate_query(query) @ codec.load_rotated(packed).T,
        "scores": codec.scores(query, packed),
        "there and back": codec.unrotate(codec.rotate(x)),
        "roundtrip": codec.roundtrip(x),
    }


def transform_called(name, key, dim):
    if name not in ("diagonal", "oblique"):
        return from_name(key, name, dim)
    scale, turn = jnp.geomspace(0.3, 3, dim), haar(key, dim).entries
    if name == "diagonal":
        return Diagonal(scale)
    return Oblique(turn * scale, turn.T / scale[:, None])


DRAWN = [
    name + ":4" * (name == "block_hadamard")
    for name, member in COORDINATES.members.items()
    if not member.facts["fitted"]
]
CALLED = [*DRAWN, "random_permutation@quaternion_full", "diagonal", "oblique"]


# Without an offset and a scale a codec does less, whatever its transform: a few will do.
FEW = ("identity", "haar", "rotor", "random_permutation@quaternion_full", "oblique")


@pytest.mark.parametrize(
    "name, shifted", [(name, True) for name in CALLED] + [(name, False) for name in FEW]
)
def test_products_in_rotated_coordinates_are_those_with_what_is_loaded(name, shifted):
    dim = 20  # no multiple of the rotor's blocks
    x = jax.random.normal(jax.random.key(4), (5, dim))
    query = jax.random.normal(jax.random.key(5), (3, dim))
    offset, scale = (
        (jnp.linspace(-9, 9, dim), jnp.geomspace(0.1, 10, dim)) if shifted else 2 * [None]
    )
    transform = transform_called(name, jax.random.key(6), dim)
    seen = views(Codec(transform, absmax(3, "token"), offset, scale), x, query)
    constant = 0 if offset is None else (query @ offset)[:, None]
    assert_allclose(query @ seen["load"].T, seen["inner"] + constant, rtol=1e-4, atol=1e-4)
    assert_allclose(seen["scores"], seen["inner"], rtol=1e-4, atol=1e-4)
    assert_allclose(seen["there and back"], x, atol=5e-4 if shifted else 1e-5)


@stored
def test_storing_costs_only_the_rounding_of_scales(quantizer):
    codec = Codec(ROTATION, quantizer, OFFSET, SCALE)
    x = X * SCALE + OFFSET
    seen = views(codec, x, X)
    assert_allclose(seen["roundtrip"], seen["load"], atol=0.3 * float(jnp.abs(x - OFFSET).max()))
    errors = [jnp.mean(((seen[n] - x) / SCALE) ** 2) for n in ("load", "roundtrip")]
    assert_allclose(*errors, rtol=0.02)


def test_an_offset_makes_codes_blind_to_a_constant():
    plain, shifted = (
        Codec(ROTATION, absmax(3, "token")),
        Codec(ROTATION, absmax(3, "token"), OFFSET),
    )
    moved = roundtrip(shifted, X + OFFSET)
    assert_allclose(moved, roundtrip(plain, X) + OFFSET, atol=1e-4)
    assert jnp.abs(roundtrip(plain, X + OFFSET) - X - OFFSET).max() > 1


def test_codes_are_chosen_at_the_rounded_scale():
    # bf16 moves the scale by up to 2^-9 of it, hence the highest level of 8 bits by 1/4 step.
    x = jax.random.uniform(jax.random.key(7), (64, DIM), minval=-1)
    codec = Codec(Identity(DIM), absmax(8, "token"))
    store = quick_jit(lambda codec, x: codec.store(x, jnp.bfloat16))
    late_store = quick_jit(lambda q, x: q.pack(q.encode(x), jnp.bfloat16))
    load = quick_jit(lambda codec, packed: codec.load(packed))
    packed, late = store(codec, x), late_store(codec.quantizer, x)
    scale = np.asarray(packed.scale, np.float32)
    nearest = np.clip(np.round(np.asarray(x) / scale), -127, 127) * scale
    assert_allclose(load(codec, packed), nearest, rtol=1e-6)
    errors = [float(jnp.mean((load(codec, p) - x) ** 2)) for p in (packed, late)]
    assert errors[0] < 0.95 * errors[1]


def test_codecs_stack_over_layers_and_heads_under_scan():
    def make(key):
        bits = jax.random.randint(key, (DIM,), 1, 4)
        quantizer = mixed_codebook(ROWS, bits, 6, normalize="rms")
        return Codec(haar(key, DIM), quantizer, jax.random.normal(key, (DIM,)), SCALE)

    keys = jax.random.split(jax.random.key(8), (3, 2))
    stack = quick_jit(jax.vmap(jax.vmap(make)))(keys)
    x = jax.random.normal(jax.random.key(9), (3, 2, 4, DIM))
    store = jax.vmap(lambda codec, x: codec.store(x))

    @quick_jit
    def scanned(stack, x):
        return jax.lax.scan(lambda _, layer: (None, store(*layer)), None, (stack, x))[1]

    packed = scanned(stack, x)
    assert packed.data.shape == (3, 2, 4, 6)
    assert packed.nbytes == 3 * 2 * 4 * (6 + 2)
    got = quick_jit(jax.vmap(jax.vmap(lambda codec, packed: codec.load(packed))))(stack, packed)
    alone = quick_jit(lambda codec, x: codec.load(codec.store(x)))
    for at in ((0, 0), (2, 1)):
        codec = jax.tree.map(lambda leaf, at=at: leaf[at], stack)
        assert_allclose(got[at], alone(codec, x[at]), rtol=1e-5, atol=1e-5)
