"""Every member where JAX is strict: no dtype or rank is promoted, no NaN made, and in x64."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import KEY, KEYS, quick_jit, vectors
from small_models import random_tokens, small_model
from test_bad_numbers import CODED, ORDERS, SHORT
from test_codec import STORED as CODECS
from test_kvcache import FREQUENCY, STORES, VALUES, K, Q, V, cache_of
from test_lattice import MEMBERS as LATTICES
from test_metrics import METRICS, X_HAT
from test_metrics import X as WIDE
from test_packing import MEMBERS as PACKED
from test_quantizers import MEMBERS, Y
from test_unbiased import INNERS
from transform_members import DRAWN, ISOMETRIES, OTHERS

from isojax import Codec, learn, metrics
from isojax import quantizers as q
from isojax import transforms as tf
from isojax.codec import qjl
from isojax.models import token_nll
from isojax.quantize import calibrate, find_plan, quantize, score
from isojax.recipes import COORDINATES, LEVELS, Recipe, Samples


@contextlib.contextmanager
def strict():
    """What JAX refuses here, it converts or broadcasts in silence by default."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def table(members):
    return pytest.mark.parametrize("member", members.values(), ids=members.keys())


def turns(make, x):
    """All that a transform does."""
    t = make(KEY)
    both = jax.vmap(make)(KEYS)
    return (
        t.inverse.apply(t.apply(x.astype(jnp.bfloat16))),
        t.dual.apply(x.reshape(2, 2, -1)),
        t.T.matrix(),
        jax.vmap(lambda t, x: t.apply(x[0]))(both, jnp.stack([x, x])),
    )


def codes(quantizer, y):
    """All that a quantizer does."""
    codes = quantizer.encode(y)
    whole = jnp.issubdtype(codes.values.dtype, jnp.integer)
    like = codes if codes.bits is None else quantizer.encode_rounded(y)
    return (
        quantizer.decode(quantizer.encode_like(y, codes)),
        quantizer.roundtrip(y.astype(jnp.bfloat16)),
        None if codes.bits is None else quantizer.decode(quantizer.unpack(quantizer.pack(like))),
        q.rate_bits(codes, "entropy", per="channel") if whole else None,
    )


def entropy(quantizer, y):
    """What is read of the codes alone."""
    codes = quantizer.encode(y)
    whole = jnp.issubdtype(codes.values.dtype, jnp.integer)
    return quantizer.decode(codes), q.rate_bits(codes, "entropy") if whole else None


def attend(kept, values, rotated):
    """A prompt and one token through a layer of the cache."""
    layer, outs = jax.tree.map(lambda a: a[0], cache_of(kept, values, rotated).layers), []
    for here in (slice(0, 10), slice(10, 11)):
        start = jnp.asarray(here.start)
        layer, out = layer.attend(Q[:, here], K[:, here], V[:, here], start, FREQUENCY)
        outs.append(out)
    return jnp.concatenate(outs, axis=1)


def fitted(text):
    """A recipe fitted and used; on 32 channels, which all formats divide."""
    recipe = Recipe.parse(text)
    allowed = LEVELS.members[recipe.levels.member.name].facts.get("bits", (2.0,))
    bits = 3 if not allowed or 3 in allowed else allowed[0]

    def fit(x, metric, weight):
        samples = Samples(
            x,
            metric,
            weight,
            learned=jnp.eye(32, dtype=x.dtype),
            learned_scale=jnp.ones(32, x.dtype),
        )
        return recipe.fit(KEY, samples, bits).roundtrip(x)

    return fit


X = jax.random.normal(KEY, (64, 32)) * jnp.linspace(0.5, 2, 32)
PLACE = X, learn.second_moment(X[::2]), X[:5].T
CACHES = {"plain": (None, None, False)}
for name, make in STORES.items():
    values = make() if name in VALUES else None
    CACHES[name] = make(), values, False
    if name in ("padded", "centred", "deferred", "pages, recent"):
        CACHES[f"rotated, {name}"] = make(), values, True
QUANTIZERS = {f"{name}-": (m, Y) for name, m in (MEMBERS | PACKED).items()}
QUANTIZERS |= {name: (m, Y[:, :24]) for name, m in LATTICES.items()}
QUANTIZERS |= {f"unbiased-{name}": (q.unbiased(m), Y) for name, m in INNERS.items()}
BLOCK = {"block_hadamard": ":4", "cat": ":8", "wush": ":8"}
ENDS = SHORT | ORDERS | BLOCK
FITS = ["centre@pca/none", "identity/lloyd_max@sparse", "identity/lloyd_max@unbiased"]
FITS += [f"{name}{ENDS.get(name, '')}/absmax" for name in COORDINATES.members]
FITS += [f"identity/{name}" for name in sorted({*LEVELS.members, *CODED})]
VARIANCES = jnp.var(WIDE, 0)
WHOLE = jnp.round(WIDE).astype(jnp.int32)
ATTENTION = Q[0], K[0], V[0], jnp.round(K[0]), jnp.round(V[0])
MEASURES = {name: (f, WIDE, X_HAT) for name, f in METRICS.items()} | {
    "measure": (lambda x, h: metrics.measure(x, h, metrics.thresholds(x, unit="rms")), WIDE, X_HAT),
    "apart": (lambda x, h: metrics.measure(x, h, metrics.thresholds(x, pooled=False)), WIDE, X_HAT),
    "attention_errors": (metrics.attention_errors, *ATTENTION),
    "cross_entropy_bits": (metrics.cross_entropy_bits, WHOLE, WHOLE[:20]),
    "sqnr_db": (metrics.sqnr_db, WIDE, X_HAT),
    "alignment_db": (metrics.alignment_db, WIDE, WIDE[:9].T),
    "concentration_db": (lambda x: metrics.concentration_db(x, 8), WIDE),
    "expected_sqnr_db": (metrics.expected_sqnr_db, WIDE, WIDE[:9].T),
    "coding_gain_db": (metrics.coding_gain_db, VARIANCES),
    "gaussian_entropy_bits": (metrics.gaussian_entropy_bits, VARIANCES),
    "differential_entropy_bits": (
        lambda x: metrics.differential_entropy_bits(x, "channel"), WIDE,
    ),
    "shannon_distortion": (lambda v: metrics.shannon_distortion(v, 2.0), VARIANCES),
    "shannon_rate": (lambda v: metrics.shannon_rate(v, 0.1), VARIANCES),
    "distance_to_shannon_db": (lambda v: metrics.distance_to_shannon_db(0.1, 2.0, v), VARIANCES),
    "allocate_bits": (lambda v: metrics.allocate_bits(v, 2), VARIANCES),
    "block_mass": (lambda x: metrics.block_mass(x, 8), WIDE),
    "mass_concentration": (lambda x: metrics.mass_concentration(x, 8), WIDE),
    "mass_imbalance": (lambda x: metrics.mass_imbalance(x, 8), WIDE),
    "rotation_bound": (lambda x: metrics.rotation_bound(x, 8), WIDE),
    "suppressed": (lambda x: metrics.suppressed(x, 8), WIDE),
    "expected_peak": (lambda x: metrics.expected_peak(x, 8), WIDE),
}  # fmt: skip
GROUPS = q.minmax(3, "group", 4)
LEARNED = {
    "gptq": lambda x, s, w: learn.gptq(w, s, q.absmax(3, "token")),
    "gptq-act_order": lambda x, s, w: learn.gptq(w, s, GROUPS, act_order=True),
    "gptq-groups": lambda x, s, w: learn.gptq(w, s, GROUPS, static_groups=False),
    "smooth": lambda x, s, w: learn.smooth(learn.smooth_scale(x[0], [w]), x, w),
    "log_variance": lambda x, s, w: learn.log_variance(tf.haar(KEY, 32), x),
    "kurtosis_loss": lambda x, s, w: learn.kurtosis_loss(tf.haar(KEY, 32), x),
    "quantization_error": lambda x, s, w: learn.quantization_error(
        tf.haar(KEY, 32), x, q.absmax(3, "token"), s
    ),
}
MODEL, TOKENS = small_model(num_hidden_layers=1), random_tokens(2, 12)
PLAN = (
    "residual: hadamard; input: smooth@hadamard/absmax bits=4; weight: minmax:group:8 bits=4; "
    "cache: haar/lloyd_max bits=3 sinks=2"
)


def wide(a):
    return a.astype(jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a


@table(ISOMETRIES | OTHERS)
def test_transforms_convert_and_broadcast_nothing_in_silence(member):
    x = jnp.asarray(vectors(jax.eval_shape(member, KEY).dim, 4))
    with strict():
        jax.eval_shape(lambda x: turns(member, x), x)


@table(QUANTIZERS)
def test_quantizers_convert_and_broadcast_nothing_in_silence(member):
    with strict():
        jax.eval_shape(lambda y: codes(member[0], y), member[1])


@pytest.mark.parametrize("text", FITS)
def test_fits_convert_and_broadcast_nothing_in_silence(text):
    with strict():
        jax.eval_shape(fitted(text), *PLACE)


@table(MEASURES)
def test_metrics_convert_and_broadcast_nothing_in_silence(member):
    with strict():
        jax.eval_shape(*member)


@table(LEARNED)
def test_learning_converts_and_broadcasts_nothing_in_silence(member):
    with strict():
        jax.eval_shape(member, *PLACE)


@table(CODECS)
def test_codecs_convert_and_broadcast_nothing_in_silence(member):
    def both(codec, x):
        return codec.load(codec.store(x)), codec.scores(x, codec.store(x))

    x = jnp.asarray(vectors(16, 6))
    codec = Codec(tf.haar(KEY, 16), member, x[0], jnp.exp(x[1]))
    with strict():
        jax.eval_shape(both, codec, x)
        sketched = qjl(KEY, Codec(tf.haar(KEY, 16), q.lloyd_max_sphere(2, 16)))
        jax.eval_shape(lambda x: sketched.inner(x, sketched.store(x)), x)


@table(CACHES)
def test_caches_convert_and_broadcast_nothing_in_silence(member):
    with strict():
        jax.eval_shape(lambda: attend(*member))


def test_a_quantized_model_converts_and_broadcasts_nothing_in_silence():
    plan = find_plan(PLAN)
    with strict():
        jax.eval_shape(lambda p: token_nll(p, MODEL.config, jnp.asarray(TOKENS)), MODEL.params)
        made = quantize(KEY, MODEL, plan, calibrate(MODEL, TOKENS, plan))
        assert np.isfinite(score(made, TOKENS).nll).all()


# Checks for NaN look at each operation where nothing is compiled, which takes its time.
@pytest.mark.parametrize("name", ["planar-24", "quaternion_full-24", "rotor-24", "cayley-6"])
def test_transforms_make_no_nan(name):
    t = ISOMETRIES[name](KEY)
    x = jnp.asarray(vectors(t.dim, 4)).at[0].set(0)
    with jax.debug_nans(True):
        t.inverse.apply(t.apply(x))


@table(MEMBERS)
def test_quantizers_make_no_nan(member):
    with jax.debug_nans(True):
        entropy(member, Y.at[0].set(0))


@pytest.mark.parametrize("name", ["aligned", "standardize", "smooth", "balance", "awq", "wush"])
def test_fits_make_no_nan(name):
    x, metric, weight = PLACE
    with jax.debug_nans(True):
        fitted(f"{name}/none")(x.at[:, 3].set(0), metric, weight.at[5].set(0))


@table(MEASURES)
def test_metrics_make_no_nan(member):
    with jax.debug_nans(True):
        member[0](*member[1:])


@table(ISOMETRIES | OTHERS)
def test_transforms_keep_the_dtype_in_x64(member):
    def there_and_back(key, x):
        t = member(key)
        return t.dual.T.apply(t.apply(x))

    with jax.enable_x64(True):
        x = jnp.asarray(vectors(jax.eval_shape(member, KEY).dim, 4))
        for given in (x, wide(x)):
            found = jax.eval_shape(there_and_back, KEY, given)
            assert found.dtype == given.dtype


def test_in_x64_what_is_stored_as_a_matrix_is_orthogonal_to_fp32_and_the_rest_to_fp64():
    dense = {"haar", "pca", "low_rank"}
    made = {name: Recipe.parse(name).fit(KEY, Samples(X), 3).transform for name in (*DRAWN, *dense)}
    back = quick_jit(lambda made, x: {n: t.inverse.apply(t.apply(x)) for n, t in made.items()})
    with jax.enable_x64(True):
        x = wide(X)
        for name, found in back(made, x).items():
            error = float(jnp.abs(found - x).max())
            assert (1e-9 < error < 1e-5) if name in dense else error < 1e-13, name


@table(QUANTIZERS)
def test_quantizers_keep_the_dtype_in_x64(member):
    with jax.enable_x64(True):
        for quantizer, y in (member, jax.tree.map(wide, member)):
            assert jax.eval_shape(quantizer.roundtrip, y).dtype == y.dtype


@pytest.mark.parametrize("text", FITS)
def test_fits_keep_fp64(text):
    with jax.enable_x64(True):
        found = jax.eval_shape(fitted(text), *jax.tree.map(wide, PLACE))
        assert found.dtype == jnp.float64


@table(MEASURES)
def test_metrics_keep_fp64(member):
    measure, *arrays = member
    with jax.enable_x64(True):
        for found in jax.tree.leaves(jax.eval_shape(measure, *map(wide, arrays))):
            assert found.dtype == jnp.float64 or not jnp.issubdtype(found.dtype, jnp.floating)


@pytest.mark.parametrize("name", ["centred", "rotated, padded"])
def test_caches_read_fp32_in_x64(name):
    with jax.enable_x64(True):
        assert jax.eval_shape(lambda: attend(*CACHES[name])).dtype == jnp.float32
