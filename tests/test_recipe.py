"""Recipes of the cache against an oracle in numpy and torch, written from their description."""

import dataclasses
import functools
import importlib.resources
import operator

import jax
import jax.numpy as jnp
import kv_oracle as oracle
import numpy as np
import pytest
import scipy.linalg

from experiments.kv_cache.methods import METHODS, recipes
from isojax.data import load_text
from isojax.kvcache import PackedSide
from isojax.kvcache.recipe import StoreRecipe
from isojax.models import empty_cache, encode, forward, load_model, token_nll
from isojax.models.hooks import Site
from isojax.models.rope import rope_frequencies

pytestmark = pytest.mark.slow

LAYERS, TEXTS, TOKENS, HEADS, DIM, THETA = 2, 3, 24, 2, 16, 1000.0
FREQUENCY = rope_frequencies(DIM, THETA)
RNG = np.random.default_rng(0)


def keys_like(texts):
    """Keys with a bias before the rotary embedding, and uneven channels."""
    shape = (LAYERS, texts, TOKENS, HEADS, DIM)
    x = RNG.standard_normal(shape) * np.geomspace(0.2, 3, DIM) + 6 * (np.arange(DIM) == 5)
    x = oracle.rotary(np.moveaxis(x, 2, 3), THETA)
    return jnp.asarray(np.moveaxis(x, 3, 2), jnp.float32)


CALIBRATION, TEXT = keys_like(TEXTS), keys_like(1)
VALUES = ("kivi", "haar+pre", "pca+pre")
KEYS = (
    *VALUES, "kivi+sparse", "minmax", "haar+scale", "rotor", "identity", "pca+before",
    "pca+gaussian", "quaternion_full+pre+mass_diff", "learned+pre+sinks",
    "kvtc-like", "gtq-like",
    *(n for n in METHODS if n.startswith("haar") and n not in VALUES and "sinks" not in n),
)  # fmt: skip
RECIPES = {f"K {n}": ("K", recipes(n)[0]) for n in KEYS}
RECIPES |= {f"V {n}": ("V", recipes(n)[1]) for n in VALUES}
ALIGNED_NAMES = (
    "aligned", "aligned-centre", "aligned-metric", "aligned-bits", "aligned-gain", "aligned+half",
    "smaq-like",
)  # fmt: skip
RECIPES |= {
    f"{side} {n}": (side, dataclasses.replace(recipes(n)["KV".index(side)], sinks=2))
    for side, names in {"K": (*ALIGNED_NAMES, "haar+pre+sinks"), "V": ("aligned",)}.items()
    for n in names
}
UNBIASED = {"K": ("haar+pre", "haar+fitted", "aligned"), "V": ("haar+pre",)}
RECIPES |= {
    f"{side} {n} unbiased": (side, StoreRecipe.parse(str(recipe).replace(" ", "@unbiased ", 1)))
    for side, names in UNBIASED.items()
    for n in names
    for recipe in [RECIPES[f"{side} {n}"][1]]
}
QUERIES = RNG.standard_normal((LAYERS, HEADS, 200, DIM)) * np.geomspace(4, 0.1, DIM)
METRIC = jnp.asarray(np.einsum("lgni,lgnj->lgij", QUERIES, QUERIES) / 200, jnp.float32)
MANY = keys_like(45)  # enough for the fits of levels to have one optimum


def at(tree, *index):
    return jax.tree.map(lambda a: a[index], tree)


def inner(codec):
    """The quantizer that has the levels."""
    return getattr(codec.quantizer, "inner", codec.quantizer)


def words(recipe, codec, samples, metric=None, theta=None):
    """What the oracle takes: settings, axes and levels; aligned axes are its own, to a sign."""
    own, stages = recipe.words, recipe.recipe.coordinates.stages
    known = {name: own[name] for name in ("offset", "rope", "page", "sinks")} | {"theta": theta}
    if theta is None:
        known["rope"] = "after"
    if own["quantizer"] == "minmax":
        known["codebook"] = "minmax" + "_channel" * (own["granularity"] == "channel")
        known["sparse"] = own.get("sparse", 0.0)
    else:
        known["codebook"] = own["codebook"]
        known["gain"] = "unbiased" if "unbiased" in own else own["gain"]
    if "fitted" in known["codebook"]:
        known["levels"] = np.asarray(inner(codec).levels, float)
    transform = codec.transform
    if stages and stages[0].name == "standardize":
        known["scale"] = "channel"
        transform = functools.reduce(operator.matmul, transform.factors[1:])
    matrix = np.asarray(transform.matrix(), float)
    if not stages or stages[0].name != "aligned":
        return known | {"matrix": matrix}
    aligned = stages[0].arguments
    placed = {name: known[name] for name in ("offset", "rope", "theta", "sinks")}
    x, _ = oracle.centre(samples, **placed)
    if aligned["spectrum"] == "log":
        metric = np.asarray(metric, float)
        metric = scipy.linalg.logm(np.eye(DIM) + metric / (np.trace(metric) / DIM)).real
    turn, back = oracle.aligned_axes(x, metric, aligned["power"])
    sign = np.sign(np.sum(turn * matrix, axis=0))
    return known | {"matrix": turn * sign, "inverse": sign[:, None] * back}


@jax.jit
def reread(store, x, frequency):
    """[layers, tokens, heads, dim] from codes."""

    def layer(store, x):
        side = PackedSide.empty(dataclasses.replace(store, recent=0), 1, *x.shape)
        return side.update(x[None], 0, frequency, rotated=False)[1].tokens(len(x) - 1)

    return jax.vmap(layer)(store, x)


fit = jax.jit(StoreRecipe.fit, static_argnums=(0, 3))


@pytest.mark.parametrize("name", RECIPES)
def test_what_comes_back_is_what_the_oracle_makes(name):
    side, recipe = RECIPES[name]
    recipe = dataclasses.replace(recipe, page=8 if recipe.page > 1 else 1)
    frequency, theta = (FREQUENCY, THETA) if side == "K" else (None, None)
    store = fit(recipe, jax.random.key(1), CALIBRATION, 3, frequency, METRIC)
    got = np.asarray(reread(store, TEXT[:, 0], frequency))
    for layer in range(LAYERS):
        for head in range(HEADS):
            codec, samples = at(store.codec, layer, head), CALIBRATION[layer, :, :, head]
            known = words(recipe, codec, samples, METRIC[layer, head], theta)
            want = oracle.reconstruct(TEXT[layer, 0, :, head], samples, bits=3, **known)
            out, n = got[layer, :, head], recipe.sinks
            assert np.abs(out[:n] - want[:n]).max(initial=0) < 1e-5 * np.abs(want).max()
            error = np.abs(out - want)[n:].max(-1) / np.abs(want).max()
            # in fp32 a number may fall on the other side of a border
            assert np.mean(error < 1e-4) >= 0.9, f"{layer} {head} {np.sort(error)[::-1]}"
            assert np.mean(error**2) ** 0.5 < 0.055  # one such number can make 0.051


def distortion(column, levels):
    return np.mean((column - oracle.nearest(column, levels)) ** 2)


@pytest.mark.parametrize("codebook", ["fitted", "fitted_channel"])
def test_fitted_levels_are_as_good_as_the_oracle_s(codebook):
    recipe = StoreRecipe.parse(f"haar/lloyd_max:{codebook}")
    store = fit(recipe, jax.random.key(1), CALIBRATION, 2, FREQUENCY)
    codec = at(store.codec, 0, 0)
    y = np.asarray(codec.rotate(CALIBRATION[0, :, :, 0].reshape(-1, DIM)), float)
    y /= np.sqrt((y**2).mean(-1, keepdims=True))
    columns = [y.ravel()] if codebook == "fitted" else list(y.T)
    levels = np.asarray(codec.quantizer.levels, float).reshape(len(columns), -1)
    ours = np.mean([distortion(*pair) for pair in zip(columns, levels, strict=True)])
    theirs = np.mean([distortion(c, oracle.lloyd_max_fit(c, 2)) for c in columns])
    assert ours == pytest.approx(theirs, rel=0.03)  # there are several minima


@pytest.mark.parametrize(
    "name", ["K aligned+half", "V aligned", "K aligned unbiased", "K gtq-like"]
)
def test_aligned_widths_and_levels_are_the_oracle_s(name):
    side, recipe = RECIPES[name]
    frequency, theta = (FREQUENCY, THETA) if side == "K" else (None, None)
    store = fit(recipe, jax.random.key(1), MANY, 3, frequency, METRIC)
    for layer in range(LAYERS):
        for head in range(HEADS):
            codec, samples = at(store.codec, layer, head), MANY[layer, :, :, head]
            known = words(recipe, codec, samples, METRIC[layer, head], theta)
            placed = {"offset": known["offset"], "theta": theta, "sinks": recipe.sinks}
            x, _ = oracle.centre(samples, **placed)
            y = x @ known["matrix"]
            widths = [3] * DIM
            if recipe.words["allocation"] == "greedy":
                widths = oracle.greedy_widths(y.var(0), 3)
                assert np.asarray(inner(codec).widths).tolist() == widths
            y = y if known["gain"] == "none" else oracle.unit_rms(y)
            assert np.isfinite(known["levels"]).sum(-1).tolist() == [2**w for w in widths]
            ours, theirs = (
                np.mean([distortion(*pair) for pair in zip(y.T, levels, strict=True)])
                for levels in (known["levels"], map(oracle.lloyd_max_fit, y.T, widths))
            )
            assert ours < 1.02 * theirs


ALIGNED = recipes("aligned")[0]


def logit_error(recipe, bits=2):
    """Mean square error of logits with queries like those of the metric."""
    recipe = dataclasses.replace(recipe, sinks=0)
    store = fit(recipe, jax.random.key(1), CALIBRATION, bits, FREQUENCY, METRIC)
    error = np.asarray(reread(store, TEXT[:, 0], FREQUENCY) - TEXT[:, 0], float)
    return np.einsum("ltgi,lgij,ltgj->", error, np.asarray(METRIC, float), error)


def test_aligned_axes_with_all_ingredients_keep_logits_best():
    best, rotation = logit_error(ALIGNED), logit_error(recipes("haar+pre")[0])
    for left_out in ("aligned-metric", "aligned-bits"):
        assert best < 0.7 * logit_error(recipes(left_out)[0])
    assert best < 0.3 * rotation


def test_learned_rotations_lose_less_than_random_ones_of_keys_they_have_not_seen():
    def error(transform):
        recipe = StoreRecipe.parse(f"{transform}/lloyd_max offset=pre_rope")
        store = fit(recipe, jax.random.key(1), MANY, 2, FREQUENCY, METRIC)
        return float(jnp.mean((reread(store, TEXT[:, 0], FREQUENCY) - TEXT[:, 0]) ** 2))

    assert error("learned_rotation") < 0.97 * error("haar")


def test_methods_like_published_ones_are_what_they_say():
    kvtc, (keys, values) = recipes("kvtc-like")[0].words, [r.words for r in recipes("gtq-like")]
    assert (kvtc["coordinates"], kvtc["rope"], kvtc["allocation"]) == ("pca", "before", "greedy")
    assert (keys["coordinates"], keys["allocation"]) == ("identity", "greedy")
    assert (values["coordinates"], values["codebook"]) == ("haar", "sphere")


@pytest.mark.parametrize("bits", [2, 3])
def test_a_greedy_allocation_takes_the_bytes_of_an_even_one(bits):
    stores = [
        fit(recipes(name)[0], jax.random.key(1), CALIBRATION, bits, FREQUENCY, METRIC)
        for name in ("aligned", "aligned-bits")
    ]
    mixed, even = (
        jax.eval_shape(lambda s=s: PackedSide.empty(at(s, 0), 1, TOKENS, HEADS, DIM)).nbytes
        for s in stores
    )
    widths = np.asarray(stores[0].codec.quantizer.widths)
    assert (widths.sum(-1) == bits * DIM).all() and widths.std() > 0
    assert mixed == even


def test_aligned_axes_need_a_metric_and_a_greedy_allocation_its_codebook():
    for text, message in (
        ("aligned/lloyd_max", "metric must be given for aligned axes"),
        ("pca/lloyd_max:allocation=greedy", "codebook of a greedy allocation must be"),
        ("pca/lloyd_max:gain=channel", "gain must be"),
        ("pca/lloyd_max:gaussian:gain=none", "gain of gaussian levels must be"),
        ("pca/minmax@unbiased", "quantizer must be a Codebook"),
        ("block_hadamard:0/lloyd_max", "block must be .* at least 1"),
        ("mass_diff@haar/lloyd_max", "mass_diff must come before blocks"),
        ("aligned:spectrum=cube/lloyd_max", "spectrum must be one of|metric must be given"),
    ):
        with pytest.raises(ValueError, match=message):
            StoreRecipe.parse(text).fit(jax.random.key(0), CALIBRATION, 2, FREQUENCY)


def test_every_method_is_read_as_it_prints_and_can_be_fitted():
    for name in METHODS:
        for recipe in recipes(name):
            assert StoreRecipe.parse(str(recipe)) == recipe
            assert recipe.recipe.needs <= {"x", "metric", "mean"}


@pytest.fixture(scope="module")
def tiny():
    model = load_model("tiny")
    tokens = encode(model.tokenizer, load_text("tiny"))
    config = model.config
    sites = tuple(Site(kind, i) for kind in ("query", "key", "value") for i in range(4))
    seen = jax.jit(lambda p, t: forward(p, config, t, capture=sites).captured)(
        model.params, tokens[1000:1256].reshape(2, 128)
    )
    tokens = tokens[:80]

    @jax.jit
    def nll(stores):
        cache = empty_cache(config, 1, len(tokens), **stores) if stores else None
        return token_nll(model.params, config, jnp.asarray(tokens)[None], cache=cache).mean()

    return model, tokens, seen, nll, float(nll(None))


def metrics(model, seen):
    """[layers, kv_heads, dim, dim]: second moments of queries, and of columns of o_proj."""
    c = model.config
    heads = (c.num_key_value_heads, c.num_attention_heads // c.num_key_value_heads)
    q = np.asarray(seen["query"], float)
    q = q.reshape(len(q), -1, *heads, c.head_dim)
    w = np.asarray(model.params["layers"]["o_proj"]["kernel"], float)
    w = w.reshape(len(w), *heads, c.head_dim, -1)
    keys = np.einsum("lngad,lngae->lgde", q, q) / (q.shape[1] * heads[1])
    values = np.einsum("lgadh,lgaeh->lgde", w, w) / (w.shape[-1] * heads[1])
    return jnp.asarray(keys, jnp.float32), jnp.asarray(values, jnp.float32)


@pytest.mark.parametrize("name", ["kivi", "haar", "pca+pre", "haar+pre+minmax", "aligned+half"])
def test_perplexity_through_the_cache_is_the_oracle_s(tiny, name):
    model, tokens, seen, nll, exact = tiny
    config, folder = model.config, importlib.resources.files("isojax.models") / "tiny"
    frequency = rope_frequencies(config.head_dim, config.rope_theta)
    # the oracle knows a range for a whole vector only
    pair = [StoreRecipe.parse(str(r).replace(":group:32", "")) for r in recipes(name)]
    metric = metrics(model, seen)
    sides = [
        (pair[0], seen["key"], frequency, config.rope_theta, metric[0]),
        (pair[1], seen["value"], None, None, metric[1]),
    ]
    stores = [fit(r, jax.random.key(2), x, 2, f, m) for r, x, f, _, m in sides]
    named = dict(zip(("keys", "values"), stores, strict=True))

    def change(layer, q, k, v):
        changed, masks = [], []
        for x, (recipe, texts, _, theta, metric), store in zip((k, v), sides, stores, strict=True):
            codec, samples = at(store.codec, layer, 0), texts[layer, :, :, 0]
            known = words(recipe, codec, samples, metric[layer, 0], theta)
            changed.append(oracle.reconstruct(x[:, 0], samples, bits=2, **known)[:, None])
            own = {"page": recipe.page, "sinks": recipe.sinks, "recent": recipe.recent}
            masks.append(oracle.visible(len(x), **own))
        return *changed, *masks

    want = oracle.torch_nll(str(folder), tokens, change) - exact
    assert abs(want) > 1e-3  # there is something to find
    assert float(nll(named)) - exact == pytest.approx(want, abs=0.1 * abs(want) + 5e-4)
