"""Plans carried out: each rule changes what it names and no more, now or later."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from plan_models import KEY, TOKENS, made, model_of, refuses

from isojax.quantize import Plan, calibrate, quantize, unquantized

pytestmark = pytest.mark.slow


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


@pytest.mark.parametrize("first", ["none", "haar/lloyd_max bits=4", "identity/lloyd_max bits=3"])
def test_the_cache_is_one_for_all_layers(first):
    text = f"cache:keys: haar/lloyd_max bits=3; cache:keys[0]: {first}"
    refuses("cache:keys must be alike in all layers", "qwen2", text)


def test_a_cache_has_codes_of_a_fixed_number_of_bits():
    for levels in ("ecsq bits=2.5", "none"):
        refuses("levels of a cache must have a fixed number", "qwen2", f"cache: haar/{levels}")


def test_rules_that_later_ones_replace_do_not_count():
    base = made("qwen2", "cache: absmax bits=4")
    text = "weight: absmax bits=4; cache: haar/absmax bits=3; cache:keys: pca; cache: none"
    plan = Plan.parse(text)
    assert plan.places == {p for p in Plan.parse("weight: absmax bits=4").places}
    assert not plan.random and Plan.parse("values: haar; values[0]: none").random
    both = quantize(KEY, base, plan)
    assert both.origin.plan is not None and both.keys is not None
    assert both.origin.plan == Plan.parse("cache: absmax bits=4; weight: absmax bits=4")
    half = Plan.parse("cache: absmax bits=4; weight[0]: absmax bits=4").without({"cache:keys"})
    assert half == Plan.parse("cache:values: absmax bits=4; weight[0]: absmax bits=4")


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
    with pytest.raises(ValueError, match="key must be one of jax.random.key, got LanguageModel"):
        inspect.unwrap(quantize)(model, plan, None)  # as without the type checks of the tests


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
