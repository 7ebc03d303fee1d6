"""Triton kernels by the interpreter, against the plain JAX beside them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh
from kernel_members import CODECS, codec_of, vectors
from numpy.testing import assert_allclose, assert_array_equal

from isojax import Codec, quantizers, transforms

KEY = jax.random.key(5)
sphere = functools.partial(quantizers.lloyd_max_sphere, 3)
AGREE = 0.999  # the least share of codes that agree: all but near ties
SCORED = ["full-32", "full-102", "full-1024"]  # 2, 3 and 4 bits
# Of these codes are packed too: whole runs of them and not, blocks of three.
PACKED = [*SCORED, "planar-35", "rotor-130", "rotor-66", "hadamard-48"]


@functools.partial(jax.jit, static_argnums=4)
def everything(codec, x, packed, query, implementation):
    """All of a codec; of the codes given or, without them, of its own."""
    stored = codec.store(x, implementation=implementation)
    packed = stored if packed is None else packed
    found = {
        "roundtrip": codec.roundtrip(x, implementation),
        "store": stored,
        "load": codec.load(packed, x.dtype, implementation),
    }
    if query is not None:
        found["keys"] = codec.load(packed)
        found["scores"] = codec.scores(query, packed, implementation)
    return found


def both(codec, x, query=None):
    """Everything by kernels and by plain JAX, of the same codes."""
    want = everything(codec, x, None, query, "xla")
    return everything(codec, x, want["store"], query, "interpret"), want


@functools.cache
def both_of(name):
    x, query = vectors(name), None
    if name in SCORED:
        query = jnp.asarray(np.random.default_rng(0).standard_normal((2, x.shape[-1]), np.float32))
    return query, *both(codec_of(name), x, query)


roundtrip = jax.jit(Codec.roundtrip, static_argnums=2)


@functools.partial(jax.jit, static_argnums=2)
def packed_by(codec, x, implementation):
    return codec.store(x, implementation=implementation)


def wide(x):
    return np.asarray(x, np.float64)


def mse(a, b):
    return float(np.mean((wide(a) - wide(b)) ** 2))


def check_round_trip(codec, x, found, want):
    assert found.dtype == x.dtype
    product = isinstance(codec.transform, transforms.Dense)
    half = product and x.dtype != jnp.float32
    unit = float(jnp.finfo(x.dtype).eps) * float(jnp.abs(x).max())
    near = np.abs(wide(found) - wide(want)) <= 4 * unit + 1e-5 + 2e-4 * product
    assert near.mean() >= AGREE or half
    assert mse(x, found) == pytest.approx(mse(x, want), rel=0.02 if half else 2e-3)


@pytest.mark.parametrize("name", [n for n in CODECS if n not in PACKED])
def test_round_trips_are_what_plain_jax_is(name):
    codec, x = codec_of(name), vectors(name)
    check_round_trip(codec, x, roundtrip(codec, x, "interpret"), roundtrip(codec, x, "xla"))


@pytest.mark.parametrize("name", PACKED)
def test_round_trips_and_packed_codes_are_what_plain_jax_makes(name):
    codec, x = codec_of(name), vectors(name)
    _, found, want = both_of(name)
    check_round_trip(codec, x, found["roundtrip"], want["roundtrip"])
    mine, theirs = found["store"], want["store"]
    assert jax.tree.structure(mine) == jax.tree.structure(theirs)
    assert mine.data.shape == theirs.data.shape
    unpack = codec.quantizer.unpack
    same = unpack(mine).values == unpack(theirs).values
    assert np.mean(same) >= AGREE
    if mine.scale is not None:
        assert mine.scale.dtype == theirs.scale.dtype
        assert_allclose(wide(mine.scale), wide(theirs.scale), rtol=1e-3)
    size = np.abs(wide(want["load"])).max()
    loose = 4 * float(jnp.finfo(x.dtype).eps) + 3e-5
    assert_allclose(wide(found["load"]), wide(want["load"]), atol=loose * size)


@pytest.mark.parametrize("number", [6, 10])
def test_symmetric_levels_of_any_number_are_made_so_by_all(number):
    levels = jnp.arange(float(number)) ** 2 - 7  # not symmetric: only half their differences count
    book = quantizers.nearest_level(levels, "rms", symmetric=True)
    codec, x = Codec(transforms.quaternion(KEY, 64), book), jax.random.normal(KEY, (6, 64))
    found, want = both(codec, x, x[:2])
    assert_array_equal(found["store"].data, want["store"].data)
    assert_allclose(found["roundtrip"], want["roundtrip"], atol=1e-4)
    assert_allclose(found["load"], want["load"], atol=1e-4)
    assert_allclose(found["scores"], want["scores"], atol=1e-2)


def test_plain_jax_that_is_asked_for_holds_no_kernel():
    device = AbstractDevice("NVIDIA H100 80GB HBM3", 132, platform="gpu")
    codec, x = Codec(transforms.hadamard(KEY, 64), sphere(64)), jnp.ones((4, 64))
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        for way, held in (("xla", False), (None, True)):
            text = str(jax.make_jaxpr(lambda x, way=way: codec.roundtrip(x, way))(x))
            assert ("pallas_call" in text) == held


@pytest.mark.parametrize("way", ["xla", "interpret"])
def test_vectors_scales_and_dtypes_that_do_not_fit_are_refused(way):
    codec = Codec(transforms.planar(KEY, 32), sphere(32))
    packed = codec.store(jnp.ones((2, 32)))
    for call in (codec.roundtrip, functools.partial(codec.store, implementation=way)):
        with pytest.raises(ValueError, match="x must have a last axis of length 32"):
            call(jnp.ones((2, 48)))
    with pytest.raises(ValueError, match="floating dtype, got int32"):
        codec.load(packed, "int32", way)
    with pytest.raises(ValueError, match="at least 16 bits, got float8_e4m3fn"):
        codec.store(jnp.ones((2, 32)), "float8_e4m3fn", way)
    wide_scale = dataclasses.replace(packed, scale=jnp.ones((2, 4), jnp.float16))
    with pytest.raises(ValueError, match="one scale per vector"):
        codec.load(wide_scale, implementation="interpret")


def test_a_dense_product_in_bf16_moves_few_codes():
    codec, x = codec_of("dense-128"), vectors("dense-128")
    mine, theirs = (
        codec.quantizer.unpack(packed_by(codec, x, way)).values for way in ("interpret", "xla")
    )
    assert 0 < np.mean(mine != theirs) < 0.015
    assert np.abs(mine.astype(int) - theirs.astype(int)).max() == 1


@pytest.mark.parametrize("name", SCORED)
def test_scores_are_products_with_the_keys(name):
    query, found, want = both_of(name)
    keys = wide(want["keys"])
    # products take 16 bits of each factor
    atol = 2**-15 * np.abs(keys).sum(-1).max()
    assert_allclose(found["scores"], wide(query) @ keys.T, atol=atol)


HADAMARDS = {
    "float32-128": (transforms.hadamard(KEY, 128), "float32"),
    "bfloat16-inverse-96": (transforms.hadamard(KEY, 96).inverse, "bfloat16"),  # 8 * 12
    "float16-448": (transforms.hadamard(KEY, 448), "float16"),  # 16 * 28
    "bfloat16-4096": (transforms.hadamard(None, 4096), "bfloat16"),  # Sylvester's
}


@pytest.mark.parametrize("name", HADAMARDS)
def test_hadamard_kernel_is_the_matrix_product(name):
    t, dtype = HADAMARDS[name]
    x = jax.random.normal(KEY, (3, t.dim)).astype(dtype)
    found = jax.jit(lambda t, x: t.apply(x, "interpret"))(t, x)
    assert found.dtype == x.dtype
    sylvester = name == "bfloat16-4096"
    matrix = scipy.linalg.hadamard(4096, np.float32) / 64 if sylvester else t.matrix()
    want = wide(x) @ wide(matrix)
    assert_allclose(wide(found), want, atol=4 * float(jnp.finfo(dtype).eps) + 2e-6, rtol=1e-2)


@settings(max_examples=3, deadline=None)
@given(st.integers(1, 150), st.integers(0, 2))
def test_ragged_batches(batch, lead):
    codec = Codec(transforms.planar(KEY, 32), quantizers.lloyd_max_gaussian(2, 32))
    x = jax.random.normal(jax.random.key(batch), (*[1] * lead, batch, 32))
    found = roundtrip(codec, x, "interpret")
    assert found.shape == x.shape
    assert_allclose(found, roundtrip(codec, x, "xla"), atol=1e-5)


def test_the_bytes_are_those_of_the_codes():
    # vectors that are levels themselves, on which any rounding gives the same codes
    t = transforms.planar(KEY, 40)
    for bits in (2, 3, 4):
        q = quantizers.nearest_level(jnp.arange(2.0**bits) - 2**bits / 2, "none")
        codes = np.random.default_rng(bits).integers(0, 2**bits, (21, 40), np.uint8)
        x = wide(q.levels)[codes] @ wide(t.matrix()).T
        packed = packed_by(Codec(t, q), jnp.asarray(x, jnp.float32), "interpret")
        assert packed.scale is None and packed.data.shape == (21, 5 * bits)
        assert_array_equal(packed.data, quantizers.pack_bits(jnp.asarray(codes), bits))


def test_many_rows_go_by_several_tiles_a_program(monkeypatch):
    monkeypatch.setattr("isojax.kernels._pallas._tiles", lambda *_: 4)
    codec = Codec(transforms.planar(KEY, 64), quantizers.lloyd_max_gaussian(3, 64))
    x = jax.random.normal(KEY, (32 * 5 + 3, 64))  # two programs of four tiles, the last one ragged
    found, want = both(codec, x, x[0])
    assert_allclose(found["roundtrip"], want["roundtrip"], atol=1e-5)
    assert_array_equal(found["store"].data, want["store"].data)
    assert_allclose(found["load"], want["load"], atol=1e-5)
    assert_allclose(found["scores"], want["load"] @ x[0], atol=1e-3)


def test_a_zero_vector_stays_zero_and_a_nan_spreads_over_its_vector_alone():
    codec = Codec(transforms.quaternion(KEY, 32), quantizers.lloyd_max_gaussian(3))
    x = jnp.ones((3, 32)).at[0].set(0).at[1, 5].set(jnp.nan)
    found = roundtrip(codec, x, "interpret")
    assert_array_equal(found[0], 0)
    assert np.isnan(found[1]).all() and np.isfinite(found[2]).all()


@pytest.mark.parametrize("straight", [False, True])
def test_derivatives_of_a_round_trip_are_those_of_plain_jax(straight):
    t = transforms.quaternion(KEY, 32)
    q = quantizers.lloyd_max_gaussian(2, 32, normalize="norm")
    codec = Codec(t, quantizers.straight_through(q) if straight else q)
    x, w = jax.random.normal(KEY, (2, 5, 32))

    @functools.partial(jax.jit, static_argnums=2)
    def derivatives(codec, x, implementation):
        def loss(codec, x):
            return jnp.sum(w * codec.roundtrip(x, implementation))

        slopes = jax.grad(loss, (0, 1))(codec, x)
        return slopes, jax.jvp(lambda x: codec.roundtrip(x, implementation), (x,), (w,))[1]

    found, want = (derivatives(codec, x, way) for way in ("interpret", "xla"))
    assert np.abs(want[0][0].transform.left).max() > 1e-2
    jax.tree.map(functools.partial(assert_allclose, atol=1e-4), found, want)
    if straight:
        assert_allclose(found[0][1], w, atol=1e-5)  # the identity: rotated back what was rotated


@pytest.mark.parametrize("implementation", ["interpret", None])
def test_gradients_of_what_is_linear_are_exact(implementation):
    t, book = transforms.hadamard(KEY, 32), quantizers.lloyd_max_gaussian(3)
    codec, (x, w) = Codec(t, book), jax.random.normal(KEY, (2, 6, 32))
    packed = packed_by(codec, x, "xla")

    def losses(t, inverse, levels, x, query):
        how = implementation
        codec = Codec(t, quantizers.Codebook(levels, "rms", "token", 0, False))
        return {
            "apply": jnp.sum(w * t.apply(x, how)),
            "inverse": jnp.sum(w * inverse.apply(x, how)),
            "load": jnp.sum(w * codec.load(packed, jnp.float32, how)),
            "scores": codec.scores(query, packed, how).sum(),
            "store": codec.store(x, implementation=how).scale.sum(),
        }

    found = jax.jit(jax.jacrev(losses, (0, 1, 2, 3, 4)))(t, t.inverse, book.levels, x, w[0])
    matrix, inverse = wide(t.matrix()), wide(t.inverse.matrix())
    bare = wide(transforms.hadamard(None, 32).matrix())
    assert_allclose(found["apply"][3], wide(w) @ matrix.T, atol=1e-5)
    assert_allclose(found["inverse"][3], wide(w) @ inverse.T, atol=1e-5)
    assert_allclose(found["apply"][0].signs, np.sum((wide(w) @ bare.T) * wide(x), 0), atol=1e-4)
    assert_allclose(found["inverse"][1].signs, np.sum((wide(x) @ bare.T) * wide(w), 0), atol=1e-4)
    values, scale = book.unpack(packed).values, wide(packed.scale)
    turned = wide(w) @ matrix * scale
    assert_allclose(found["load"][2], [turned[values == i].sum() for i in range(8)], atol=1e-3)
    keys = wide(book.levels)[np.asarray(values)] * scale @ inverse
    assert_allclose(found["scores"][4], keys.sum(0), atol=1e-4)
    rms = np.sqrt(np.mean(wide(x) ** 2, -1, keepdims=True))
    assert_allclose(found["store"][3], wide(x) / (32 * rms), atol=1e-4)


def test_vmap_over_codecs_is_a_loop():
    keys = jax.random.split(KEY, 3)

    def make(key):
        levels = jnp.sort(jax.random.normal(key, 8))
        return Codec(transforms.planar(key, 32), quantizers.nearest_level(levels, "rms"))

    codecs = jax.vmap(make)(keys)
    x = jax.random.normal(KEY, (3, 5, 32))

    def run(codec, x):
        packed = codec.store(x, implementation="interpret")
        return (
            codec.roundtrip(x, "interpret"),
            packed.data,
            codec.load(packed, implementation="interpret"),
            codec.scores(x[0], packed, "interpret"),
        )

    found = jax.jit(jax.vmap(run))(codecs, x)
    for i, key in enumerate(keys):
        want = everything(make(key), x[i], None, None, "xla")
        assert_allclose(found[0][i], want["roundtrip"], atol=1e-5)
        assert_array_equal(found[1][i], want["store"].data)
        assert_allclose(found[2][i], want["load"], atol=1e-5)
        assert_allclose(found[3][i], want["load"] @ x[i][0], atol=1e-3)
    by_signs = jax.vmap(lambda key, x: transforms.hadamard(key, 32).apply(x, "interpret"))
    want = [transforms.hadamard(k, 32).apply(v) for k, v in zip(keys, x, strict=True)]
    assert_allclose(by_signs(keys, x), want, atol=1e-5)


def test_new_levels_and_rotations_do_not_recompile():
    traces = []

    @jax.jit
    def run(codec, x):
        traces.append(codec)
        return codec.roundtrip(x, "interpret")

    x = jax.random.normal(KEY, (4, 32))
    for key in jax.random.split(KEY, 2):
        book = quantizers.nearest_level(jax.random.normal(key, 4), "norm")
        codec = Codec(transforms.planar(key, 32), book)
        assert_allclose(run(codec, x), codec.roundtrip(x), atol=1e-5)
    assert len(traces) == 1


@pytest.mark.parametrize("q", [quantizers.absmax(3), quantizers.lloyd_max_gaussian(3)])
def test_by_default_a_cpu_gets_plain_jax_of_any_codec(q):
    x, codec = jax.random.normal(KEY, (4, 33)), Codec(transforms.haar(KEY, 33), q)
    found, want = (everything(codec, x, None, x[0], way) for way in (None, "xla"))
    assert_array_equal(found["store"].data, want["store"].data)
    assert_allclose(found["roundtrip"], want["roundtrip"], atol=1e-6)
    assert_allclose(found["load"], want["load"], atol=1e-6)
    assert_allclose(found["scores"], want["load"] @ x[0], atol=1e-4)
    t = transforms.planar(KEY, 32)
    assert_allclose(t.apply(x[:, :32]), x[:, :32] @ t.matrix(), atol=1e-5)
