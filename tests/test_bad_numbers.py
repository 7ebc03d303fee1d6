"""What is not finite, empty, or of another length or type: refused, or NaN where it is traced."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from isojax import learn, metrics
from isojax import quantizers as q
from isojax import transforms as tf
from isojax.codec import Codec
from isojax.kvcache.recipe import StoreRecipe
from isojax.recipes import COORDINATES, LEVELS, Recipe, Samples

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (64, 8))
W = jax.random.normal(jax.random.key(1), (8, 5))
H = learn.gram(X).hessian
METRIC = learn.second_moment(X)
BAD = {"nan": jnp.nan, "inf": jnp.inf, "-inf": -jnp.inf}
bad = pytest.mark.parametrize("number", BAD.values(), ids=BAD.keys())

# arguments that keep members quick, and those that sort channels, whose codes have no NaN
SHORT = {"learned_rotation": ":3:2", "learned_alignment": ":3.0:2"}
ORDERS = {"mass_diff": ":4", "co_activation": ":4", "zigzag": ":4", "absmax_order": ""}
FITTED = [
    name + SHORT.get(name, "") + ORDERS.get(name, "")
    for name, member in COORDINATES.members.items()
    if "x" in member.facts["fitted"]
]
CODED = [name for name, member in LEVELS.members.items() if "x" in member.facts["fitted"]]
CODED = [name for name in CODED if name != "lloyd_max"] + [
    "lloyd_max:fitted", "lloyd_max:fitted:gain=none", "lloyd_max:fitted_channel",
    "lloyd_max:fitted_channel:greedy", "lloyd_max:fitted:gain=peak",
]  # fmt: skip


def fitted(text, x, metric=METRIC):
    recipe = Recipe.parse(text)
    bits = 2.0 if text.partition("/")[2] in ("ecsq", "d4", "e8") else 2
    return recipe.fit(KEY, Samples(x, metric, W), bits)


def lost(tree):
    leaves = [a for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.floating)]
    return all(bool(jnp.isnan(a).any()) for a in leaves)


@bad
@pytest.mark.parametrize("text", [*FITTED, *(f"identity/{name}" for name in CODED), "centre"])
def test_one_number_that_is_not_finite_is_refused_by_every_fit(text, number):
    with pytest.raises(ValueError, match="must be finite"):
        fitted(text, X.at[3, 2].set(number))


@pytest.mark.parametrize("text", [*FITTED, *(f"identity/{name}" for name in CODED), "centre"])
def test_where_it_is_traced_the_fit_is_nan(text):
    if text.partition(":")[0] in ORDERS:
        pytest.skip("places of channels have no NaN")
    codec = jax.jit(lambda x: fitted(text, x))(X.at[3, 2].set(jnp.nan))
    part = codec.quantizer if "/" in text else codec
    assert jax.tree.leaves(part) and lost(part)


@pytest.mark.parametrize("text", ["pca", "standardize", "low_rank", "learned_rotation:3:2"])
def test_an_activation_whose_square_leaves_fp32_is_refused(text):
    with pytest.raises(ValueError, match="must be finite"):
        fitted(text, X.at[3, 2].set(1e20))


@bad
@pytest.mark.parametrize("ridge", [0.0, 1e-3])
def test_aligned_axes_refuse_moments_and_metrics(number, ridge):
    spoilt = METRIC.at[0, 0].set(number)
    for call in (
        lambda m: learn.aligned(METRIC, m, ridge=ridge),
        lambda m: learn.aligned(m, METRIC, ridge=ridge),
        learn.log_spectrum,
    ):
        with pytest.raises(ValueError, match="(moment|metric) must be finite"):
            call(spoilt)
        assert lost(jax.jit(call)(spoilt))


def test_a_metric_of_zeros_says_nothing_and_a_singular_one_needs_its_ridge():
    axes = learn.aligned(METRIC, jnp.zeros((8, 8)))
    turned = axes.entries.T @ METRIC @ axes.entries * 1e3
    plain = learn.aligned(METRIC).entries
    np.testing.assert_allclose(turned, plain.T @ METRIC @ plain, atol=1e-4)
    for metric in (jnp.zeros((8, 8)), jnp.ones((8, 8))):
        assert np.isfinite(learn.aligned(METRIC, metric).inverse_entries).all()
        with pytest.raises(ValueError, match="metric must be positive definite"):
            learn.aligned(METRIC, metric, ridge=0.0)
        assert lost(jax.jit(lambda m: learn.aligned(METRIC, m, ridge=0.0))(metric))
        assert np.isfinite(learn.aligned(METRIC, metric, power=0.0, ridge=0.0).entries).all()


@pytest.mark.parametrize("place", [(1, 1), (1, 2)])
@bad
def test_gptq_refuses_a_hessian_that_is_not_finite(place, number):
    quantizer, spoilt = q.absmax(4, "token"), H.at[place].set(number)
    with pytest.raises(ValueError, match="hessian must be finite"):
        learn.gptq(W, spoilt, quantizer)
    for kind in (quantizer, q.lloyd_max_gaussian(3), q.minmax(4, "token")):
        codes = jax.jit(lambda h, kind=kind: learn.gptq(W, h, kind))(spoilt)
        assert np.isnan(kind.decode(codes)).all()


def test_one_activation_of_1e20_is_enough():
    hessian = learn.gram(X.at[3, 2].set(1e20)).hessian
    with pytest.raises(ValueError, match="hessian must be finite"):
        learn.gptq(W, hessian, q.absmax(4, "token"))


def test_traced_codes_with_scales_of_one_byte_are_nan_too():
    w, h = jax.random.normal(KEY, (32, 4)), jnp.eye(32).at[3, 3].set(jnp.inf)
    for kind in (q.mxfp4(), q.nvfp4(), q.nvfp4(0.01), q.nf4(), q.fp8()):
        codes = jax.jit(lambda h, kind=kind: learn.gptq(w, h, kind))(h)
        assert np.isnan(kind.decode(codes)).all()


@bad
def test_smoothquant_refuses_maxima_that_are_not_finite(number):
    most = jnp.abs(X).max(0)
    for call in (
        lambda n: learn.smooth_scale(most.at[1].set(n), [W]),
        lambda n: learn.smooth_scale(most, [W.at[0, 0].set(n)]),
    ):
        with pytest.raises(ValueError, match="(x_absmax|weights) must be finite"):
            call(number)
        assert lost(jax.jit(call)(number))


@bad
def test_stores_refuse_samples_and_metrics_that_are_not_finite(number):
    samples = jax.random.normal(KEY, (2, 1, 16, 2, 8))
    for text in ("haar/absmax", "aligned/absmax"):
        recipe = StoreRecipe.parse(text)
        with pytest.raises(ValueError, match="samples must be finite"):
            recipe.fit(KEY, samples.at[1, 0, 3, 1, 2].set(number), 3)
    metric = jnp.broadcast_to(jnp.eye(8), (2, 2, 8, 8)).at[0, 1, 2, 2].set(number)
    with pytest.raises(ValueError, match="metric must be finite"):
        StoreRecipe.parse("aligned/absmax").fit(KEY, samples, 3, metric=metric)


@pytest.mark.parametrize("alive", [False, True])
def test_a_dead_channel_costs_no_more_than_without_standardizing(alive):
    x = jax.random.normal(KEY, (512, 8))
    seen = x.at[:, 3].set(5.0) if not alive else x.at[:, 3].set(0.0)
    test = x if alive else seen
    errors = []
    for text in ("standardize@haar/absmax", "haar/absmax"):
        codec = Recipe.parse(text).fit(KEY, Samples(seen), 4)
        errors.append(float(metrics.nmse(test, codec.roundtrip(test))))
    assert errors[0] < 1.25 * errors[1] < 0.02


def test_bits_of_a_variance_that_is_not_a_number():
    spoilt = jnp.array([1.0, jnp.nan, 2.0, 3.0])
    with pytest.raises(ValueError, match="variances must be finite"):
        metrics.allocate_bits(spoilt, 2)
    given = jax.jit(lambda v: metrics.allocate_bits(v, 2))(spoilt)
    assert given[1] == 0 and given.sum() == 8
    with pytest.raises(ValueError, match="variances must be finite"):
        learn.rank_for_rate(spoilt, 3.0)


NUMBERS = {
    "step of ecsq": lambda n: q.ecsq(n),
    "step of d4": lambda n: q.d4(n),
    "step of e8": lambda n: q.e8(n, 3),
    "tensor_scale": lambda n: q.nvfp4(n),
    "clip": lambda n: q.absmax(4, clip=n),
    "rate_bits": lambda n: q.ecsq_for_rate(X, n),
    "damping": lambda n: learn.gptq(W, H, q.absmax(4, "token"), damping=n),
    "power": lambda n: learn.aligned(METRIC, METRIC, power=n),
    "ridge": lambda n: learn.aligned(METRIC, METRIC, ridge=n),
    "alpha": lambda n: learn.smooth_scale(jnp.ones(8), [W], n),
    "rate": lambda n: learn.rank_for_rate(jnp.ones(4), n),
    "rate of learning": lambda n: learn.learned_rotation(KEY, X, steps=1, rate=n),
    "learning_rate": lambda n: learn.learned_alignment(KEY, X, steps=1, learning_rate=n),
    "mean_bits": lambda n: metrics.allocate_bits(jnp.ones(4), n),
    "prior": lambda n: metrics.cross_entropy_bits(*jnp.ones((2, 3, 2), int), prior=n),
    "share": lambda n: q.sparse(q.absmax(3), n),
}


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("name", NUMBERS)
def test_python_numbers_that_make_no_sense_are_refused(name, number):
    with pytest.raises(ValueError, match=f"{name.partition(' ')[0]} must be"):
        NUMBERS[name](number)


def test_no_parameters_without_a_loss_win_a_fit():
    import optax

    def loss(params, key):
        return jnp.where(params > 0.5, jnp.nan, params) + 0 * jnp.sum(params)

    found, _ = learn.fit(loss, jnp.array(1.0), optax.sgd(-1.0), key=KEY, steps=3)
    assert found == 1.0  # all were NaN: the start is kept
    found, _ = learn.fit(
        lambda p, key: jnp.where(p == 1.0, jnp.nan, 0.0 * p) + (p - 2) ** 2,
        jnp.array(1.0), optax.sgd(0.1), key=KEY, steps=2,
    )  # fmt: skip
    assert np.isfinite(found)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 2e19, 1e30, 3e38])
def test_block_rotations_are_rotations_whatever_their_numbers(size):
    for kind, width in ((tf.Planar, 2), (tf.Rotor, 4), (tf.Quaternion, 4)):
        u = jnp.array([[0.5, -1.0, 0.25, 0.75], [1.0, 0.5, -0.5, 0.1]])[:, :width]
        got = jax.jit(lambda u, kind=kind: kind(u).matrix())(u * size)
        np.testing.assert_allclose(got, kind(u).matrix(), atol=1e-6)
    assert np.isnan(tf.Planar(jnp.array([[jnp.nan, 1.0]])).matrix()).all()


BIG = X.at[0, 0].set(3e38).at[0, 1].set(-2.9e38)


@pytest.mark.parametrize("rule", ["max", "mse", "percentile", "std"])
@pytest.mark.parametrize("levels", ["restricted", "zero_point", "affine"])
def test_finite_numbers_up_to_the_largest_keep_a_finite_range(rule, levels):
    make = q.absmax if levels == "restricted" else q.minmax
    for granularity in ("tensor", "token"):
        clip = 1.0 if rule == "std" else None
        quantizer = make(4, granularity, levels=levels, range_rule=rule, clip=clip)
        want = quantizer.roundtrip(BIG * 2.0**-20) * 2.0**20
        got = jax.jit(quantizer.roundtrip)(BIG)
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e33)


def test_metrics_hide_no_nan():
    spoilt = X.at[3, 2].set(jnp.nan)
    assert np.isnan(metrics.cosine(X, spoilt)) and np.isnan(metrics.nmse(X, spoilt))
    assert np.isnan(metrics.measure(X, spoilt, metrics.thresholds(X))["cosine"])
    assert np.isnan(metrics.quantile_threshold(spoilt, 0.9))
    by_channel = metrics.quantile_threshold(spoilt, 0.9, pooled=False)
    assert_array_equal(np.isnan(by_channel), np.arange(8) == 2)
    assert np.isnan(metrics.shannon_rate(jnp.array([1.0, jnp.nan]), 0.1))
    assert np.isnan(metrics.shannon_distortion(jnp.array([1.0, jnp.nan]), 1.0))


@pytest.mark.parametrize(
    "metric", [metrics.mse, metrics.nmse, metrics.relative_error, metrics.cosine,
               metrics.false_firings, metrics.missed_firings, metrics.firing_f1,
               lambda x, y: metrics.outlier_mse(x, y, 1.0),
               lambda x, y: metrics.noise_floor_mse(x, y, 1.0),
               lambda x, y: metrics.measure(x, y, metrics.thresholds(X))],
)  # fmt: skip
def test_metrics_refuse_other_shapes_and_empty_arrays(metric, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"x_hat must have the shape of x, \(64, 8\), got \(1, 8"):
        metric(X, X[:1])
    with pytest.raises(ValueError, match=r"x must not be empty, got shape \(0, 8\)"):
        metric(X[:0], X[:0])


EMPTY = X[:0]
EMPTIES = {
    "absmax": lambda: q.absmax(3).encode(EMPTY),
    "channel": lambda: q.minmax(3, "channel").encode(EMPTY),
    "nf4": lambda: q.nf4("tensor").encode(EMPTY),
    "token": lambda: q.absmax(3, "token").encode(X[:, :0]),
    "lloyd_max": lambda: q.lloyd_max_samples(EMPTY, 3),
    "lloyd_max_channels": lambda: q.lloyd_max_channels(EMPTY, 3),
    "ecsq": lambda: q.ecsq_for_rate(EMPTY, 3.0),
    "e8": lambda: q.e8_for_rate(EMPTY, 3.0),
    "pca": lambda: tf.pca(EMPTY),
    "gram": lambda: learn.gram(EMPTY),
    "rotation": lambda: learn.learned_rotation(KEY, EMPTY, steps=1),
    "minibatch": lambda: learn.minibatch(KEY, EMPTY, 3),
    "mass_diff": lambda: learn.mass_diff(EMPTY, 4),
    "recipe": lambda: Recipe.parse("standardize/absmax").fit(KEY, Samples(EMPTY), 3),
    "centre": lambda: Recipe.parse("centre@haar/absmax").fit(KEY, Samples(EMPTY), 3),
    "store": lambda: StoreRecipe.parse("haar/absmax").fit(KEY, jnp.zeros((1, 1, 0, 2, 8)), 3),
    "codes": lambda: metrics.code_entropy_bits(jnp.zeros((0, 8), jnp.int8)),
    "quantile": lambda: metrics.quantile_threshold(EMPTY, 0.5),
}


@pytest.mark.parametrize("make", EMPTIES.values(), ids=EMPTIES.keys())
def test_empty_arrays_and_samples_are_named(make):
    with pytest.raises(ValueError, match=r"(y|x|samples|codes) must .*\(.*0"):
        make()


def test_a_codec_refuses_levels_for_vectors_of_another_length():
    rows = jnp.zeros((128, 4)) + jnp.arange(4.0)
    x = jnp.ones((3, 64))
    for levels in (
        q.nearest_level(rows), q.mixed_codebook(rows, jnp.full(128, 2)), q.lloyd_max_sphere(3, 128),
        q.sparse(q.lloyd_max_sphere(3, 128), 0.1), q.unbiased(q.lloyd_max_sphere(3, 128)),
        q.lloyd_max_gaussian(3, 128, normalize="norm"), q.straight_through(q.nearest_level(rows)),
    ):  # fmt: skip
        codec = Codec(tf.haar(KEY, 64), levels)
        for verb in (codec.encode, codec.roundtrip, codec.store):
            with pytest.raises(
                ValueError, match="quantizer must be for vectors of length 64.*for 128"
            ):
                verb(x)
    padded = Codec(tf.from_name(KEY, "rotor", 64), q.lloyd_max_sphere(3, 64))
    assert padded.roundtrip(x).shape == x.shape


WHOLE = {
    "absmax": lambda bits: q.absmax(bits),
    "minmax": lambda bits: q.minmax(bits),
    "lloyd_max_gaussian": lambda bits: q.lloyd_max_gaussian(bits),
    "lloyd_max_sphere": lambda bits: q.lloyd_max_sphere(bits, 8),
    "lloyd_max_samples": lambda bits: q.lloyd_max_samples(X, bits),
    "lloyd_max_channels": lambda bits: q.lloyd_max_channels(X, bits),
    "pack_bits": lambda bits: q.pack_bits(jnp.zeros(8, jnp.uint8), bits),
    "d4": lambda bits: q.d4(1.0, bits),
    "fixed levels": lambda bits: Recipe.parse("nf4").fit(KEY, Samples(X), bits),
    "levels": lambda bits: Recipe.parse("absmax").fit(KEY, Samples(X), bits),
}


@pytest.mark.parametrize("bits", [3.0, True, float("nan")])
@pytest.mark.parametrize("make", WHOLE.values(), ids=WHOLE.keys())
def test_bits_are_whole_numbers(make, bits, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=f"(bits|width)[^;]* must be one of .*got {bits}"):
        make(bits)


def test_bits_may_be_integers_of_numpy(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    assert q.absmax(np.int64(3)).bits == 3


def test_blocks_far_beyond_the_vector_are_refused_at_once():
    with pytest.raises(ValueError, match="block must be at most twice the length 8"):
        tf.from_name(KEY, "block_hadamard:1000000000", 8)
    assert tf.from_name(KEY, "block_hadamard:16", 10).out_dim == 16
    assert tf.admissible_blocks(24) == (24, 12, 8, 4, 2, 1)
    with pytest.raises(ValueError, match="block must be one of"):
        tf.block_hadamard(KEY, 10**9, 10**8 + 1)


def test_gptq_refuses_what_rounds_numbers_together():
    for lattice in (q.d4(0.1), q.d4(0.1, 4), q.e8(0.1), q.straight_through(q.e8(0.1, 4))):
        with pytest.raises(
            ValueError, match="must round each element independently, got .*together"
        ):
            learn.gptq(W, H, lattice)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int16, jnp.int32])
def test_bits_of_any_integers_give_the_same_codes(dtype):
    x = jax.random.normal(KEY, (60, 8))
    bits = np.resize([8, 3, 0, 5], 8)
    given = jnp.asarray(bits, dtype)
    values = jax.random.randint(KEY, (7, 8), 0, 256).astype(jnp.uint8) & ((1 << bits) - 1)
    values = values.astype(jnp.uint8)
    size = -(-int(bits.sum()) // 8)
    assert_array_equal(q.unpack_mixed(q.pack_mixed(values, given, size), given), values)
    want = q.lloyd_max_channels(x, bits, steps=3)
    for made in (
        q.lloyd_max_channels(x, given, steps=3),
        jax.jit(lambda b: q.lloyd_max_channels(x, b, total_bytes=size, steps=3))(given),
        q.mixed_codebook(want.levels, given),
    ):
        np.testing.assert_allclose(made.levels, want.levels, rtol=1e-5)
        assert_array_equal(made.unpack(made.pack(made.encode(x))).values, made.encode(x).values)
    with pytest.raises(ValueError, match="bits must be integers, got dtype float32"):
        q.mixed_codebook(want.levels, given.astype(jnp.float32))


def test_entropy_of_codes_in_bytes_is_that_of_integers():
    codes = jax.random.randint(KEY, (200, 4), -100, 100)
    for seen in (codes, codes.astype(jnp.int8)):
        got = metrics.cross_entropy_bits(seen, codes[::-1])
        np.testing.assert_allclose(got, metrics.cross_entropy_bits(codes, codes), rtol=1e-6)
