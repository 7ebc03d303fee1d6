import itertools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from laws import quick_jit
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from isojax import quantizers as q
from isojax.transforms.quaternion import hamilton

RNG = np.random.default_rng(0)
Y = jax.random.normal(jax.random.key(0), (6, 48))
GAUSSIAN = jax.random.normal(jax.random.key(1), (30_000, 8))
SPACING = {4: 2**-0.25, 8: 1.0}  # steps at which the points are the integers and halves
MEMBERS = {
    "d4": q.d4(0.4),
    "e8": q.e8(0.5),
    "d4-bounded": q.d4(0.6, 3),
    "e8-bounded": q.e8(0.5, 2),
    "e8-one-bit": q.e8(1.5, 1),
    "d4-widest": q.d4(0.01, 7),
}
BOUNDED = {name: m for name, m in MEMBERS.items() if m.width}
MAKE = {4: q.d4, 8: q.e8}

roundtrip = quick_jit(lambda quantizer, y: quantizer.roundtrip(y))
encode = quick_jit(lambda quantizer, y: quantizer.encode(y))
decode = quick_jit(lambda quantizer, codes: quantizer.decode(codes))


def members(table):
    return pytest.mark.parametrize("quantizer", table.values(), ids=table.keys())


def sizes(law):
    return pytest.mark.parametrize("size", [4, 8])(law)


def is_point(doubled):
    """Whether doubled coordinates [n, size] are those of the lattice."""
    same = np.all(doubled % 2 == doubled[:, :1] % 2, axis=-1)
    return same & ((doubled.shape[-1] == 4) | (doubled.sum(-1) % 4 == 0))


def points_near_zero(size):
    """Doubled coordinates of all integer and half points in [-3/2, 3/2]^size, even sum or not."""
    whole = itertools.product((-2, 0, 2), repeat=size)
    half = itertools.product((-3, -1, 1, 3) if size == 4 else (-1, 1), repeat=size)
    return np.array([*whole, *half])


@members(MEMBERS)
def test_the_laws_of_the_family(quantizer, monkeypatch):
    codes = encode(quantizer, Y)
    decoded = decode(quantizer, codes)
    assert codes.values.shape == decoded.shape == Y.shape and decoded.dtype == jnp.float32
    assert_array_equal(encode(quantizer, decoded).values, codes.values)
    assert_allclose(roundtrip(quantizer, Y), decoded, rtol=1e-6)
    low = Y.astype(jnp.bfloat16)
    assert_array_equal(
        roundtrip(quantizer, low),
        roundtrip(quantizer, low.astype(jnp.float32)).astype(jnp.bfloat16),
    )
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="y must have a floating dtype, got int32"):
        quantizer.encode(Y.astype(jnp.int32))


@members(MEMBERS)
def test_every_block_of_codes_is_a_lattice_point(quantizer):
    doubled = np.asarray(encode(quantizer, 3 * Y).values, int).reshape(-1, quantizer.size)
    assert is_point(doubled).all()


@members(MEMBERS)
def test_a_new_step_does_not_recompile_and_vmap_is_a_loop(quantizer):
    roundtrip(quantizer, Y)
    compiled = roundtrip._cache_size()
    steps = quantizer.step * jnp.array([0.5, 2.0])
    make = MAKE[quantizer.size]
    loop = [roundtrip(make(step, quantizer.width), Y) for step in steps]
    assert roundtrip._cache_size() == compiled
    batch = jax.vmap(lambda step: make(step, quantizer.width))(steps)
    assert_allclose(jax.vmap(roundtrip, (0, None))(batch, Y), loop, rtol=1e-6)


@sizes
def test_no_lattice_point_is_nearer_than_the_nearest(size):
    x = RNG.uniform(-20, 20, (100_000, size))
    quantizer = MAKE[size](SPACING[size])
    found = np.asarray(roundtrip(quantizer, jnp.asarray(x, jnp.float32)), float)
    base, offsets = np.round(x), points_near_zero(size) / 2
    is_even = (np.sum(offsets, -1) % 2 == 0) if size == 8 else np.ones(len(offsets), bool)
    rest, best = x - base, np.empty(len(x))
    for parity in (0, 1):
        # an offset leads from the base to a lattice point if both have sums of one parity
        near = offsets[is_even == (parity == 0)] if size == 8 else offsets
        rows = np.flatnonzero(base.sum(-1) % 2 == parity)
        for at in np.array_split(rows, max(1, len(rows) // 1000)):
            square = (near**2).sum(-1) - 2 * rest[at] @ near.T
            best[at] = square.min(-1) + (rest[at] ** 2).sum(-1)
    assert_allclose(((found - x) ** 2).sum(-1), best, atol=1e-4)


@pytest.mark.parametrize("step, size, width", [(1.0, 4, 1), (0.7, 4, 2), (1.0, 8, 1)])
def test_a_bounded_lattice_finds_the_nearest_of_all_its_points(step, size, width):
    quantizer = MAKE[size](step, width)
    integers = range(-(2 ** (width - 1)), 2 ** (width - 1))
    whole = 2 * np.array([*itertools.product(integers, repeat=size)])
    points = np.concatenate([whole, whole + 1])
    points = points[is_point(points)]
    assert len(points) == 2 ** (size * quantizer.bits)
    points = points * (step / SPACING[size] / 2)
    assert_allclose(roundtrip(quantizer, jnp.asarray(points, jnp.float32)), points, atol=1e-6)
    x = RNG.normal(0, 1.5, (2000, size)).astype(np.float32)
    error = ((x[:, None] - points) ** 2).sum(-1).min(-1)
    assert_allclose(((roundtrip(quantizer, x) - x) ** 2).sum(-1), error, rtol=1e-4, atol=1e-5)


@members(BOUNDED)
@pytest.mark.parametrize("spread", [1, 100])
def test_bounded_codes_return_from_their_bytes(quantizer, spread):
    codes = encode(quantizer, spread * Y)
    packed = quick_jit(lambda codes: quantizer.pack(codes))(codes)
    again = quick_jit(lambda packed: quantizer.unpack(packed))(packed)
    assert packed.nbytes == Y.shape[0] * q.packed_bytes(Y.shape[1], codes.bits)
    assert codes.bits == quantizer.width + (quantizer.size == 4) / 4
    assert again.values.dtype == codes.values.dtype == jnp.int8
    assert_array_equal(again.values, codes.values)


@sizes
def test_normalized_second_moment_is_that_of_the_literature(size):
    # Conway and Sloane, table 2.3. Uniform over whole periods, so over a cell.
    x = jax.random.uniform(jax.random.key(2), (1_000_000 // size, size), maxval=64)
    quantizer = MAKE[size](SPACING[size])
    error = np.asarray((roundtrip(quantizer, x) - x) ** 2).sum(-1) / size
    deviation = error.std() / np.sqrt(len(error))
    known = {4: 0.076603, 8: 0.071682}[size]
    assert deviation < 2e-3 * known
    assert_allclose(error.mean() / SPACING[size] ** 2, known, atol=4 * deviation)


def test_gain_over_scalar_at_equal_rate_is_that_of_the_second_moments():
    makers = (q.ecsq_for_rate, q.d4_for_rate, q.e8_for_rate)
    fitted = [jax.jit(make)(GAUSSIAN, 4.0) for make in makers]
    errors = [float(jnp.mean((roundtrip(f, GAUSSIAN) - GAUSSIAN) ** 2)) for f in fitted]
    assert_allclose(10 * np.log10(errors[0] / np.array(errors[1:])), [0.366, 0.654], atol=0.025)
    assert_allclose([f.step for f in fitted[1:]], fitted[0].step, rtol=5e-3)


@sizes
@pytest.mark.parametrize("per", ["tensor", "channel", "token"])
def test_the_rate_is_that_of_coset_then_coordinates_then_what_parity_leaves(size, per):
    y = jax.random.normal(jax.random.key(3), (64, 64)) * jnp.geomspace(0.2, 5, 64)
    quantizer = MAKE[size](0.5)
    codes = encode(quantizer, y)

    def entropy(*symbols):
        """Joint entropy of symbols, each [rows, n], by scipy; rows averaged."""
        joint = np.stack(symbols, -1)
        counts = [np.unique(row, axis=0, return_counts=True)[1] for row in joint]
        return np.mean([stats.entropy(c, base=2) for c in counts])

    v = np.asarray(codes.values)
    v = {"tensor": v.reshape(1, -1), "channel": v.T, "token": v}[per]
    coset, integer = v % 2, v // 2
    rate = entropy(coset) / size + entropy(integer, coset) - entropy(coset)
    if size == 8:
        parity = integer % 2
        free = entropy(integer // 2, parity, coset) - entropy(parity, coset)
        rate += (free - entropy(integer, coset) + entropy(coset)) / 8
    found = quick_jit(lambda codes: quantizer.entropy_bits(codes, per))(codes)
    assert_allclose(found, rate, rtol=1e-5)


@sizes
@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_the_rate_asked_for_is_met_under_vmap_over_rates(size, per):
    spread = GAUSSIAN[:4096] * jnp.geomspace(0.1, 10, 8)
    make = q.d4_for_rate if size == 4 else q.e8_for_rate

    @quick_jit
    @jax.vmap
    def rate_of(rate):
        fitted = make(spread, rate, per, 1024)
        return fitted.entropy_bits(fitted.encode(spread), per)

    rates = jnp.array([0.5, 2.0])
    assert_allclose(rate_of(rates), rates, atol=5e-3)


@sizes
def test_minimal_vectors_are_as_many_as_known_and_nothing_is_shorter(size):
    x = RNG.normal(size=(20_000 if size == 8 else 2000, size))
    x *= 1.2 / np.linalg.norm(x, axis=-1, keepdims=True)
    doubled = np.asarray(encode(MAKE[size](SPACING[size]), jnp.asarray(x, jnp.float32)).values)
    norms = (np.unique(doubled.astype(np.int8), axis=0).astype(int) ** 2).sum(-1) / 4
    least = {4: 1, 8: 2}[size]
    assert norms[norms > 0].min() == least
    assert (norms == least).sum() == {4: 24, 8: 240}[size]


def test_products_of_hurwitz_units_are_hurwitz_units_and_of_integers_integers():
    quantizer = q.d4(SPACING[4])
    units = np.array([p for p in itertools.product((-2, -1, 0, 1, 2), repeat=4)])
    units = units[is_point(units) & ((units**2).sum(-1) == 4)] / 2
    assert len(units) == 24
    integers = roundtrip(quantizer, 5 * Y.reshape(-1, 4))
    for factors in (jnp.asarray(units, jnp.float32), integers):
        products = quick_jit(hamilton)(factors[:, None], factors)
        assert_array_equal(roundtrip(quantizer, products), products)
        if factors is not integers:
            assert len(np.unique(np.asarray(products).reshape(-1, 4), axis=0)) == 24
            assert_allclose(np.linalg.norm(products, axis=-1), 1)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: q.d4(0.0), "step must be above zero and finite, got 0.0"),
        (lambda: q.e8(1.0, 8), "width must be one of 0, 1, .* 7; got 8"),
        (lambda: q.e8(1.0).encode(Y[:, :12]), "must divide the last axis=12, got 8"),
        (lambda: q.d4_for_rate(Y, 0.0), "rate_bits must be above 0 .* got 0.0"),
        (lambda: q.e8_for_rate(Y, 11.0), r"below log2\(4096\) - 1, got 11.0"),
        (lambda: q.e8_for_rate(Y, 2.0, "group"), "per must be one of .* got 'group'"),
        (lambda: q.d4(1.0).pack(q.d4(1.0).encode(Y)), "bits to be packed, got codes.bits None"),
    ],
)
def test_errors_name_what_was_got_and_what_is_allowed(make, words):
    with pytest.raises(ValueError, match=words):
        make()
