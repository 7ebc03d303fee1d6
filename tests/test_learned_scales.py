"""Scales learned on the loss of the whole model, alone and with rotations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from small_models import small_model

from isojax import quantizers
from isojax.learn import balance_scale
from isojax.models import Site, fold_norms, forward, token_nll
from isojax.quantize import Plan, calibrate, describe, quantize, reference, score
from isojax.quantize.check_learned import check_learned
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
        turns = start_turns(jax.random.key(1), config, haar, haar)
    starts = {site: Coordinates.parse("balance") for site in SITES if site not in turns.behind}
    scales = start_scales(params, config, jnp.asarray(FIT), turns, starts)
    return params, config, turns._replace(scales=scales)


@pytest.mark.parametrize("rotated", [False, True])
def test_hooks_read_as_what_a_plan_merges(model, rotated):
    params, config, turns = started(model, rotated)
    given = ROTATED + SCALED + "; input:down_proj: learned/absmax bits=4" if rotated else SCALED
    made = quantize(jax.random.key(0), model, Plan.parse(given), turns.stats(2))
    hooks = turned_inputs(config, turns, INT4, INT4)
    want = np.asarray(token_nll(params, config, jnp.asarray(TEST), hooks))
    exact = np.asarray(token_nll(params, config, jnp.asarray(TEST)))
    lost = np.abs(want - exact).mean()
    assert lost > 1e-3
    # in fp32 an element may fall on the other side of a border
    assert np.abs(np.asarray(score(made, TEST).nll) - want).mean() < 0.1 * lost


@pytest.mark.parametrize("rotated", [False, True])
def test_the_start_is_what_balance_fits_in_rotated_coordinates(model, rotated):
    params, config, turns = started(model, rotated)
    turn = np.asarray(turns.residual.entries) if rotated else np.eye(config.hidden_size)
    sites = tuple(Site("input:q_proj", i) for i in range(2))
    seen = forward(params, config, jnp.asarray(FIT), capture=sites).captured["input:q_proj"]
    for i in range(2):
        x = np.asarray(seen[i]).reshape(-1, config.hidden_size) @ turn
        kernels = [params["layers"][name]["kernel"][i] for name in ("q_proj", "k_proj", "v_proj")]
        w = turn.T @ np.concatenate(kernels, 1)
        want = balance_scale(*(jnp.asarray(np.sqrt((m**2).mean(a))) for m, a in ((x, 0), (w, 1))))
        assert_allclose(np.exp(turns.scales["q_proj"][i]), want, rtol=1e-3)


def test_the_start_merges_as_the_plan_balance(model):
    _, _, turns = started(model, False)
    plan = Plan.parse(SCALED.replace("learned_scales:steps=20:rate=0.05", "balance"))
    learned = quantize(jax.random.key(0), model, Plan.parse(SCALED), turns.stats(2))
    fitted = quantize(jax.random.key(0), model, plan, calibrate(model, FIT, plan))
    for a, b in zip(*(jax.tree.leaves(m.params["layers"]["input_norm"]) for m in (learned, fitted)),
                    strict=True):  # fmt: skip
        assert_allclose(a, b, rtol=1e-3)
    for name in ("v_proj", "up_proj", "down_proj"):  # weights that write or read a scaled input
        a, b = (np.asarray(m.params["layers"][name]["kernel"]) for m in (learned, fitted))
        assert np.mean(np.abs(a - b) > 1e-2 * np.abs(b).max()) < 0.01


@pytest.mark.parametrize(
    "rotated, start", [(False, "identity"), (False, "balance"), (True, "identity")]
)
def test_learning_lowers_the_divergence(model, rotated, start):
    learned = SCALED.replace("rate=0.05", f"rate=0.05:start={start}")
    stats = calibrate(
        model, FIT, Plan.parse((ROTATED if rotated else "") + learned), key=jax.random.key(2)
    )
    params, config, turns = started(model, rotated)
    same = dataclasses.replace(model, params=params, config=config)
    hidden = jnp.asarray(reference(same, FIT).hidden)
    whole = stats.whole.get("learned:residual")

    def loss(scales):
        here = turns._replace(scales=scales, behind={})
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
    assert loss(found) < 0.9 * loss(jax.tree.map(jnp.zeros_like, found))
    assert all(float(jnp.abs(logs).max()) > 0.02 for logs in found.values())
    if rotated:  # from a Hadamard matrix, whose entries have one size
        assert_allclose(whole @ whole.T, np.eye(len(whole)), atol=1e-5)
        assert np.abs(whole).std() > 1e-3


def test_scales_of_a_plan_merge_and_are_kept(model, tmp_path):
    plan = Plan.parse(SCALED)
    assert describe(plan, model.config).costs.online_fmas == 0
    behind = Plan.parse(SCALED.replace("rate=0.05/", "rate=0.05@hadamard/"))
    key = jax.random.key(0)
    stats, again, kept = (
        calibrate(model, FIT, behind, key=key, cache=cache) for cache in (None, tmp_path, tmp_path)
    )
    for one in (again, kept):
        for name, value in stats.layers[1].items():
            assert_array_equal(one.layers[1][name], value)
    made = quantize(key, model, behind, stats)
    assert np.isfinite(np.asarray(score(made, TEST).nll)).all()
    assert Plan.parse(str(behind)) == behind
    with pytest.raises(ValueError, match="stats must hold learned_scale:input:q_proj"):
        quantize(key, model, plan, calibrate(model, FIT, Plan()))


@pytest.mark.parametrize("levels", ["absmax:range=mse bits=4", "mxfp4 bits=4", "none"])
def test_other_levels_learn_too(model, levels):
    levels = f"input: learned_scales:steps=10@hadamard/{levels}; weight: absmax bits=4"
    stats = calibrate(model, FIT, Plan.parse(levels), key=jax.random.key(0))
    scale = stats.layers[0]["learned_scale:input:gate_proj"]
    assert np.isfinite(scale).all() and np.std(scale) > 0


LEARNED = "input: learned_scales/absmax bits=4"
TWO = "residual: learned:steps=10; values: learned:steps=10; "


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ("input: hadamard@learned_scales/absmax bits=4", "must have learned_scales first"),
        ("input[0]: learned_scales/absmax bits=4", "the same in all layers"),
        (LEARNED + "; input:q_proj: learned_scales:steps=10/absmax bits=4", "have the same steps"),
        (TWO + SCALED, "must have the same steps, got learned:steps=10, learned_scales:steps=20"),
        (LEARNED + "; input:o_proj: balance/absmax bits=4", "input:o_proj must have learned_"),
        ("input: learned_scales:start=hadamard/absmax bits=4", "must start with a diagonal"),
        ("input: learned_scales:start=smooth/absmax bits=4", "must start with a diagonal"),
        ("input:o_proj: learned_scales/absmax bits=4", "all inputs must be quantized alike"),
        (LEARNED + "; input:down_proj: absmax bits=8", "all inputs must be quantized alike"),
        (LEARNED + "; weight: absmax bits=4; weight[0]: absmax bits=8", "all weights must be"),
        (LEARNED + "; weight: hadamard/absmax bits=4", "weights must have no coordinates"),
        (LEARNED + "; residual: hadamard", "residual must be learned too"),
        (LEARNED + "; values: haar", "values must be learned too"),
        (LEARNED + "; values[1:]: haar", "values must be learned too"),
        (TWO + "input: balance/absmax bits=4", "input:down_proj with learned rotations must have"),
        (TWO.replace("steps", "start=pca:steps") + LEARNED, "the start of learned must have"),
        ("input: centre@learned_scales/absmax bits=4", "must not be centred"),
        ("input: learned_scales/lloyd_max:fitted bits=4", "must have levels that need no samples"),
        ("input: learned_scales", "inputs or weights must be quantized"),
        ("weight: learned_scales/absmax bits=4", "weight:q_proj cannot be learned"),
        ("residual: learned_scales; values: learned_scales", "residual cannot be learned"),
        ("input: learned/absmax bits=4", "input:q_proj cannot be learned"),
        ("input: learned_scales:steps=15/absmax bits=4", "must be a multiple of 10, got 15"),
        ("input: learned_scales:rate=0/absmax bits=4", "must be above 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_is_refused(model, plan, words):
    with pytest.raises(ValueError, match=words):
        check_learned(Plan.parse(plan), 2)
