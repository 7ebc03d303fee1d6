"""Plans carried out: what merges changes nothing, each rule changes what it names and no more."""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from small_models import random_tokens, small_model

from isojax import learn, quantizers
from isojax.models import WEIGHTS, LanguageModel, Site, forward, logits
from isojax.models.hooks import INPUTS
from isojax.quantize import Plan, calibrate, quantize, score, unquantized
from isojax.quantize.parts import PLACES

KEY = jax.random.key(3)
TOKENS = random_tokens(2, 24)
FORMS = {
    "qwen2": {},
    "qwen3": {"qk_norm": True, "qkv_bias": False, "head_dim": 16, "tie_word_embeddings": False},
    "llama": {"qkv_bias": False, "o_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
}
OWN = """
import jax, jax.numpy as jnp
from isojax import quantizers, transforms


def oblique(key, samples, condition: float = 10.0):
    left, right = (transforms.haar(k, samples.dim).entries for k in jax.random.split(key))
    size = jnp.geomspace(condition**-0.5, condition**0.5, samples.dim)
    return transforms.Oblique((left * size) @ right, (right.T / size) @ left.T)


def mirror(key, samples):
    u = jax.random.normal(key, (samples.dim,))
    u = u / jnp.linalg.norm(u)
    return transforms.Dense(jnp.eye(samples.dim) - 2 * jnp.outer(u, u))


def coarse(samples, bits):
    return quantizers.absmax(bits, "token", clip=0.9)
"""


@pytest.fixture(scope="module", autouse=True)
def own(tmp_path_factory):
    """A module of members that are not of this package."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "plans_own.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield
    sys.modules.pop("plans_own", None)


@functools.cache
def model_of(form, layers=2):
    """Every leaf random: scales around one, biases too."""
    model = small_model(num_hidden_layers=layers, **FORMS[form])
    rng = np.random.default_rng(0)

    def noisy(path, x):
        name = jax.tree_util.keystr(path)
        if "kernel" in name or "embedding" in name or "head" in name:
            return x / 3
        middle = 1.0 if "scale" in name else 0.0
        return jnp.asarray(middle + 0.3 * rng.standard_normal(x.shape), jnp.float32)

    params = jax.tree_util.tree_map_with_path(noisy, model.params)
    return dataclasses.replace(model, params=params)


@functools.partial(jax.jit, static_argnames="config")
def _logits(quantized, config, ids):
    hidden = forward(quantized.params, config, ids, hooks=quantized.hooks).hidden
    return logits(quantized.params, hidden)


def logits_of(model, ids=TOKENS):
    made = unquantized(model) if isinstance(model, LanguageModel) else model
    made = dataclasses.replace(made, codes={}, shared={}, keys=None, values=None)
    return np.asarray(_logits(made, made.config, jnp.asarray(ids)), np.float64)


@functools.partial(jax.jit, static_argnames="config")
def _inputs(quantized, config, ids):
    sites = tuple(Site(f"input:{s}", i) for s in dict.fromkeys(INPUTS.values()) for i in range(2))
    hooks = quantized.hooks
    return forward(quantized.params, config, ids, hooks=hooks, capture=sites).captured


def inputs_of(quantized):
    return _inputs(quantized, quantized.config, jnp.asarray(TOKENS))


_gptq = jax.jit(learn.gptq)


def made(form, text, key=KEY, base=None):
    plan, model = Plan.parse(text), model_of(form)
    return quantize(key, base or model, plan, calibrate(model, TOKENS, plan))


def same_logits(got, form, within=1e-4):
    exact = logits_of(model_of(form))
    assert np.abs(logits_of(got) - exact).max() < within * np.abs(exact).max()


OBLIQUE = ("values", "queries_keys", *(p for p in PLACES if p.startswith("input:")))
EXACT = {
    **{f"oblique at {place}": f"{place}: plans_own:oblique" for place in OBLIQUE},
    "oblique everywhere": "\n".join(f"{p}: plans_own:oblique" for p in OBLIQUE),
    "smooth": "input: smooth; values: random_permutation",
    "standardize": "input:q_proj: standardize; input:gate_proj: standardize",
    "a permutation": "input:down_proj: random_permutation",
    "mass_diff": "input:down_proj: mass_diff@block_hadamard:8",
    "a chain": "input:down_proj: standardize@random_permutation@pca@plans_own:oblique",
    "permutations that do not merge": "input: random_permutation@block_hadamard:8",
    "residual of one's own": "residual: plans_own:mirror",
    "residual, fitted": "residual: pca",
    "isometries": "residual: hadamard; values: hadamard; queries_keys: hadamard; input: haar",
    "residual and smooth": "residual: haar; input: smooth@hadamard; values: pca",
    "aligned": "values: aligned; queries_keys: aligned; input: aligned",
    "balance": "values: haar; input: balance@smooth@hadamard",
    "awq": "input: awq:steps=4@hadamard; input:down_proj: awq:4:8:4@mass_diff@block_hadamard:8",
    "wush": "values: wush; queries_keys: wush; input: wush@hadamard",
    "wush in blocks": "input: wush:8@block_hadamard:8; input:down_proj: mass_diff@cat:8@hadamard",
    "flatquant": "input: balance_search:steps=2@flatquant:steps=2:rate=0.01",
    "kron_wush": "residual: hadamard; input: kron_wush@hadamard; input:q_proj: kron_wush:4",
}  # fmt: skip
ALL_FORMS = (
    "balance",
    "wush",
    "kron_wush",
    "oblique everywhere",
    "smooth",
    "a chain",
    "isometries",
    "residual and smooth",
)
CASES = [(form, name) for name in EXACT for form in FORMS if form == "qwen2" or name in ALL_FORMS]


@pytest.mark.parametrize(("form", "name"), CASES)
def test_what_is_merged_and_undone_changes_no_logits(form, name):
    got = made(form, EXACT[name])
    same_logits(got, form)
    leaves = jax.tree.leaves((got.inputs, got.turn))
    moved = [
        np.abs(np.asarray(a) - np.asarray(b)).max()
        for a, b in zip(
            jax.tree.leaves(got.params["layers"]),
            jax.tree.leaves(model_of(form).params["layers"]),
            strict=True,
        )
    ]
    assert leaves or max(moved) > 1e-2  # something was done


MERGES = {
    "input:q_proj: smooth": None,
    "input:gate_proj: standardize": None,
    "input:down_proj: smooth@random_permutation": None,
    "input:down_proj: smooth@random_permutation@hadamard": "Hadamard",
    "input:q_proj: smooth@hadamard": "Hadamard",
    "input:q_proj: random_permutation": "Permutation",
    "input:o_proj: smooth": None,
    "input:o_proj: balance@hadamard": "Hadamard",
    "input:o_proj: hadamard@balance": "Composed",
    "input:o_proj: wush:8@block_hadamard:8": "Composed",
    "values: haar; input:o_proj: balance@smooth": None,
    "values: haar": None,
    "residual: haar": None,
}  # fmt: skip


@pytest.mark.parametrize("text", MERGES)
def test_what_merges_does_not_run(text):
    got = made("qwen2", text)
    if MERGES[text] is None:
        assert not got.inputs and got.turn is None
    else:
        (each,) = got.inputs.values()
        assert type(each.stacks[0].transform).__name__ == MERGES[text]


def test_transforms_stand_where_they_should():
    """The input of down_proj is the plain one through the whole chain, as a quantizer sees it."""
    got = made("llama", "input:down_proj: standardize@random_permutation@block_hadamard:8")
    before, after = (inputs_of(m)["input:down_proj"] for m in (unquantized(model_of("llama")), got))
    for i, turn in enumerate(got.shared["input:down_proj"]):
        assert_allclose(turn.apply(before[i]), after[i], atol=2e-4 * float(jnp.abs(after).max()))


def refuses(words, form, text, base=None):
    with pytest.raises(ValueError) as caught:
        made(form, text, base=base)
    message = str(caught.value)
    assert words in message and "\n" not in message, message


@pytest.mark.parametrize("turn", ["plans_own:oblique", "aligned", "standardize", "haar@smooth"])
def test_the_residual_stream_takes_isometries_alone(turn):
    words = (
        "residual must be turned by an isometry" if turn not in ("aligned", "haar@smooth") else ""
    )
    refuses(words, "qwen2", f"residual: {turn}")


@pytest.mark.parametrize("place", ["residual", *OBLIQUE])
def test_padded_transforms_are_refused(place):
    form = "qwen2"
    refuses(f"{place} must keep its length", form, f"{place}: rotor")


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ("[0]", "values: haar"), ("[-1]", "input:down_proj: smooth@hadamard/absmax bits=3"),
        ("[1:]", "input:down_proj: smooth@hadamard/absmax bits=3"),
        ("[0,2]", "weight: absmax bits=3"), ("[-1]", "input:q_proj: standardize"),
        ("[1:]", "queries_keys: hadamard"),
    ],
)  # fmt: skip
def test_narrowed_rules_change_those_layers_alone(layers, text):
    model = model_of("qwen3", 3)
    place, _, what = text.partition(": ")

    def run(text):
        plan = Plan.parse(text)
        return quantize(KEY, model, plan, calibrate(model, TOKENS, plan))

    all_, some = run(text), run(f"{place}{layers}: {what}")
    named = Plan.parse(f"{place}{layers}: {what}").rules[0].indices(3)
    for i in range(3):
        whole = all_ if i in named else unquantized(model)
        for got, want in zip(*(jax.tree.leaves(m.params["layers"]) for m in (some, whole)),
                             strict=True):  # fmt: skip
            assert_array_equal(got[i], want[i])
        assert all((codes[i] is not None) == (i in named) for codes in some.codes.values())
        x = jax.random.normal(KEY, (2, 5, 64))
        at = jnp.asarray(i)
        for site in some.inputs:
            want = all_.hooks.activation(site, at, x) if i in named else x
            assert_array_equal(some.hooks.activation(site, at, x), want)
        if some.turn is not None:
            k = jax.random.normal(KEY, (2, 5, 2, 16))
            want = all_.hooks.key(at, k) if i in named else k
            assert_array_equal(some.hooks.key(at, k), want)


def test_the_cache_is_one_for_all_layers():
    refuses(
        "cache:keys must be alike in all layers", "qwen2", "cache:keys[0]: haar/lloyd_max bits=3"
    )


TWICE = {
    "residual, then inputs": ("residual: hadamard", "input: hadamard/absmax bits=4"),
    "values, then weights": (
        "values: haar", "weight: absmax bits=4 rounding=gptq",
    ),
    "inputs, then weights": (
        "input: smooth@hadamard/absmax bits=4", "weight: absmax bits=4 rounding=gptq",
    ),
    "permuted, then weights": (
        "input:down_proj: smooth@mass_diff:8@block_hadamard:8",
        "weight:down_proj: absmax bits=4 rounding=gptq",
    ),
    "values, then their scales": (
        "values: haar", "input:o_proj[0]: balance@hadamard/absmax bits=4; "
        "cache:values: pca/lloyd_max bits=3; weight: absmax bits=4 rounding=gptq",
    ),
    "turned keys, then cache": (
        "values: haar; queries_keys: haar",
        "cache: pca/lloyd_max:fitted bits=3 sinks=2",
    ),
    "inputs, then cache": (
        "input: haar/absmax bits=8", "cache: pca/lloyd_max bits=3",
    ),
    "weights, then down": (
        "residual: hadamard; weight:gate_proj: absmax bits=4; weight:up_proj: absmax bits=4",
        "input:down_proj: mass_diff@block_hadamard:8/absmax bits=4; "
        "weight:down_proj: absmax bits=4 rounding=gptq",
    ),
    "embedding, then the rest": ("embedding: absmax bits=8", "weight: absmax bits=4"),
    "layers one by one": ("weight:q_proj[0]: absmax bits=4", "weight:k_proj[1]: absmax bits=4"),
}  # fmt: skip


@pytest.mark.parametrize("form", ["qwen2", "qwen3"])
@pytest.mark.parametrize("texts", TWICE.values(), ids=TWICE)
def test_places_added_later_are_those_of_one_plan(form, texts):
    once = made(form, "\n".join(texts))
    twice = made(form, texts[1], base=made(form, texts[0]))
    assert jax.tree.structure(once) == jax.tree.structure(twice)
    for path, got in jax.tree_util.tree_leaves_with_path(twice):
        want = np.asarray(functools.reduce(_step_into, path, once))
        name = jax.tree_util.keystr(path)
        if np.issubdtype(want.dtype, np.integer):
            assert np.mean(np.asarray(got) == want) > 0.999, name
        else:
            close = np.isclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max(initial=0))
            assert close.mean() > 0.999, name


def _step_into(tree, key):
    for name in ("name", "key", "idx"):
        if hasattr(key, name):
            at = getattr(key, name)
            return getattr(tree, at) if name == "name" else tree[at]
    raise TypeError(key)


TAKEN = {
    "weight:k_proj": ("weight: absmax bits=4", "weight:k_proj: absmax bits=4"),
    "input:q_proj": ("input: absmax bits=4", "input:v_proj: haar"),
    "input:gate_proj": ("input:up_proj: smooth", "input:gate_proj: absmax bits=4"),
    "residual": ("residual: haar", "residual: haar"),
    "values": ("values: haar", "values: haar"),
    "queries_keys": ("queries_keys: haar", "queries_keys: haar"),
    "cache:values": ("cache: haar/lloyd_max bits=3", "cache:values: haar/lloyd_max bits=3"),
    "embedding": ("embedding: absmax bits=8", "embedding: absmax bits=8"),
}


@pytest.mark.parametrize("place", TAKEN)
def test_places_that_are_taken_are_refused(place):
    first, second = TAKEN[place]
    refuses(f"the model is quantized at {place} already", "qwen2", second, made("qwen2", first))


LATE = [
    ("weight: absmax bits=4", "residual: haar", "residual must be turned before"),
    ("input: smooth", "residual: haar", "residual must be turned before"),
    ("embedding: absmax bits=8", "residual: haar", "residual must be turned before"),
    ("weight:v_proj: absmax bits=4", "values: haar", "values must be turned before v_proj"),
    ("weight:o_proj: absmax bits=4", "values: haar", "values must be turned before o_proj"),
    ("input:o_proj: haar", "values: haar", "values must be turned before input:o_proj"),
    ("cache: haar/lloyd_max bits=3", "values: haar", "values must be turned before cache:values"),
    ("cache: haar/lloyd_max bits=3", "queries_keys: haar", "queries_keys must be turned before"),
    ("weight:k_proj: absmax bits=4", "input:q_proj: haar", "input:q_proj must be turned before"),
    ("weight:up_proj: absmax bits=4", "input:down_proj: smooth", "before up_proj is rounded"),
    ("weight:v_proj: absmax bits=4", "input:o_proj: balance", "before v_proj is rounded"),
    ("input:o_proj: balance", "values: haar", "values must be turned before input:o_proj"),
    (
        "cache:values: haar/lloyd_max bits=3", "input:o_proj: balance@hadamard",
        "input:o_proj must scale values before cache:values",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second", "words"), LATE)
def test_what_comes_too_late_is_refused(first, second, words):
    refuses(words, "qwen2", second, made("qwen2", first))


def test_a_cache_before_the_rotary_embedding_stands_behind_no_turn():
    text = "queries_keys: haar; cache:keys: haar/lloyd_max bits=3 offset=pre_rope"
    refuses("cache:keys must not undo the rotary embedding", "qwen2", text)
    first, second = text.split("; ")
    refuses("cache:keys must not undo the rotary embedding", "qwen2", second, made("qwen2", first))


def test_other_refusals():
    refuses("head is the embedding in this model", "qwen2", "head: absmax bits=8")
    refuses("layers must be from -2 to 1", "qwen2", "input[2]: haar")
    model, plan = model_of("qwen2"), Plan.parse("input: pca")
    with pytest.raises(ValueError, match="stats must hold samples:input:q_proj: calibrate"):
        quantize(KEY, model, plan)
    with pytest.raises(ValueError, match="stats must be of 2 layers, got 3"):
        quantize(KEY, model, plan, calibrate(model_of("qwen2", 3), TOKENS, plan))


def test_a_diagonal_beyond_fp16_is_refused_with_its_place():
    model, plan = model_of("qwen2"), Plan.parse("input:down_proj: balance@hadamard")
    kernel = model.params["layers"]["up_proj"]["kernel"].at[:, :, 5].mul(1e-14)
    layers = model.params["layers"] | {"up_proj": {"kernel": kernel}}
    faint = dataclasses.replace(model, params=model.params | {"layers": layers})
    with pytest.raises(
        ValueError, match="input:down_proj must merge a diagonal of fp16's"
    ) as caught:
        quantize(KEY, faint, plan, calibrate(faint, TOKENS, plan))
    assert "\n" not in str(caught.value) and "6.1e-05 to 65504" in str(caught.value)


def test_moments_of_all_windows_are_what_inputs_are_fitted_on():
    model, plan = model_of("qwen2"), Plan.parse("input: wush:8@block_hadamard:8")
    stats = calibrate(model, TOKENS, plan)
    assert {name.partition(":")[0] for layer in stats.layers for name in layer} == {"moment"}
    without = dataclasses.replace(stats, layers=({},) * 2)
    with pytest.raises(ValueError, match="stats must hold moment:input:q_proj: calibrate"):
        quantize(KEY, model, plan, without)


PURE = {
    "quarot": "residual: hadamard; values: hadamard; queries_keys: hadamard; "
    "input: identity/absmax bits=4; input:down_proj: hadamard/absmax bits=4; "
    "weight: absmax:range=mse bits=4 rounding=gptq",
    "aligned cache": "cache:keys: aligned/lloyd_max:fitted_channel bits=3 offset=pre_rope sinks=2; "
    "cache:values: haar/lloyd_max@unbiased bits=3 sinks=2",
}


@pytest.mark.parametrize("text", PURE.values(), ids=PURE)
def test_keys_by_vmap_and_under_jit_are_a_loop(text):
    model, plan = model_of("qwen2"), Plan.parse(text)
    stats = calibrate(model, TOKENS, plan)
    keys = jax.random.split(KEY, 4)

    def losses(quantized):
        return score(quantized, TOKENS).nll.mean()

    loop = [quantize(key, model, plan, stats) for key in keys]
    batch = jax.vmap(lambda key: quantize(key, model, plan, stats))(keys)
    jitted = jax.jit(lambda key: quantize(key, model, plan, stats))(keys[0])
    lost = jax.vmap(losses)(batch)
    assert len({float(x) for x in lost}) == 4
    ways = [(jax.tree.map(lambda a, i=i: a[i], batch), loop[i], lost[i]) for i in range(4)]
    ways.append((jitted, loop[0], losses(jitted)))
    for got, want, loss in ways:
        assert jax.tree.structure(got) == jax.tree.structure(want)
        assert float(loss) == pytest.approx(float(losses(want)), rel=1e-4)
        for a, b in zip(jax.tree.leaves(got.codes), jax.tree.leaves(want.codes), strict=True):
            if jnp.issubdtype(a.dtype, jnp.integer):
                assert np.mean(np.asarray(a == b)) > 0.999


def test_numbers_of_a_plan_are_swept_as_in_a_loop():
    model = model_of("qwen2")
    plan = Plan.parse(
        "input:q_proj: smooth:0.3/absmax bits=4; cache:keys: aligned:0.3/absmax bits=4"
    )
    stats = calibrate(model, TOKENS, plan)

    def loss(value):
        mine = jax.tree.map(lambda _: value, plan)
        return score(quantize(KEY, model, mine, stats), TOKENS).nll.mean()

    values = jnp.asarray([0.2, 0.7])
    swept = jax.vmap(loss)(values)
    assert_allclose(swept, [loss(v) for v in values], rtol=1e-4)
    assert abs(float(swept[0] - swept[1])) > 1e-5


@pytest.mark.parametrize(
    "turns",
    ["input:down_proj: mass_diff@block_hadamard:8", "input: smooth@hadamard; residual: hadamard",
     "input: smooth", "values: haar; input: haar"],
)  # fmt: skip
def test_weights_are_rounded_as_if_all_else_were_merged_first(turns):
    """Hessians that are turned with the inputs are those of the turned model's own inputs."""
    got = made("llama", f"{turns}\nweight: absmax bits=4 rounding=gptq")
    turned = made("llama", turns)
    seen, levels = inputs_of(turned), quantizers.absmax(4, "token")
    for name in WEIGHTS:
        x, kernel = seen[f"input:{INPUTS[name]}"], turned.params["layers"][name]["kernel"]
        for i in range(2):
            moment = learn.second_moment(x[i].reshape(-1, x.shape[-1]))
            want = levels.decode(_gptq(kernel[i], moment, levels)).T
            rounded = got.params["layers"][name]["kernel"][i]
            assert jnp.isclose(rounded, want, atol=1e-4).mean() > 0.98, name
            assert_allclose(rounded, levels.decode(got.codes[name][i]).T, atol=1e-5)


def test_gptq_loses_less_than_rounding_to_nearest():
    model = model_of("llama")
    exact = score(model, TOKENS).nll
    lost = {
        rounding: float(jnp.abs(
            score(made("llama", f"weight: absmax bits=3 rounding={rounding}"), TOKENS).nll - exact
        ).mean())
        for rounding in ("nearest", "gptq")
    }  # fmt: skip
    assert lost["gptq"] < lost["nearest"]


def rounded_rows(x):
    """Each row on 15 levels, multiples of its largest size over 7."""
    step = np.abs(x).max(-1, keepdims=True) / 7
    return np.clip(np.rint(x / step), -7, 7) * step


def oracle_nll(model, ids):
    """W4A4 to nearest of a decoder of one layer, from the definition, in fp64."""
    config = model.config
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), model.params)
    layer = jax.tree.map(lambda a: a[0], wide["layers"])
    heads, groups, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * scale

    def linear(name, x):
        weight = rounded_rows(layer[name]["kernel"].T)
        return rounded_rows(x) @ weight.T + layer[name].get("bias", 0)

    def turned(x):  # [t, heads, dim]
        angle = np.arange(len(x))[:, None] * config.rope_theta ** (-2 * np.arange(dim // 2) / dim)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        a, b = x[..., : dim // 2], x[..., dim // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x = wide["embedding"][ids]
    h = norm(x, layer["input_norm"]["scale"])
    q, k, v = (linear(f"{n}_proj", h).reshape(len(ids), -1, dim) for n in "qkv")
    q, k, v = turned(q), *(np.repeat(a, heads // groups, 1) for a in (turned(k), v))
    logit = np.einsum("thd,shd->hts", q, k) / dim**0.5
    logit = np.where(np.tril(np.ones(logit.shape[1:], bool)), logit, -np.inf)
    weight = np.exp(logit - logit.max(-1, keepdims=True))
    weight /= weight.sum(-1, keepdims=True)
    x = x + linear("o_proj", np.einsum("hts,shd->thd", weight, v).reshape(len(ids), -1))
    h = norm(x, layer["post_norm"]["scale"])
    gate = linear("gate_proj", h)
    x = x + linear("down_proj", gate / (1 + np.exp(-gate)) * linear("up_proj", h))
    out = norm(x, wide["norm"]["scale"]) @ wide["head"]
    out -= out.max(-1, keepdims=True)
    out -= np.log(np.exp(out).sum(-1, keepdims=True))
    return -out[np.arange(len(ids) - 1), ids[1:]]


def test_w4a4_is_that_of_an_oracle():
    model = model_of("llama", 1)
    got = quantize(KEY, model, Plan.parse("input: absmax bits=4; weight: absmax bits=4"))
    want = oracle_nll(model, TOKENS[0])
    assert_allclose(score(got, TOKENS[:1]).nll[0], want, rtol=1e-3)
    exact = np.asarray(score(model, TOKENS[:1]).nll[0])
    assert np.abs(want - exact).mean() > 0.01
