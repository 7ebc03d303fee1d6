"""Inputs of linear layers whose mean is subtracted before they are quantized: `centre@...`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from plan_models import FORMS, KEY, TOKENS, logits_of, model_of

from isojax import quantizers
from isojax.models import Site, forward
from isojax.models.hooks import INPUTS
from isojax.quantize import Plan, calibrate, costs, describe, quantize
from isojax.quantize.parts import SITES
from isojax.recipes import Coordinates, Recipe, Samples

pytestmark = pytest.mark.slow


def quantized(model, text):
    plan = Plan.parse(text)
    return quantize(KEY, model, plan, calibrate(model, TOKENS, plan))


def means_of(made):
    """The means of the inputs of linear layers over all tokens, by input [layers, d]."""
    sites = tuple(Site(f"input:{s}", i) for s in SITES for i in range(2))
    found = forward(made.params, made.config, jnp.asarray(TOKENS), capture=sites).captured
    return {s: np.asarray(found[f"input:{s}"], np.float64).mean((1, 2)) for s in SITES}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "text",
    [
        "input: centre@haar/none",
        "input: centre@balance@hadamard/none",
        "residual: hadamard; values: haar; input: centre@identity/none",
        "residual: haar; values: haar; input: centre@wush@hadamard/none",
        "input:down_proj: centre@mass_diff@block_hadamard:8/none; input:o_proj: centre@pca/none",
    ],
)
def test_a_mean_that_is_added_back_changes_no_logits(form, text):
    model = model_of(form)
    exact = logits_of(model)
    error = np.abs(logits_of(quantized(model, text)) - exact).max()
    assert error < 1e-4 * np.abs(exact).max()


@pytest.mark.parametrize("before", ["residual: identity", "residual: haar; values: hadamard"])
def test_means_are_those_of_what_the_layers_read(before):
    made = quantized(model_of("llama"), f"{before}; input: centre@haar/absmax bits=8")
    turned = quantized(model_of("llama"), before)
    for site, means in means_of(turned).items():
        for i, mean in enumerate(means):
            codec = made.inputs[f"input:{site}"].of(i)
            assert_allclose(codec.offset, mean, atol=2e-4 * np.abs(mean).max())


def test_a_merged_scale_is_that_of_the_mean_too():
    plain, scaled = (
        quantized(model_of("llama"), f"input:down_proj: centre@{chain}haar/absmax bits=8")
        for chain in ("", "balance@")
    )
    for i in range(2):
        mean, after = (made.inputs["input:down_proj"].of(i).offset for made in (plain, scaled))
        up, changed = (m.params["layers"]["up_proj"]["bias"][i] for m in (plain, scaled))
        assert_allclose(after, mean * changed / up, rtol=1e-3, atol=1e-6)
        assert np.abs(changed / up - 1).max() > 0.1


def test_what_is_read_is_the_rounded_rest_and_the_mean():
    made = quantized(model_of("llama"), "input:down_proj: centre@haar/absmax bits=3")
    codec = made.inputs["input:down_proj"].of(1)
    x = jax.random.normal(KEY, (7, codec.transform.dim)) + 3 * codec.offset
    matrix, mean = np.asarray(codec.transform.matrix(), np.float64), np.asarray(codec.offset)
    y = (np.asarray(x) - mean) @ matrix
    want = np.asarray(quantizers.absmax(3, "token").roundtrip(jnp.asarray(y, jnp.float32)))
    want = want + mean @ matrix
    got = made.hooks.activation("input:down_proj", jnp.asarray(1), x)
    near = np.abs(np.asarray(got) - want) < 1e-4
    assert near.mean() > 0.98  # all but near ties


def test_a_fit_balances_what_the_weights_multiply():
    x = jax.random.normal(KEY, (400, 6)) * jnp.arange(1.0, 7) + 5
    whole = Samples(None, jnp.eye(6), moment=x.T @ x / len(x), mean=x.mean(0), size=6)
    codec = Recipe.parse("centre@balance/none").fit(KEY, whole, 4)
    want = Coordinates.parse("balance").fit(KEY, Samples(x, jnp.eye(6)))
    assert_allclose(codec.transform.matrix(), want.matrix(), rtol=1e-3)
    assert_allclose(codec.offset, x.mean(0))


def test_a_large_mean_costs_nothing_where_it_is_subtracted():
    x = jax.random.normal(KEY, (64, 32)) + 20 * jnp.ones(32).at[3].set(-5)
    error = {}
    for text in ("haar/absmax", "centre@haar/absmax"):
        codec = Recipe.parse(text).fit(KEY, Samples(x), 4)
        error[text] = float(jnp.mean((codec.roundtrip(x) - x) ** 2))
    assert error["centre@haar/absmax"] < 0.05 * error["haar/absmax"]


def test_a_mean_is_one_operation_per_element_and_described():
    text = "input: {}hadamard/absmax bits=4"
    model = model_of("llama")
    plain, centred = (quantized(model, text.format(c)) for c in ("", "centre@"))
    width = sum(model.params["layers"][name]["kernel"].shape[1] for name in SITES)
    assert costs(centred, 8).online_fmas - costs(plain, 8).online_fmas == 2 * width
    description = describe(Plan.parse(text.format("centre@")), model.config)
    assert description.costs == costs(centred, description.costs.tokens)
    assert {e.online for e in description.entries} == {"centre@hadamard"}
    assert set(INPUTS.values()) == set(SITES)
