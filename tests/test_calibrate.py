"""Statistics of calibration: those of the whole model's own vectors, in memory and on disk."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from datasets import Dataset
from numpy.testing import assert_allclose, assert_array_equal
from small_models import random_tokens, small_model

from isojax.models import Site, encode, fold_norms, forward
from isojax.quantize import (
    Plan,
    calibrate,
    find_plan,
    generate,
    quantize,
    reference,
    score,
    token_windows,
)
from isojax.quantize.stats import load_stats

pytestmark = pytest.mark.slow

WINDOWS = random_tokens(5, 20)
PLAN = Plan.parse(
    "input: pca; values: pca; cache: aligned/lloyd_max:fitted bits=3; "
    "weight: absmax bits=4 rounding=gptq"
)
SITES = ("input:q_proj", "input:o_proj", "input:gate_proj", "input:down_proj")


@pytest.fixture(scope="module")
def model():
    made = small_model(num_hidden_layers=2, qk_norm=True)
    noise = iter(np.random.default_rng(0).standard_normal((4, 2, 32)) / 5)
    layers = made.params["layers"]
    for name in ("input_norm", "post_norm"):
        layers = layers | {name: {"scale": jnp.asarray(1 + next(noise), jnp.float32)}}
    return dataclasses.replace(made, params=made.params | {"layers": layers})


@pytest.fixture(scope="module")
def seen(model):
    """[layers, windows, tokens, ...] of a forward pass, the scales of norms in the weights."""
    params, config = fold_norms(model.params, model.config)
    sites = tuple(Site(k, i) for k in ("query", "key", "value", *SITES) for i in range(2))
    run = jax.jit(lambda p, ids: forward(p, config, ids, capture=sites).captured)
    return run(params, jnp.asarray(WINDOWS))


@pytest.fixture(scope="module")
def stats(model):
    return calibrate(model, WINDOWS, PLAN, samples=60)


def test_samples_and_moments_are_those_of_a_forward_pass(stats, seen):
    kept = [0, 2, 4]  # of 60 tokens in windows of 20, evenly spaced
    for i, layer in enumerate(stats.layers):
        kinds = {"samples:key", "samples:value", "moment:query"}
        kinds |= {f"{what}:{site}" for what in ("samples", "moment") for site in SITES}
        assert set(layer) == kinds
        for name, got in layer.items():
            what, _, kind = name.partition(":")
            x = np.asarray(seen[kind][i], np.float64)
            if what == "samples":
                assert_allclose(got, x[kept], atol=1e-4 * np.abs(x).max())
                continue
            if kind == "query":  # 2 of 4 heads read each key head
                groups = x.reshape(-1, 2, 2, x.shape[-1])
                want = np.einsum("ngad,ngae->gde", groups, groups) / (2 * len(groups))
            else:
                rows = x.reshape(-1, x.shape[-1])
                want = rows.T @ rows / len(rows)
            assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize(("samples", "windows"), [(1, [0]), (40, [0, 4]), (10**6, [0, 1, 2, 3, 4])])
def test_as_many_windows_are_kept_as_are_asked_for(model, seen, samples, windows):
    stats = calibrate(model, WINDOWS, Plan.parse("values[1]: pca"), samples=samples)
    assert set(stats.layers[0]) == set() and set(stats.layers[1]) == {"samples:value"}
    assert_allclose(stats.layers[1]["samples:value"], seen["value"][1][jnp.asarray(windows)],
                    atol=1e-4 * float(jnp.abs(seen["value"]).max()))  # fmt: skip


def test_only_what_is_fitted_is_kept(model):
    drawn = Plan.parse("residual: hadamard; input: haar/absmax bits=4; weight: absmax bits=4")
    assert calibrate(model, WINDOWS, drawn).layers == ({}, {})
    two = [Plan.parse("values: pca"), Plan.parse("weight:o_proj: absmax bits=4 rounding=gptq")]
    (layer, _) = calibrate(model, WINDOWS, two).layers
    assert set(layer) == {"samples:value", "moment:input:o_proj"}


def test_the_cache_on_disk_gives_the_same(model, stats, tmp_path):
    for _ in range(2):  # written, then read
        again = calibrate(model, WINDOWS, PLAN, samples=60, cache=tmp_path)
        for here, there in zip(again.layers, stats.layers, strict=True):
            assert set(here) == set(there)
            for name in here:
                assert_array_equal(here[name], there[name])
        (folder,) = tmp_path.iterdir()
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    calibrate(model, WINDOWS, PLAN, samples=60, cache=tmp_path)
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    with pytest.raises(ValueError, match="must be a folder of statistics"):
        load_stats(tmp_path)


def test_a_calibration_that_stops_leaves_nothing_in_the_cache(model, tmp_path, monkeypatch):
    def full(folder, name, layer):
        raise OSError("no space left")

    monkeypatch.setattr(sys.modules["isojax.quantize.calibrate"], "write_layer", full)
    with pytest.raises(OSError, match="no space left"):
        calibrate(model, WINDOWS, PLAN, samples=60, cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_cache_tells_models_texts_and_plans_apart(model, tmp_path):
    plan = Plan.parse("values: pca")
    kernel = model.params["layers"]["up_proj"]["kernel"]
    changed = model.params["layers"] | {"up_proj": {"kernel": kernel.at[1, 3, 5].add(1)}}
    other = dataclasses.replace(model, params=model.params | {"layers": changed})
    for given in (
        (model, WINDOWS, plan), (other, WINDOWS, plan), (model, WINDOWS[::-1].copy(), plan),
        (model, WINDOWS, Plan.parse("values: pca; input:o_proj: pca")),
    ):  # fmt: skip
        calibrate(*given, cache=tmp_path)
    calibrate(model, WINDOWS, plan, samples=40, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 5
    for shape in ((1, -1), (2, -1)):  # the same tokens, of which one window is kept
        windows = WINDOWS[:2].reshape(shape)
        (layer, _) = calibrate(model, windows, plan, samples=1, cache=tmp_path).layers
        assert layer["samples:value"].shape[1] == windows.shape[1]


@pytest.mark.parametrize("cached", [False, True])
def test_a_model_in_bf16_is_calibrated_and_quantized(model, tmp_path, cached):
    low = dataclasses.replace(
        model, params=jax.tree.map(lambda a: a.astype(jnp.bfloat16), model.params)
    )
    plan = Plan.parse("values: pca; input: smooth/absmax bits=8; weight: absmax bits=8")
    cache = tmp_path if cached else None
    made = quantize(jax.random.key(0), low, plan, calibrate(low, WINDOWS, plan, cache=cache))
    assert {a.dtype for a in jax.tree.leaves(made.params)} == {jnp.dtype(jnp.bfloat16)}
    lost = score(made, WINDOWS).nll.mean() - score(low, WINDOWS).nll.mean()
    assert abs(float(lost)) < 0.5


def test_windows_are_checked(model):
    for windows, words in ((WINDOWS[:0], "must"), (WINDOWS[:, :1], "least 2"), (-WINDOWS, "token")):
        with pytest.raises(ValueError, match=words):
            calibrate(model, windows, PLAN)
    with pytest.raises(ValueError, match="samples must be"):
        calibrate(model, WINDOWS, PLAN, samples=0)
    with pytest.raises(ValueError, match="layers must be from -2 to 1"):
        calibrate(model, WINDOWS, Plan.parse("values[2]: pca"))


BEHIND = "residual: hadamard; input: absmax bits=3; weight: absmax bits=3 rounding=gptq"


@pytest.mark.parametrize("turned", [False, True])
def test_statistics_behind_quantized_layers_are_those_of_the_quantized_model(model, turned):
    key = jax.random.key(5)
    text = BEHIND if turned else BEHIND.partition("; ")[2]
    plan = Plan.parse(text + " inputs=quantized")
    assert Plan.parse(str(plan)) == plan
    stats = calibrate(model, WINDOWS, plan, key=key)
    exact = calibrate(model, WINDOWS, Plan.parse(text))
    made = quantize(key, model, plan, stats)
    run = jax.jit(lambda m, ids: forward(
        m.params, m.config, ids, hooks=m.hooks, capture=(Site("hidden", 1),)
    ).captured["hidden"][0])  # fmt: skip
    x = run(made, jnp.asarray(WINDOWS))
    x = made.shared["residual"].inverse.apply(x) if turned else x
    x = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    x = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + model.config.rms_norm_eps)
    for stat, layer in ((stats, "quantized"), (exact, "exact")):
        got = stat.layers[1]["moment:input:q_proj"]
        far = np.abs(got - x.T @ x / len(x)).max() / np.abs(got).max()
        assert far < 2e-3 if layer == "quantized" else far > 1e-2
    assert_array_equal(*(s.layers[0]["moment:input:q_proj"] for s in (stats, exact)))


def test_rotations_are_learned_where_a_plan_asks_for_it(model, tmp_path):
    plan = find_plan("spinquant:3:steps=20")
    key = jax.random.key(0)
    stats = calibrate(model, WINDOWS, plan, key=key, cache=tmp_path)
    again = calibrate(model, WINDOWS, plan, key=key, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(again), strict=True):
        assert_array_equal(a, b)
    turn = np.asarray(stats.whole["learned:residual"])
    assert_allclose(turn @ turn.T, np.eye(len(turn)), atol=1e-5)
    made = [
        quantize(key, model, p, s).weights_only()
        for p, s in (
            (plan, stats),
            (find_plan("quarot:3"), calibrate(model, WINDOWS, plan, key=key)),
        )
    ]
    assert_allclose(*(np.linalg.norm(m.params["embedding"]) for m in made), rtol=1e-5)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ("residual: learned", "residual and values of all layers must be learned together"),
        ("residual: learned; values: learned:steps=10", "must be learned together"),
        ("residual: learned; values: learned", "input:q_proj must be quantized"),
        ("residual: pca; " + BEHIND.partition("; ")[2] + " inputs=quantized", "must be drawn"),
        ("weight: absmax bits=4 inputs=other", "inputs must be one of exact, quantized"),
        ("head: absmax bits=4 inputs=quantized", "head has no layers before it"),
    ],
)
def test_what_cannot_be_learned_or_read_behind_is_refused(model, plan, words):
    with pytest.raises(ValueError, match=words):
        calibrate(model, WINDOWS, Plan.parse(plan), key=jax.random.key(0))


def test_a_plan_that_draws_what_it_is_fitted_on_needs_its_key(model):
    plan = Plan.parse("weight: absmax bits=4 inputs=quantized rounding=gptq")
    for given in (dict(plan=plan), dict(plan=[plan, plan], key=jax.random.key(0))):
        with pytest.raises(ValueError, match="give only that plan, and a key"):
            calibrate(model, WINDOWS, **given)
    replaced = find_plan("spinquant; residual: haar; values: none")
    assert calibrate(model, WINDOWS, replaced).layers[0]


def test_texts_are_strings_windows_or_columns(model):
    column = Dataset.from_dict({"text": ["the tin then", "", "in the tin"]})["text"]
    ids = encode(model.tokenizer, "\n\n".join(column))
    windows = token_windows(model.tokenizer, column, 4)
    assert_array_equal(windows, ids[: len(ids) // 4 * 4].reshape(-1, 4))
    for texts, length in (("\n\n".join(column), 4), (list(column), 4), (windows.tolist(), 7)):
        assert_array_equal(token_windows(model.tokenizer, texts, length), windows)
    rows = [ids[:3].tolist(), ids[3:].tolist()]
    assert_array_equal(token_windows(None, rows, 4), windows)
    assert_array_equal(token_windows(None, rows, 1000), ids[None])
    plan = Plan.parse("weight:up_proj: absmax bits=4 rounding=gptq")
    got, want = calibrate(model, column, plan, length=4), calibrate(model, windows, plan)
    assert_array_equal(*(s.layers[1]["moment:input:gate_proj"] for s in (got, want)))
    exact = [reference(model, texts, length=4) for texts in (column, windows)]
    assert_array_equal(*(score(model, windows, each).kl for each in exact))
    prompts = ["the tin", "in the tin then"]
    assert_array_equal(*(generate(model, p, 3) for p in (
        prompts, [encode(model.tokenizer, p) for p in prompts]
    )))  # fmt: skip
    for texts, words in (
        ([], "at least one"), ([1, 2], "texts"), (["a", [1]], "all strings"), (3, "got int"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            token_windows(model.tokenizer, texts)
    with pytest.raises(ValueError, match="without a tokenizer"):
        token_windows(None, "the tin")
