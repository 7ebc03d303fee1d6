"""Statistics of calibration: those of the whole model's own vectors, in memory and on disk."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from small_models import random_tokens, small_model

from isojax.models import Site, fold_norms, forward
from isojax.quantize import Plan, calibrate, quantize, score
from isojax.quantize.stats import load_stats

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
