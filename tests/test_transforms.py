import jax
import jax.numpy as jnp
import jaxtyping
import laws
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import ISOMETRY_LAWS, KEY, OTHER, TRANSFORM_LAWS, quick_jit
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.transform import Rotation

from isojax import transforms as tf
from isojax.recipes import COORDINATES


def blocks_of(make, count):
    return lambda key: tf.block_diagonal(jax.vmap(make)(jax.random.split(key, count)))


def named(name, dim):
    return lambda key: tf.from_name(key, name, dim)


def fitted(dim):
    scale = jnp.linspace(0.5, 3, dim)
    return lambda key: tf.pca(scale[None] * jax.random.normal(key, (4 * dim, dim)))


def diagonal(dim):
    return lambda key: tf.Diagonal(jnp.exp(jax.random.uniform(key, (dim,), minval=-1)))


def oblique(dim):
    """Of singular values from 1/e to e."""

    def make(key):
        left, right = (tf.haar(part, dim).matrix() for part in jax.random.split(key))
        size = jnp.exp(jnp.linspace(-1, 1, dim))
        return tf.Oblique((left * size[None]) @ right, (right.T / size[None]) @ left.T)

    return make


DRAWN = [
    name + ":4" * (name == "block_hadamard")
    for name, member in COORDINATES.members.items()
    if not member.facts["fitted"]
]
ISOMETRIES = {
    "identity-5": lambda key: tf.identity(5),
    "haar-24": lambda key: tf.haar(key, 24),
    "pca-6": fitted(6),
    "hadamard-16": lambda key: tf.hadamard(key, 16),
    "hadamard-24": lambda key: tf.hadamard(key, 24),
    "block_hadamard-24-12": lambda key: tf.block_hadamard(key, 24, 12),
    "planar-24": lambda key: tf.planar(key, 24),
    "quaternion_fast-24": lambda key: tf.quaternion(key, 24, "fast"),
    "quaternion_full-24": lambda key: tf.quaternion(key, 24),
    "rotor-24": lambda key: tf.rotor(key, 24),
    "permutation-24": lambda key: tf.permutation(key, 24),
    "block_diagonal-haar-24": blocks_of(lambda key: tf.haar(key, 6), 4),
    "block_diagonal-nested-24": blocks_of(blocks_of(named("planar@random_permutation", 4), 3), 2),
    "block_diagonal-padded-20": blocks_of(named("rotor", 5), 4),
    "repeat-hadamard-24": lambda key: tf.repeat(tf.hadamard(key, 12), 2),
    "cayley-6": named("cayley", 6),
    "exponential-6": named("exponential", 6),
    "butterfly_planar-12": named("butterfly_planar", 12),
    "butterfly_quaternion-24": named("butterfly_quaternion", 24),
    "strided-24": lambda key: tf.strided(tf.quaternion(key, 24), 4, 3),
    "kronecker-24": lambda key: tf.kronecker(tf.rotor(key, 6), tf.hadamard(key, 4)),
    "padded-rotor-10": lambda key: tf.padded(tf.rotor(key, 12), 10),
    "composed-24": named("random_permutation@quaternion_fast@block_hadamard:12", 24),
}
OTHERS = {
    "diagonal-24": diagonal(24),
    "oblique-6": oblique(6),
    "block_diagonal-oblique-12": blocks_of(oblique(4), 3),
    "repeat-diagonal-24": lambda key: tf.repeat(diagonal(6)(key), 4),
    "strided-oblique-12": lambda key: tf.strided(tf.repeat(oblique(4)(key), 3), 4, 3),
    "kronecker-oblique-12": lambda key: tf.kronecker(oblique(4)(key), tf.haar(key, 3)),
    "kronecker-padded-20": lambda key: tf.kronecker(
        diagonal(4)(key), tf.padded(oblique(8)(key), 5)
    ),
    "padded-oblique-5": lambda key: tf.padded(oblique(8)(key), 5),
    "composed-6": lambda key: tf.rotor(key, 6) @ diagonal(6)(key) @ oblique(6)(key),
    "composed-padded-10": lambda key: (
        tf.padded(blocks_of(oblique(4), 3)(key), 10) @ diagonal(12)(key) @ tf.planar(key, 12)
    ),
}
LAWS = [
    pytest.param(quick_jit(make), law, id=f"{law.__name__}-{name}")
    for members, laws_of in (
        (ISOMETRIES, ISOMETRY_LAWS + TRANSFORM_LAWS),
        (OTHERS, TRANSFORM_LAWS),
    )
    for name, make in members.items()
    for law in laws_of
]


@pytest.mark.parametrize("make, law", LAWS)
def test_law(make, law):
    law(make)


def test_isometries_around_a_crop_are_none():
    rotor = tf.padded(tf.rotor(KEY, 12), 10)
    shrunk = rotor @ tf.haar(KEY, 12) @ rotor.inverse
    assert not shrunk.isometry
    assert_allclose(shrunk.T.matrix(), shrunk.matrix().T, atol=1e-6)


@pytest.mark.parametrize("make", [named("identity", 4), named("haar", 4), named("planar", 4)])
def test_integers_are_refused(make, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="x must have a floating dtype, got int32"):
        make(KEY).apply(jnp.arange(4))


def test_fp64_of_numpy_is_computed_in_fp32_without_a_warning(monkeypatch, recwarn):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    t, x = tf.haar(KEY, 24), laws.vectors(24, 4)
    y = t.apply(x.astype(np.float64))
    assert y.dtype == jnp.float32
    assert_allclose(y, laws.apply(t, x), atol=1e-5)
    assert not recwarn.list


def test_haar_entries_have_the_moments_of_the_haar_measure():
    n, d = 4000, 6
    r = np.asarray(jax.vmap(lambda key: tf.haar(key, d).entries)(jax.random.split(KEY, n)))
    assert np.abs(r.mean(0)).max() < 4.5 / np.sqrt(n * d)
    assert_allclose((r**2).mean(0), np.full((d, d), 1 / d), rtol=0.1)
    assert_allclose((r**2).mean(), 1 / d, rtol=1e-5)
    assert_allclose((r**4).mean(), 3 / (d * (d + 2)), rtol=0.02)
    assert_allclose((r[:, 0, 0] ** 2 * r[:, 1, 1] ** 2).mean(), 7 / 240, rtol=0.08)


@pytest.mark.parametrize(
    "name, size, marginal",
    [
        ("planar", 2, scipy.stats.arcsine(-1, 2)),
        ("rotor", 3, scipy.stats.uniform(-1, 2)),
        ("quaternion_fast", 4, scipy.stats.semicircular()),
        ("quaternion_full", 4, scipy.stats.semicircular()),
    ],
)
def test_coordinates_of_a_turned_unit_block_have_the_marginal_of_the_sphere(name, size, marginal):
    n = 4000
    unit = laws.vectors(size, 1)[0]
    unit /= np.linalg.norm(unit)
    blocks = laws.apply(tf.from_name(KEY, name, n * size), np.tile(unit, n)).reshape(n, size)
    for coordinate in np.asarray(blocks).T:
        assert scipy.stats.kstest(coordinate, marginal.cdf).pvalue > 1e-3


def left_matrix(q):
    w, x, y, z = q
    return np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]])


def right_matrix(q):
    w, x, y, z = q
    return np.array([[w, -x, -y, -z], [x, w, z, -y], [y, -z, w, x], [z, y, -x, w]])


@pytest.mark.parametrize("form", ["fast", "full"])
def test_quaternion_is_left_and_right_multiplication(form):
    t = tf.quaternion(KEY, 24, form)
    v = laws.vectors(24, 1).reshape(6, 4)
    blocks = laws.apply(t, v.reshape(24)).reshape(6, 4)
    for i, (u, got) in enumerate(zip(v, blocks, strict=True)):
        want = left_matrix(t.left[i] / jnp.linalg.norm(t.left[i])) @ u
        if t.right is not None:
            w, x, y, z = t.right[i] / jnp.linalg.norm(t.right[i])
            want = right_matrix((w, -x, -y, -z)) @ want
        assert_allclose(got, want, atol=1e-6)


def test_both_signs_of_a_quaternion_pair_are_one_rotation():
    t = tf.quaternion(KEY, 24)
    assert_allclose(tf.Quaternion(-t.left, -t.right).matrix(), t.matrix(), atol=1e-6)
    assert_allclose(tf.Quaternion(3 * t.left, t.right / 7).matrix(), t.matrix(), atol=1e-6)


@pytest.mark.parametrize("member, size", [(tf.Planar, 2), (tf.Quaternion, 4), (tf.Rotor, 4)])
def test_zero_parameters_are_the_identity_with_finite_gradient(member, size):
    u = jnp.zeros((2, size))
    t = member(u)
    x = laws.vectors(t.dim, 1)[0]
    assert_array_equal(laws.apply(t, x), x)
    gradient = quick_jit(jax.grad(lambda u: member(u).apply(jnp.asarray(x)) @ x[::-1]))
    assert np.isfinite(gradient(u)).all()


def test_rotor_is_the_rotation_of_scipy():
    t = tf.rotor(KEY, 24)
    v = laws.vectors(24, 1).reshape(8, 3)
    w, x, y, z = np.asarray(t.spinor).T
    want = Rotation.from_quat(np.stack([x, y, z, w], 1)).apply(v)
    assert_allclose(laws.apply(t, v.reshape(24)).reshape(8, 3), want, atol=1e-6)


def test_planar_is_the_rotation_of_scipy():
    t = tf.planar(KEY, 8)
    angle = np.arctan2(t.phasor[:, 1], t.phasor[:, 0])
    about_z = Rotation.from_rotvec(np.outer(angle, [0, 0, 1])).as_matrix()[:, :2, :2]
    want = torch.block_diag(*torch.tensor(about_z)).numpy()
    assert_allclose(t.matrix().T, want, atol=1e-6)


@pytest.mark.parametrize("name", ["planar", "rotor", "quaternion_fast", "quaternion_full"])
def test_block_rotations_have_determinant_one(name):
    matrix = quick_jit(lambda key: tf.from_name(key, name, 12).matrix())(KEY)
    assert_allclose(np.linalg.det(matrix), 1, atol=1e-5)


def test_permutation_gathers():
    t = tf.permutation(KEY, 24)
    x = np.arange(24.0, dtype=np.float32)
    assert_array_equal(t.apply(jnp.asarray(x)), x[np.asarray(t.indices)])
    assert_array_equal(np.sort(t.indices), np.arange(24))


def test_block_diagonal_is_the_block_diagonal_matrix_of_torch():
    keys = jax.random.split(KEY, 4)
    matrices = [torch.tensor(np.asarray(tf.haar(key, 6).matrix())) for key in keys]
    t = tf.block_diagonal(jax.vmap(lambda key: tf.haar(key, 6))(keys))
    assert_allclose(t.matrix(), torch.block_diag(*matrices).numpy(), atol=1e-6)
    assert (t.dim, t.params, t.fmas) == (24, 144, 144)


def test_repeat_stores_its_block_once():
    block = tf.haar(KEY, 6)
    t = tf.repeat(block, 4)
    assert_allclose(t.matrix(), np.kron(np.eye(4), block.matrix()), atol=1e-6)
    assert (t.dim, t.params, t.fmas) == (24, 36, 144)


def test_a_kronecker_product_is_that_of_numpy_and_of_blocks_and_strides():
    left, right = oblique(4)(KEY), tf.haar(OTHER, 6)
    t = tf.kronecker(left, right)
    parts = tf.repeat(right, 4) @ tf.strided(tf.repeat(left, 6), 4, 6)
    assert_allclose(t.matrix(), np.kron(left.matrix(), right.matrix()), atol=1e-6)
    x = jnp.asarray(laws.vectors(24, 5))
    assert_array_equal(t.apply(x), parts.apply(x))
    assert (t.fmas, t.params) == (parts.fmas, parts.params) == (24 * 10, 16 + 36)
    of_matrices = tf.kronecker(left.entries, right.entries)
    assert_allclose(of_matrices.matrix(), t.matrix(), atol=1e-6)
    assert_allclose(of_matrices.inverse.matrix(), t.inverse.matrix(), atol=1e-5)


def test_padding_appends_zeros_and_its_inverse_crops():
    inner = tf.haar(KEY, 12)
    t = tf.padded(inner, 10)
    assert_allclose(t.matrix(), inner.matrix()[:10], atol=1e-6)
    projection = t.inverse.matrix() @ t.matrix()
    assert_allclose(projection @ projection, projection, atol=1e-5)
    assert_allclose(jnp.trace(projection), 10, rtol=1e-5)


def samples(n=200, d=8):
    mixing = jax.random.normal(OTHER, (d, d))
    return jax.random.normal(KEY, (n, d)) @ mixing + 5 * jnp.arange(d)


def test_pca_gives_uncorrelated_coefficients_with_the_energies_of_the_svd():
    x = samples()
    y = np.asarray(tf.pca(x).apply(x), np.float64)
    energies = torch.linalg.svdvals(torch.tensor(np.asarray(x, np.float64))).numpy() ** 2 / len(x)
    assert_allclose(y.T @ y / len(y), np.diag(energies), atol=1e-5 * energies[0])


def test_pca_is_not_centred():
    x = samples()
    mean = np.asarray(x.mean(0))
    first = np.asarray(tf.pca(x).entries[:, 0])
    assert first @ mean / np.linalg.norm(mean) > 0.99


def test_pca_axes_point_to_their_largest_entry_whatever_the_sign_of_the_samples():
    x = samples()
    axes = np.asarray(tf.pca(x).entries)
    assert (axes[np.abs(axes).argmax(0), np.arange(8)] > 0).all()
    assert_allclose(tf.pca(-x[::-1]).entries, axes, atol=1e-3)


def test_pca_takes_bf16_samples_and_fits_in_fp32():
    x = samples().astype(jnp.bfloat16)
    assert_array_equal(tf.pca(x).entries, tf.pca(x.astype(jnp.float32)).entries)


@settings(max_examples=5, deadline=None)
@given(st.permutations(["haar", "hadamard", "planar", "rotor", "random_permutation"]))
def test_composition_is_associative_and_reversed_by_its_transpose(names):
    a, b, c = (tf.from_name(KEY, name, 12) for name in names[:3])
    left, right = (a @ b) @ c, a @ (b @ c)
    assert jax.tree.structure(left) == jax.tree.structure(right)
    assert_allclose(left.T.matrix(), c.T.matrix() @ b.T.matrix() @ a.T.matrix(), atol=1e-5)


@pytest.mark.parametrize(
    "name, params, fmas",
    [
        ("haar", 16384, 16384),
        ("rotor", 172, 2408),
        ("planar", 128, 256),
        ("quaternion_full", 256, 1024),
        ("quaternion_fast", 128, 512),
        ("hadamard", 128, 128 * 7),
        ("random_permutation", 128, 0),
        ("identity", 0, 0),
        ("random_permutation@planar", 256, 256),
        ("cayley", 8128, 16384),
        ("exponential", 8128, 16384),
        ("butterfly_planar", 128 * 7, 256 * 7),
        ("butterfly_quaternion", 256 * 3 + 128, 1024 * 3 + 256),
    ],
)
def test_counts_at_dimension_128_are_the_published_ones(name, params, fmas):
    t = jax.eval_shape(lambda key: tf.from_name(key, name, 128), KEY)
    assert (t.params, t.fmas) == (params, fmas)


@pytest.mark.parametrize("name", [*DRAWN, "random_permutation@block_hadamard:16"])
def test_params_count_what_is_stored(name):
    t = jax.eval_shape(lambda key: tf.from_name(key, name, 48), KEY)
    assert sum(leaf.size for leaf in jax.tree.leaves(t)) == t.params


def test_hadamard_counts_its_power_of_two_by_the_logarithm_and_its_base_densely():
    assert tf.hadamard(KEY, 1536).fmas == 1536 * (7 + 12)
    assert tf.block_hadamard(KEY, 1536, 64).fmas == 1536 * 6


@pytest.mark.parametrize("name", sorted(set(DRAWN) - {"hadamard"}))
def test_names_pad_to_whole_blocks(name):
    x = laws.vectors(10, 4)

    @quick_jit
    def make_and_invert(key, x):
        t = tf.from_name(key, name, 10)
        return t, t.inverse.apply(t.apply(x))

    t, back = make_and_invert(KEY, x)
    padded_dims = {
        "block_hadamard:4": 12,
        "rotor": 12,
        "quaternion_fast": 12,
        "quaternion_full": 12,
    }
    assert (t.dim, t.out_dim) == (10, padded_dims.get(name, 10))
    assert_allclose(back, x, atol=1e-5)


def test_a_single_name_is_its_factory():
    assert_array_equal(tf.from_name(KEY, "haar", 24).matrix(), tf.haar(KEY, 24).matrix())
    whole = tf.from_name(KEY, "block_hadamard:24", 24)
    assert_array_equal(whole.matrix(), tf.hadamard(KEY, 24).matrix())


def test_joined_names_apply_in_order_with_a_key_each():
    first, second = jax.random.split(KEY)
    want = tf.permutation(first, 24).matrix() @ tf.planar(second, 24).matrix()
    assert_allclose(tf.from_name(KEY, "random_permutation @ planar", 24).matrix(), want, atol=1e-6)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: tf.identity(0), "dim must be .* at least 1, got 0"),
        (lambda: tf.haar(KEY, 0), "dim must be .* at least 1, got 0"),
        (lambda: tf.permutation(KEY, -1), "dim must be .* at least 1, got -1"),
        (lambda: tf.planar(KEY, 5), "must divide dim=5, got 2"),
        (lambda: tf.rotor(KEY, 5), "must divide dim=5, got 3"),
        (lambda: tf.quaternion(KEY, 6), "must divide dim=6, got 4"),
        (lambda: tf.quaternion(KEY, 8, "half"), "form must be one of full, fast; got 'half'"),
        (lambda: tf.hadamard(KEY, 156), "got 156; blocks .* work: 52, 12, 4, 2, 1"),
        (lambda: tf.block_hadamard(KEY, 24, 6), "block must be one of 24, 12, 8, 4, 2, 1; got 6"),
        (lambda: tf.padded(tf.haar(KEY, 4), 5), "size must be at most inner.dim=4, got 5"),
        (lambda: tf.cayley(KEY, 0), "dim must be .* at least 1, got 0"),
        (lambda: tf.exponential(KEY, 0), "dim must be .* at least 1, got 0"),
        (lambda: tf.butterfly(KEY, 8, "rotor"), "form must be one of planar, quat.*; got 'rotor'"),
        (lambda: tf.strided(tf.planar(KEY, 8), 2, 3), "must divide inner.dim=8, got 6"),
        (lambda: tf.kronecker(jnp.eye(4), jnp.eye(4)[:3]), r"right must be .* got \(3, 4\)"),
        (lambda: tf.repeat(tf.haar(KEY, 4), 0), "count must be .* at least 1, got 0"),
        (lambda: tf.block_diagonal(tf.identity(4)), "block must have one leading axis"),
        (lambda: tf.pca(jnp.ones((0, 3))), r"samples must have shape .* got \(0, 3\)"),
        (lambda: tf.from_name(KEY, "haar@givens", 8), "coordinates must be one of .*'givens'"),
        (lambda: tf.from_name(KEY, "haar:4", 8), "haar takes no arguments"),
        (lambda: tf.from_name(KEY, "block_hadamard:0", 8), "block must be .* at least 1, got 0"),
        (lambda: tf.haar(KEY, 4) @ tf.haar(KEY, 5), "got 4 and 5"),
        (lambda: tf.haar(KEY, 4).apply(jnp.ones(5)), r"last axis of length 4, got shape \(5,\)"),
    ],
)
def test_bad_input_is_refused_with_what_was_got_and_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()
