"""The packed cache: what attention reads from it, against a plain reading of its rules."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from numpy.testing import assert_allclose

from isojax import transforms
from isojax.codec import Codec
from isojax.kvcache import LayerCache, apply_rope, causal_attention, new_cache, store
from isojax.quantizers import fp8, lloyd_max_sphere, minmax, mxfp4, none, nvfp4, zero

pytestmark = pytest.mark.slow

HEADS, GROUPS, DIM, TOKENS = 4, 2, 16, 23
FREQUENCY = 1000.0 ** (-jnp.arange(DIM // 2) / (DIM // 2))
Q, K, V = (
    jnp.asarray(np.random.default_rng(i).standard_normal((2, TOKENS, h, DIM)), jnp.float32)
    for i, h in enumerate((HEADS, GROUPS, GROUPS))
)
K = K + 5.0 * (jnp.arange(DIM) == 3)  # a channel with an offset


@functools.cache
def codec(name, bits=3, seed=0):
    """Codecs of one layer, one a head: leaves lead with [1, GROUPS]."""

    def make(key):
        if name == "per_channel":
            return Codec(transforms.identity(DIM), minmax(bits, "channel", levels="affine"))
        if name == "oblique":
            entries = transforms.haar(key, DIM).matrix() * jnp.linspace(0.5, 2, DIM)
            t = transforms.Oblique(entries, jnp.linalg.inv(entries))
        else:
            t = transforms.from_name(key, name, DIM)
        shift, stretch = jax.random.normal(key, (2, DIM)) * 0.1
        return Codec(t, lloyd_max_sphere(bits, DIM), shift, jnp.exp(stretch))

    return jax.jit(jax.vmap(jax.vmap(make)))(jax.random.split(jax.random.key(seed), (1, GROUPS)))


MEAN = K.mean((0, 1))[None]
STORES = {
    "quaternion": lambda: store(codec("quaternion_full"), dtype="float32"),
    "padded": lambda: store(codec("rotor"), dtype="float32"),
    "oblique": lambda: store(codec("oblique"), dtype="float32"),
    "centred": lambda: store(codec("haar"), mean=MEAN, sinks=2, dtype="float32"),
    "recent": lambda: store(codec("haar"), mean=MEAN, sinks=1, recent=3, dtype="float32"),
    "before": lambda: store(codec("haar"), mean=MEAN, rope="before", recent=2, dtype="float32"),
    "pages": lambda: store(codec("per_channel"), page=4, dtype="float32"),
    "pages, recent": lambda: store(
        codec("per_channel"), page=4, recent=6, sinks=3, dtype="float32"
    ),
    "deferred": lambda: store(codec("haar"), page=1, recent=2, deferred=True, dtype="float32"),
}
VALUES = {name for name in STORES if name not in ("centred", "recent", "before")}


def cache_of(keys, values=None, rotated=False, slots=TOKENS + 2):
    return new_cache(
        layers=1, batch=2, slots=slots, kv_heads=GROUPS, head_dim=DIM,
        keys=keys, values=values, rotated=rotated,
    )  # fmt: skip


@jax.jit
def attend(layer: LayerCache, q, k, v, start):
    return layer.attend(q, k, v, start, FREQUENCY)


def read(cache, steps):
    """What the queries read when tokens come in `steps`."""
    layer = jax.tree.map(lambda a: a[0], cache.layers)
    start, outputs = 0, []
    for step in steps:
        here = slice(start, start + step)
        layer, out = attend(layer, Q[:, here], K[:, here], V[:, here], jnp.asarray(start))
        outputs.append(out)
        start += step
    return np.concatenate(outputs, axis=1)


@jax.jit
def through_bytes(codec, pages):
    """[texts, pages, page, heads, dim] by the codec alone."""
    one = jax.vmap(jax.vmap(lambda c, x: c.load(c.store(x)), (None, 0)), (None, 0))
    return jax.vmap(one, (0, 3), 3)(codec, pages)


def stored(kept, x, is_key):
    """What comes back of all tokens, page by page, by the codec alone."""
    one = jax.tree.map(lambda a: a[0], kept)
    positions = jnp.arange(TOKENS)
    mean = jnp.zeros((TOKENS, GROUPS, DIM))
    if is_key and kept.rope == "before":
        x = apply_rope(x, -positions, FREQUENCY)
    if one.mean is not None:
        mean = mean + one.mean
        mean = mean if kept.rope == "before" else apply_rope(mean, positions, FREQUENCY)
    whole = TOKENS // kept.page * kept.page
    pages = (x - mean)[:, :whole].reshape(2, -1, kept.page, GROUPS, DIM)
    x_hat = x.at[:, :whole].set(through_bytes(one.codec, pages).reshape(2, whole, GROUPS, DIM))
    x_hat = x_hat.at[:, :whole].add(mean[:whole])
    return apply_rope(x_hat, positions, FREQUENCY) if is_key and kept.rope == "before" else x_hat


def expected(keys, values, steps):
    """Attention of each query on its own, by the rules in the docstring of `store`."""
    sides = []
    for x, kept, is_key in ((K, keys, True), (V, values, False)):
        coded = None if kept is None else np.asarray(stored(kept, x, is_key))
        sides.append((np.asarray(x), coded, kept))
    begins = np.repeat(np.cumsum([0, *steps[:-1]]), steps)
    q = np.asarray(Q)
    rows = []
    for p in range(TOKENS):
        seen = []
        for exact, coded, kept in sides:
            if kept is None:
                seen.append(exact)
                continue
            asking, j = (begins[p] - 1 if kept.deferred else p), np.arange(TOKENS)
            full = (asking + 1) // kept.page * kept.page
            fresh = (j < kept.sinks) | (j > asking - kept.recent) | (j >= full)
            seen.append(np.where(fresh[:, None, None], exact, coded))
        k, v = (np.repeat(s[:, : p + 1], HEADS // GROUPS, axis=2) for s in seen)
        logits = np.einsum("bhd,bshd->bhs", q[:, p], k) / np.sqrt(DIM)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        rows.append(np.einsum("bhs,bshd->bhd", weights, v).reshape(2, 1, -1))
    return np.concatenate(rows, axis=1)


STEPS = (11, 1, 11)  # a first text, one token, and more
PLAIN = ("quaternion", "padded", "oblique")  # no rule of theirs depends on how tokens come


@pytest.mark.parametrize(
    "name, steps",
    [(name, STEPS) for name in STORES]
    + [(name, (TOKENS,)) for name in STORES if name not in PLAIN],
    ids=str,
)
def test_queries_read_what_the_rules_say(name, steps):
    keys = STORES[name]()
    values = keys if name in VALUES else None
    got = read(cache_of(keys, values), steps)
    assert_allclose(got, expected(keys, values, steps), atol=2e-5)


@pytest.mark.parametrize("name", [n for n in STORES if n != "before"])
def test_attention_in_rotated_space_is_the_same(name):
    keys, values = STORES[name](), STORES["quaternion"]()
    rotated = read(cache_of(keys, values, rotated=True), STEPS)
    assert_allclose(rotated, expected(keys, values, STEPS), atol=2e-5)
    other = store(codec("quaternion_full", seed=1), dtype="float32")
    moved = read(cache_of(keys, other, rotated=True), STEPS)
    assert np.abs(moved - rotated).max() > 1e-3  # the values' codec is really read


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("name", ["recent", "pages, recent", "deferred"])
def test_a_bf16_model_reads_the_same_to_its_precision(name, rotated):
    kept = STORES[name]()
    cache = cache_of(kept, STORES["pages, recent"](), rotated)
    layer = jax.tree.map(lambda a: a[0], cache.layers)
    want = attend(layer, Q, K, V, jnp.asarray(0))[1]
    half = [x.astype(jnp.bfloat16) for x in (Q, K, V)]
    got = attend(layer, *half, jnp.asarray(0))[1]
    assert got.dtype == jnp.bfloat16
    assert np.sqrt(np.mean(np.square(np.asarray(got, np.float32) - want))) < 0.1


def test_one_token_at_a_time_equals_the_whole_text_at_once():
    keys, values = STORES["recent"](), STORES["pages, recent"]()
    whole, single = (read(cache_of(keys, values), s) for s in [(TOKENS,), (1,) * TOKENS])
    assert_allclose(single, whole, atol=2e-5)


def test_a_plain_cache_is_plain_attention():
    assert_allclose(read(cache_of(None), (9, 14)), causal_attention(Q, K, V), atol=1e-5)


def test_what_does_not_fit_is_nan_and_no_sooner():
    keys = STORES["quaternion"]()
    out = read(cache_of(keys, keys, slots=TOKENS - 1), (TOKENS - 1, 1))
    assert np.isfinite(out[:, :-1]).all()
    assert np.isnan(out[:, -1]).all()


def test_a_nan_in_one_text_stays_there_and_zeros_stay_zero():
    kept = store(codec("haar"), dtype="float32")
    layer = jax.tree.map(lambda a: a[0], cache_of(kept, kept).layers)
    k = K.at[0, 4, 0, 0].set(jnp.nan)
    _, out = attend(layer, Q, k, V, jnp.asarray(0))
    assert np.isnan(out[0, 4:, : DIM * HEADS // GROUPS]).all()
    assert np.isfinite(out[0, :4]).all()
    assert np.isfinite(out[1]).all()
    plain = jax.vmap(
        jax.vmap(lambda key: Codec(transforms.haar(key, DIM), lloyd_max_sphere(3, DIM)))
    )
    zero = store(plain(jax.random.split(jax.random.key(1), (1, GROUPS))))
    layer = jax.tree.map(lambda a: a[0], cache_of(zero, zero).layers)
    _, out = attend(layer, Q, 0 * K, 0 * V, jnp.asarray(0))
    assert (np.asarray(out) == 0).all()


def test_three_bit_keys_and_values_take_a_fifth_of_fp16():
    def make(key):
        return Codec(transforms.quaternion(key, 128), lloyd_max_sphere(3, 128))

    kept = store(jax.vmap(jax.vmap(make))(jax.random.split(jax.random.key(0), (2, 3))))
    shape = {"layers": 2, "batch": 1, "slots": 8192, "kv_heads": 3, "head_dim": 128}
    packed, plain = new_cache(keys=kept, values=kept, **shape), new_cache(dtype="float16", **shape)
    assert plain.nbytes == 2 * 2 * 8192 * 3 * 128 * 2
    assert packed.nbytes / plain.nbytes == pytest.approx((3 * 128 / 8 + 2) / 256)
    assert packed.side_bytes == 2 * 2 * 3 * 4 * (2 * 128 + 8)


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("head_dim=16", lambda: cache_of(store(jax.vmap(jax.vmap(lambda key: Codec(
            transforms.haar(key, 8), lloyd_max_sphere(3, 8)
        )))(jax.random.split(jax.random.key(0), (1, GROUPS)))))),
        ("layers, kv_heads", lambda: cache_of(store(Codec(
            transforms.haar(jax.random.key(0), DIM), lloyd_max_sphere(3, DIM)
        )))),
        ("rotated", lambda: cache_of(STORES["before"](), rotated=True)),
        ("values", lambda: cache_of(None, STORES["centred"]())),
        ("slots", lambda: cache_of(None, slots=0)),
        ("sinks", lambda: cache_of(store(codec("haar"), sinks=9), slots=8)),
        ("rope", lambda: store(codec("haar"), rope="during")),
        ("page", lambda: store(codec("haar"), page=0)),
        ("recent", lambda: store(codec("haar"), recent=-1)),
        ("scale_dtype", lambda: store(codec("haar"), scale_dtype="int8")),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_what_makes_no_sense_is_refused(message, make):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [mxfp4, nvfp4, zero, lambda: fp8("e4m3", "token")])
@pytest.mark.parametrize("rotated", [False, True])
def test_codecs_without_leaves_are_stored(make, rotated):
    quantizer = make()
    kept = store(Codec(transforms.identity(32), quantizer))
    cache = new_cache(
        layers=3, batch=2, slots=8, kv_heads=2, head_dim=32, keys=kept, values=kept, rotated=rotated
    ).unstack()
    k, v = jax.random.normal(jax.random.key(0), (2, 2, 5, 2, 32))
    q, frequency = jax.random.normal(jax.random.key(1), (2, 5, 4, 32)), jnp.ones(16)
    layer, got = cache.layers[1].attend(q, k, v, jnp.array(0), frequency)
    # each token by itself, as the cache stores it
    read = lambda x: quantizer.decode(quantizer.unpack(quantizer.pack(  # noqa: E731
        quantizer.encode_rounded(x[None]))))[0]  # fmt: skip
    k, v = (jnp.apply_along_axis(read, -1, x) for x in (k, v))
    assert_allclose(got, causal_attention(q, k, v), atol=2e-5)
    assert len(cache.layers) == 3 and layer.keys.nbytes == layer.values.nbytes


def test_unbounded_codes_cannot_be_stored():
    kept = store(Codec(transforms.identity(32), none()))
    with pytest.raises(ValueError, match="codes must have a number of bits to be packed"):
        new_cache(layers=1, batch=1, slots=8, kv_heads=2, head_dim=32, keys=kept)


@pytest.mark.parametrize("packed", [False, True])
def test_keys_of_another_model_or_too_many_are_refused(packed, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    kept = store(codec("haar")) if packed else None
    layer = cache_of(kept, kept, slots=8).unstack().layers[0]
    start = jnp.array(0)
    layer.attend(Q[:, :8], K[:, :8], V[:, :8], start, FREQUENCY)
    for what, k in (
        ("heads", jnp.repeat(K[:, :8], 2, axis=2)), ("texts", K[:1, :8]),
        ("elements", K[:, :8, :, :8]), ("tokens", K[:, :9]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"k must be of .*{what}.*got shape"):
            layer.attend(Q[: len(k), : k.shape[1]], k, k, start, FREQUENCY)


@pytest.mark.parametrize("unstacked", [False, True])
def test_a_cache_with_one_codec_for_both_sides_can_be_donated(unstacked):
    kept = store(codec("haar"), dtype="float32")
    cache = cache_of(kept, kept)
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(cache) if leaf.size]
    assert len(set(buffers)) == len(buffers)
    cache = cache.unstack() if unstacked else cache
    appended = jax.jit(
        lambda cache: dataclasses.replace(cache, length=cache.length + 1), donate_argnums=0
    )
    assert int(appended(cache).length) == 1
    assert not kept.codec.transform.entries.is_deleted()
