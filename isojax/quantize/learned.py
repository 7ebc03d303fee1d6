"""The rotations and scales of a plan that are learned on the loss of the whole model."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from isojax import quantizers
from isojax._core.samples import identity_samples
from isojax.models import LanguageModel, fold_norms
from isojax.quantize.learn_turns import learn_turns, start_scales, start_turns
from isojax.quantize.parts import LEARNED_SCALE, SITES, is_learned
from isojax.quantize.plan import Plan
from isojax.quantize.score import reference
from isojax.quantize.stats import Stats
from isojax.quantize.turns import Turns
from isojax.recipes import Coordinates


def check_learned(plan: Plan, layers: int) -> bool:
    """Whether the rotations of the residual stream and of values in a plan are learned.

    Raises:
        ValueError: only one of the two is learned, or their arguments differ; or inputs are not
            quantized.
    """
    turned = [plan.whole("residual"), *plan.at("values", layers)]
    if not any(map(is_learned, turned)):
        return False
    stages = {str(part) if part else "none" for part in turned}
    if len(stages) > 1 or len(turned[0].coordinates.stages) > 1:
        raise ValueError(
            "residual and values of all layers must be learned together, as `learned` with the "
            f"same arguments; got {', '.join(sorted(stages))}."
        )
    _check_quantized(plan, layers)
    return True


def scaled_inputs(plan: Plan, layers: int) -> dict[str, Any]:
    """The stages `learned_scales` in front of inputs, by input.

    Raises:
        ValueError: layers differ, the stage is not the first, or arguments differ.
    """
    found = {}
    for site in SITES:
        parts: Any = plan.at(f"input:{site}", layers)
        if not any(part is not None and LEARNED_SCALE in part.recipe.needs for part in parts):
            continue
        texts = {str(part) if part else "none" for part in parts}
        stages = [] if len(texts) > 1 else parts[0].recipe.coordinates.stages
        if not stages or LEARNED_SCALE not in stages[0].member.facts.get("fitted", ()):
            raise ValueError(
                f"input:{site} must have learned_scales as its first stage, and the same in all "
                f"layers; got {', '.join(sorted(texts))}."
            )
        found[site] = stages[0]
    if found:
        _check_quantized(plan, layers)
    budgets = {(s.arguments["steps"], s.arguments["rate"]) for s in found.values()}
    if len(budgets) > 1:
        raise ValueError(
            "learned_scales must have the same steps and rate at all inputs, got "
            f"{', '.join(sorted({str(stage) for stage in found.values()}))}."
        )
    return found


def learned_stats(key: Key[Array, ""], model: LanguageModel, windows: Any, plan: Plan) -> Stats:
    """Learn the rotations and scales of a plan, by `learn_turns`.

    The arguments of `learned` and `learned_scales` set starts, steps and rates. All inputs are
    quantized like that of q, k and v in the plan. Where scales are learned, all weights are
    quantized like that of q, to nearest; otherwise they are exact. Coordinates behind the learned
    ones are those of the plan, drawn with keys of their own.

    Args:
        key: draws the start, and the windows.
        model: unquantized.
        windows: token ids [n, t] to learn from.
        plan: with `learned` or `learned_scales`.

    Raises:
        ValueError: only one rotation is learned, or arguments differ; inputs are not quantized, or
            have fitted levels or coordinates; or another place in the plan is learned.
    """
    number = model.config.num_hidden_layers
    rotated, scaled = check_learned(plan, number), scaled_inputs(plan, number)
    if not rotated and not scaled:
        return Stats(({},) * number)
    budget: Any = {"steps": 0, "rate": 0.0}
    params, config = model.params, model.config
    keys = jax.random.split(key)
    behind = {}
    if scaled:
        widths = dict.fromkeys(SITES, config.hidden_size) | {
            "o_proj": config.num_attention_heads * config.head_dim,
            "down_proj": config.intermediate_size,
        }
        behind = {
            site: _online(plan, site, number).draw(jax.random.fold_in(keys[0], i), widths[site])
            for i, site in enumerate(SITES)
        }
    turns = Turns(behind=behind)
    if rotated:
        own = plan.whole("residual").coordinates.stages[0].arguments
        budget |= {name: own[name] for name in ("steps", "rate")}
        params, config = fold_norms(params, config)
        down = _online(plan, "down_proj", number)
        start = start_turns(keys[0], config, Coordinates.parse(own["start"]), down)
        turns = start._replace(behind=behind | start.behind)
    windows = jnp.asarray(windows)
    if scaled:
        own = next(iter(scaled.values())).arguments
        if budget["steps"] not in (0, own["steps"]):
            raise ValueError(
                f"learned and learned_scales must have the same steps, got {budget['steps']} and "
                f"{own['steps']}."
            )
        budget |= {"steps": own["steps"], "scale_rate": own["rate"]}
        starts = {site: Coordinates.parse(s.arguments["start"]) for site, s in scaled.items()}
        turns = turns._replace(scales=start_scales(params, config, windows, turns, starts))
    exact = dataclasses.replace(model, params=params, config=config)
    hidden = jnp.asarray(reference(exact, windows).hidden)
    through = functools.partial(quantizers.straight_through, scales="learned")
    read: Any = plan.at("input:q_proj", number)[0]
    weight: Any = plan.at("weight:q_proj", number)[0] if scaled else None
    samples = identity_samples(config.hidden_size)
    inputs, weights = (
        None if part is None else through(part.recipe.levels.fit(samples, part.bits))
        for part in (read, weight)
    )
    given = params, config, windows, hidden, turns, inputs, weights
    return learn_turns(keys[1], *given, **budget)._replace(behind={}).stats(number)


def _check_quantized(plan: Plan, layers: int) -> None:
    if plan.at("input:q_proj", layers)[0] is None:
        raise ValueError("input:q_proj must be quantized where transforms are learned, got none.")


def _online(plan: Plan, site: str, layers: int) -> Coordinates:
    """The coordinates of an input without learned scales, those of its first layer."""
    part: Any = plan.at(f"input:{site}", layers)[0]
    stages = () if part is None else part.recipe.coordinates.stages
    if stages and LEARNED_SCALE in stages[0].member.facts.get("fitted", ()):
        stages = stages[1:]
    online = Coordinates(stages)
    if online.needs:
        raise ValueError(
            f"input:{site} must have drawn coordinates where others are learned, got {online}."
        )
    return online
