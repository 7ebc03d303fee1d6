"""Scales learned on the loss of the whole model, alone and with rotations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from small_models import small_model

from isojax import quantizers
from isojax.models import fold_norms, token_nll
from isojax.quantize import Plan, calibrate, describe, quantize, reference, score
from isojax.quantize.learn_turns import divergence, start_scales, start_turns
from isojax.quantize.turns import Turns, turned_inputs
from isojax.recipes import Coordinates

pytestmark = pytest.mark.slow

TOKENS = np.random.default_rng(0).integers(0, 60, (6, 24))
FIT, TEST = TOKENS[:4], TOKENS[4:]
SITES = ("q_proj", "o_proj", "gate_proj", "down_proj")
INT4 = quantizers.absmax(4, "token")
SCALED = "input: learned_scales:steps=20:rate=0.05/absmax bits=4; weight: identity/absmax bits=4"
ROTATED = "residual: learned:steps=20:rate=0.02; values: learned:steps=20:rate=0.02; "


@pytest.fixture(scope="module")
def model():
    """Channels of the inputs differ in size, and the weights that read them do not."""
    made = small_model(num_hidden_layers=2)
    size = jnp.exp(jnp.linspace(-1, 1, made.config.hidden_size))
    layers = {
        name: {"scale": each["scale"] * size} if name in ("input_norm", "post_norm") else each
        for name, each in made.params["layers"].items()
    }
    return dataclasses.replace(made, params=made.params | {"layers": layers})


def started(model, rotated):
    """Parameters, configuration, and turns before they are learned."""
    params, config, turns = model.params, model.config, Turns()
    if rotated:
        params, config = fold_norms(params, config)
        haar = Coordinates.parse("haar")
        turns = start_turns(jax.random.key(1), config, haar, haar)._replace(behind={})
    starts = dict.fromkeys(SITES, Coordinates.parse("balance"))
    scales = start_scales(params, config, jnp.asarray(FIT), turns, starts)
    return params, config, turns._replace(scales=scales)


@pytest.mark.parametrize("rotated", [False, True])
def test_hooks_read_as_what_a_plan_merges(model, rotated):
    params, config, turns = started(model, rotated)
    plan = Plan.parse((ROTATED if rotated else "") + SCALED)
    made = quantize(jax.random.key(0), model, plan, turns.stats(2))
    hooks = turned_inputs(config, turns, INT4, INT4)
    want = np.asarray(token_nll(params, config, jnp.asarray(TEST), hooks))
    exact = np.asarray(token_nll(params, config, jnp.asarray(TEST)))
    lost = np.abs(want - exact).mean()
    assert lost > 1e-3
    # in fp32 an element may fall on the other side of a border
    assert np.abs(np.asarray(score(made, TEST).nll) - want).mean() < 0.1 * lost


@pytest.mark.parametrize("rotated", [False, True])
def test_the_start_is_what_balance_fits(model, rotated):
    """Without rotations, the plan `balance` merges the same scales."""
    params, config, turns = started(model, rotated)
    for site in SITES:
        width = config.num_key_value_heads * config.head_dim
        logs = np.asarray(turns.scales[site])
        assert logs.shape[1] == (width if site == "o_proj" else logs.shape[1])
        assert_allclose(logs.mean(1), 0, atol=1e-5)
    if rotated:
        return
    plan = Plan.parse(SCALED.replace("learned_scales:steps=20:rate=0.05", "balance"))
    learned = quantize(jax.random.key(0), model, Plan.parse(SCALED), turns.stats(2))
    fitted = quantize(jax.random.key(0), model, plan, calibrate(model, FIT, plan))
    for name in ("input_norm", "post_norm"):
        a, b = (np.asarray(m.params["layers"][name]["scale"]) for m in (learned, fitted))
        assert_allclose(a, b, rtol=1e-3)
    assert_allclose(score(learned, TEST).nll.mean(), score(fitted, TEST).nll.mean(), atol=0.05)


@pytest.mark.parametrize("rotated", [False, True])
def test_learning_lowers_the_divergence_from_every_start(model, rotated):
    plan = Plan.parse(
        (ROTATED if rotated else "") + SCALED.replace("rate=0.05", "rate=0.05:start=identity")
    )
    key = jax.random.key(2)
    stats = calibrate(model, FIT, plan, key=key)
    params, config, turns = started(model, rotated)
    same = dataclasses.replace(model, params=params, config=config)
    hidden = jnp.asarray(reference(same, FIT).hidden)

    def loss(scales, whole):
        here = turns._replace(scales=scales)
        if rotated:
            values = jnp.stack([layer["learned:values"] for layer in stats.layers])
            here = here._replace(
                residual=dataclasses.replace(turns.residual, entries=whole),
                values=dataclasses.replace(turns.values, entries=values),
            )
        return float(divergence(params, config, jnp.asarray(FIT), hidden, here, INT4, INT4))

    found = {
        site: jnp.log(jnp.stack([layer[f"learned_scale:input:{site}"] for layer in stats.layers]))
        for site in SITES
    }
    none = jax.tree.map(jnp.zeros_like, found)
    whole = stats.whole.get("learned:residual")
    assert loss(found, whole) < 0.9 * loss(none, whole)
    assert all(float(jnp.abs(logs).max()) > 0.02 for logs in found.values())
    if rotated:
        assert_allclose(whole @ whole.T, np.eye(len(whole)), atol=1e-5)


def test_scales_of_a_plan_merge_and_are_kept(model, tmp_path):
    plan = Plan.parse(SCALED)
    assert describe(plan, model.config).costs.online_fmas == 0
    behind = Plan.parse(SCALED.replace("rate=0.05/", "rate=0.05@hadamard/"))
    key = jax.random.key(0)
    stats, again = (calibrate(model, FIT, behind, key=key, cache=tmp_path) for _ in range(2))
    for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(again), strict=True):
        assert_array_equal(a, b)
    made = quantize(key, model, behind, stats)
    assert np.isfinite(np.asarray(score(made, TEST).nll)).all()
    assert Plan.parse(str(behind)) == behind
    with pytest.raises(ValueError, match="stats must hold learned_scale:input:q_proj"):
        quantize(key, model, plan, calibrate(model, FIT, Plan()))


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ("input: hadamard@learned_scales/absmax bits=4", "must have learned_scales as its first"),
        ("input[0]: learned_scales/absmax bits=4", "the same in all layers"),
        ("input: learned_scales/absmax bits=4; input:q_proj: learned_scales:steps=10/absmax bits=4",
         "must have the same steps and rate"),
        ("residual: learned:steps=10; values: learned:steps=10; " + SCALED,
         "must have the same steps, got 10 and 20"),
        ("input: balance/absmax bits=4; input:q_proj: learned_scales/absmax bits=4",
         "input:o_proj must have drawn coordinates"),
        ("input: learned_scales:start=hadamard/absmax bits=4", "must start diagonal"),
        ("input: learned_scales:start=smooth/absmax bits=4", "must be given|must hold vectors"),
        ("input:o_proj: learned_scales/absmax bits=4", "input:q_proj must be quantized"),
        ("input: learned_scales/lloyd_max:fitted bits=4", "must hold vectors"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_is_refused(model, plan, words):
    with pytest.raises(ValueError, match=words):
        calibrate(model, FIT, Plan.parse(plan), key=jax.random.key(0))
