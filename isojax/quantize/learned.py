"""The rotations and scales of a plan that are learned on the loss of the whole model."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from isojax import quantizers
from isojax._core.samples import identity_samples
from isojax.models import LanguageModel, fold_norms
from isojax.quantize.check_learned import check_learned, drawn_coordinates, exact
from isojax.quantize.learn_turns import learn_turns, start_scales, start_turns
from isojax.quantize.plan import Plan
from isojax.quantize.score import reference
from isojax.quantize.stats import Stats
from isojax.quantize.turns import Turns
from isojax.recipes import Coordinates


def learned_stats(key: Key[Array, ""], model: LanguageModel, windows: Any, plan: Plan) -> Stats:
    """Learn the rotations and scales of a plan, by `learn_turns`.

    The arguments of `learned` and `learned_scales` set starts, steps and rates. All inputs are
    quantized like that of q, k and v in the plan. With rotations alone, weights are exact and only
    the input of down_proj has the coordinates of the plan; where scales are learned, all inputs
    have theirs, drawn anew in each step, and weights are quantized to nearest.

    Args:
        key: draws the start, and the windows.
        model: unquantized.
        windows: token ids [n, t] to learn from.
        plan: with `learned` or `learned_scales`.

    Raises:
        ValueError: as `check_learned`; or levels or coordinates of the plan are fitted.
    """
    number = model.config.num_hidden_layers
    learned = check_learned(plan, number)
    if not learned.stages:
        return Stats(({},) * number)
    budget: dict[str, Any] = {"rate": 0.0}
    params, config, turns, redrawn = model.params, model.config, Turns(), ()
    keys, windows = jax.random.split(key), jnp.asarray(windows)
    if learned.rotation is not None:
        own = learned.rotation.arguments
        budget = {name: own[name] for name in ("steps", "rate")}
        params, config = fold_norms(params, config)
        down = drawn_coordinates(plan, "down_proj", number)
        turns = start_turns(keys[0], config, Coordinates.parse(own["start"]), down)
    if learned.scales:
        own = next(iter(learned.scales.values())).arguments
        budget |= {"steps": own["steps"], "scale_rate": own["rate"]}
        redrawn = tuple(
            (site, drawn_coordinates(plan, site, number), width)
            for site, width in config.widths.items()
        )
        starts = {
            site: Coordinates.parse(stage.arguments["start"])
            for site, stage in learned.scales.items()
        }
        turns = turns._replace(behind={})
        turns = turns._replace(scales=start_scales(params, config, windows, turns, starts))
    folded = dataclasses.replace(model, params=params, config=config)
    hidden = jnp.asarray(reference(folded, windows).hidden)
    inputs = _through(plan.at("input:q_proj", number)[0], config.hidden_size)
    weight = plan.at("weight:q_proj", number)[0] if learned.scales else None
    weights = _through(weight, config.hidden_size)
    given = params, config, windows, hidden, turns, inputs, weights
    found = learn_turns(keys[1], *given, **budget, redrawn=redrawn)
    return found._replace(behind={}).stats(number)


def _through(part: Any, width: int) -> quantizers.Quantizer | None:
    """The quantizer of a part with gradients, those of its scales too if they are in fp32."""
    if exact(part):
        return None
    made = part.recipe.levels.fit(identity_samples(width), part.bits)
    scale = jax.eval_shape(made.encode, jax.ShapeDtypeStruct((1, width), jnp.float32)).scale
    real = scale is not None and scale.dtype == jnp.float32
    return quantizers.straight_through(made, scales="learned" if real else "held")
