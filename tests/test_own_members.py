"""Transforms and quantizers of one's own, written with public names alone."""

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float
from laws import ISOMETRY_LAWS, OTHER, TRANSFORM_LAWS, quick_jit, vectors
from numpy.testing import assert_allclose, assert_array_equal

import isojax
from isojax import learn, metrics, quantizers, transforms

DIM = 12


@isojax.pytree
class Reflection(isojax.Transform):
    """x - 2 (x . u) u / |u|^2: Householder."""

    normal: Float[Array, "... d"]

    @property
    def dim(self):
        return self.normal.shape[-1]

    @property
    def T(self):
        return self

    @property
    def params(self):
        return self.dim

    @property
    def fmas(self):
        return 2 * self.dim

    def forward(self, x):
        u = self.normal.astype(x.dtype)
        u = u / jnp.linalg.norm(u)
        return x - 2 * (x * u).sum(-1, keepdims=True) * u


@isojax.pytree
class RankOne(isojax.Transform):
    """x + (x . u) v; its inverse is by Sherman and Morrison."""

    left: Float[Array, "... d"]
    right: Float[Array, "... d"]

    @property
    def dim(self):
        return self.left.shape[-1]

    @property
    def T(self):
        return RankOne(self.right, self.left)

    @property
    def isometry(self):
        return False

    @property
    def inverse(self):
        inner = (self.left * self.right).sum(-1, keepdims=True)
        return RankOne(self.left, -self.right / (1 + inner))

    @property
    def params(self):
        return 2 * self.dim

    @property
    def fmas(self):
        return 2 * self.dim

    def forward(self, x):
        u, v = self.left.astype(x.dtype), self.right.astype(x.dtype)
        return x + (x * u).sum(-1, keepdims=True) * v


@isojax.pytree
class Fixed(isojax.Quantizer):
    """Rounds to whole multiples of a step that is given, in so many bits."""

    step: Float[Array, ""]
    bits: int = isojax.static()

    def encode(self, y):
        high = 2 ** (self.bits - 1)
        values = jnp.clip(jnp.round(y.astype(jnp.float32) / self.step), -high, high - 1)
        return quantizers.Codes(values.astype(jnp.int8), bits=self.bits)

    def decode(self, codes):
        return codes.values * self.step


def reflection(key):
    return Reflection(jax.random.normal(key, (DIM,)))


def rank_one(key):
    return RankOne(*jax.random.uniform(key, (2, DIM), minval=-0.3, maxval=0.4))


def around(key):
    blocks = transforms.block_diagonal(jax.vmap(rank_one)(jax.random.split(key, 2)))
    return transforms.haar(key, 2 * DIM) @ blocks


@pytest.mark.parametrize("law", ISOMETRY_LAWS + TRANSFORM_LAWS, ids=lambda law: law.__name__)
def test_an_isometry_of_ones_own_obeys_the_laws(law):
    law(quick_jit(reflection))


@pytest.mark.parametrize("law", TRANSFORM_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("make", map(quick_jit, (rank_one, around)), ids=["alone", "around"])
def test_another_transform_of_ones_own_obeys_the_laws(make, law):
    law(make)


def test_a_codec_of_ones_own_parts_reads_what_it_stored():
    codec = isojax.Codec(rank_one(OTHER), Fixed(jnp.float32(0.05), 8))
    x, query = jnp.asarray(vectors(DIM, 2, 5))
    packed = codec.store(x)
    assert packed.data.nbytes == x.size
    assert_array_equal(codec.load(packed), codec.roundtrip(x))
    assert metrics.nmse(x, codec.load(packed)) < 1e-3
    assert_allclose(codec.scores(query, packed), query @ codec.load(packed).T, atol=1e-4)
    three = Fixed(jnp.float32(0.5), 3)
    codes = three.encode(x)
    assert three.pack(codes).data.shape == (5, -(-3 * DIM // 8))
    assert_array_equal(three.unpack(three.pack(codes)).values, codes.values)


def test_what_is_no_isometry_must_say_what_its_inverse_is():
    class Forgetful(RankOne):
        inverse = isojax.Transform.inverse

    with pytest.raises(NotImplementedError, match="must define inverse: it is no isometry"):
        Forgetful(jnp.ones(3), jnp.ones(3)).dual


def test_codes_with_scales_need_encode_like():
    class Careless(quantizers.Quantizer):
        def encode(self, y):
            return quantizers.absmax(4, "token").encode(y)

        def decode(self, codes):
            return quantizers.absmax(4, "token").decode(codes)

    w, own = jnp.asarray(vectors(DIM, 3, DIM)[0]), Careless()
    with pytest.raises(ValueError, match=r"Careless must define encode_like\(y, codes\)"):
        learn.gptq(w, jnp.eye(DIM), own)
