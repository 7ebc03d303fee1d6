"""The rotations and scales of a plan that are learned on the loss of the whole model."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from isojax import quantizers
from isojax._core.members import Stage
from isojax._core.samples import identity_samples
from isojax.models import LanguageModel, ModelConfig, fold_norms
from isojax.quantize.learn_turns import CHECKS, Redrawn, learn_turns, start_scales, start_turns
from isojax.quantize.parts import (
    INPUT_PLACES,
    LEARNED,
    LEARNED_SCALE,
    SITES,
    WEIGHT_PLACES,
    Part,
    recipe_of,
)
from isojax.quantize.plan import Plan
from isojax.quantize.score import reference
from isojax.quantize.stats import Stats
from isojax.quantize.turns import Turns
from isojax.recipes import Coordinates


class Learned(NamedTuple):
    """The stages of a plan that are learned on the loss of the model.

    Attributes:
        rotation: `learned`, of the residual stream and the values; None without.
        scales: `learned_scales` in front of inputs, by `q_proj`, `o_proj`, `gate_proj`,
            `down_proj`.
    """

    rotation: Stage | None
    scales: dict[str, Stage]


def check_learned(plan: Plan, layers: int) -> Learned:
    """What a plan learns on the loss of the model.

    Raises:
        ValueError: a learned stage stands where none can be learned, or only one of the two
            rotations is learned; scales stand behind another stage or a rotation that is not
            learned; arguments, layers or quantizers differ where they must agree; or nothing is
            quantized.
    """
    for place, parts in plan.parts.items():
        for part in filter(None, parts):
            needs = recipe_of(part).needs
            if (LEARNED in needs and place not in ("residual", "values")) or (
                LEARNED_SCALE in needs and place not in INPUT_PLACES
            ):
                raise ValueError(
                    f"{place} cannot be learned on the loss, got {part}: residual and values can, "
                    "by learned, and inputs, by learned_scales."
                )
    rotation, scales = _rotation(plan, layers), _scales(plan, layers)
    if rotation is not None and not scales and _exact(plan.at("input:q_proj", layers)[0]):
        raise ValueError("input:q_proj must be quantized where rotations are learned, got none.")
    stages = [*([] if rotation is None else [rotation]), *scales.values()]
    for name, every in (("steps", stages), ("rate", list(scales.values()))):
        if len({stage.arguments[name] for stage in every}) > 1:
            given = ", ".join(sorted({str(stage) for stage in every}))
            raise ValueError(f"learned stages must have the same {name}, got {given}.")
    places = ("input:q_proj", "weight:q_proj") if scales else ("input:q_proj",) if rotation else ()
    for place in places:
        part: Any = plan.at(place, layers)[0]
        if not _exact(part) and part.recipe.levels.needs:
            raise ValueError(
                f"{place} must have levels that need no samples where transforms are learned, got "
                f"{part.recipe.levels}."
            )
    for stage in stages:
        steps, rate = stage.arguments["steps"], stage.arguments["rate"]
        if steps < 1 or steps % CHECKS:
            raise ValueError(f"steps of {stage.name} must be a multiple of {CHECKS}, got {steps}.")
        if not rate > 0:
            raise ValueError(f"rate of {stage.name} must be above 0, got {rate}.")
    return Learned(rotation, scales)


def _rotation(plan: Plan, layers: int) -> Stage | None:
    turned: Any = [plan.whole("residual"), *plan.at("values", layers)]
    if not any(part is not None and LEARNED in part.coordinates.needs for part in turned):
        return None
    stages = {str(part) if part else "none" for part in turned}
    if len(stages) > 1 or len(turned[0].coordinates.stages) > 1:
        raise ValueError(
            "residual and values of all layers must be learned together, as `learned` with the "
            f"same arguments; got {', '.join(sorted(stages))}."
        )
    stage, online = turned[0].coordinates.stages[0], _online(plan, "down_proj", layers)
    for what, drawn in (
        ("the start of learned", Coordinates.parse(stage.arguments["start"])),
        ("input:down_proj with learned rotations", online),
    ):
        if drawn.needs:
            raise ValueError(f"{what} must have random coordinates, got {drawn}.")
    return stage


def _scales(plan: Plan, layers: int) -> dict[str, Stage]:
    found: dict[str, Stage] = {}
    quantized: dict[str, Any] = {
        place: plan.at(place, layers) for place in (*INPUT_PLACES, *WEIGHT_PLACES)
    }
    inputs = [part for place in INPUT_PLACES for part in quantized[place]]
    if not any(part is not None and LEARNED_SCALE in part.recipe.needs for part in inputs):
        return found
    for place in INPUT_PLACES:
        stages = _same(place, quantized[place])
        stages = () if stages is None else stages.recipe.coordinates.stages
        if stages and _is_scales(stages[0]):
            found[place.removeprefix("input:")] = stages[0]
        if Coordinates(stages[bool(stages) and _is_scales(stages[0]) :]).needs:
            raise ValueError(
                f"{place} must have learned_scales first and drawn coordinates behind, or drawn "
                f"ones alone, where scales are learned; got {quantized[place][0]}."
            )
    for name, places in (("inputs", INPUT_PLACES), ("weights", WEIGHT_PLACES)):
        every = [part for place in places for part in quantized[place]]
        said = {"none" if _exact(p) else f"{p.recipe.levels} bits={p.bits}" for p in every}
        if len(said) > 1:
            raise ValueError(
                f"all {name} must be quantized alike where scales are learned, got "
                f"{', '.join(sorted(said))}."
            )
    weights = [part for place in WEIGHT_PLACES for part in quantized[place]]
    if _exact(inputs[0]) and _exact(weights[0]):
        raise ValueError("inputs or weights must be quantized where scales are learned, got none.")
    if any(part is not None and part.recipe.coordinates.stages for part in weights):
        raise ValueError(f"weights must have no coordinates with learned_scales, got {weights[0]}.")
    if any(part is not None and part.recipe.centre for part in inputs):
        raise ValueError(f"inputs must not be centred where scales are learned, got {inputs[0]}.")
    turned = [("residual", plan.whole("residual"))]
    turned += [("values", part) for part in plan.at("values", layers)]
    for place, part in turned:
        if part is not None and LEARNED not in recipe_of(part).needs:
            raise ValueError(f"{place} must be learned too, or none, with learned_scales: {part}.")
    for stage in found.values():
        start = Coordinates.parse(stage.arguments["start"])
        diagonal = all(s.member.facts.get("diagonal") for s in start.stages)
        if not diagonal or start.needs - {"moment", "metric"}:
            raise ValueError(
                "learned_scales must start with a diagonal of second moments, as balance, or "
                f"identity, got {start}."
            )
    return found


def _same(place: str, parts: Any) -> Any:
    """The part of all layers."""
    if len({str(part) for part in parts}) > 1:
        got = ", ".join(sorted({str(part) if part else "none" for part in parts}))
        raise ValueError(f"{place} must be the same in all layers where scales are learned: {got}.")
    return parts[0]


def _is_scales(stage: Stage) -> bool:
    return LEARNED_SCALE in stage.member.facts.get("fitted", ())


def _exact(part: Part | None) -> bool:
    return part is None or recipe_of(part).levels.exact


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
    if learned.rotation is None and not learned.scales:
        return Stats(({},) * number)
    budget: dict[str, Any] = {"rate": 0.0}
    params, config, turns, redrawn = model.params, model.config, Turns(), ()
    keys, windows = jax.random.split(key), jnp.asarray(windows)
    if learned.rotation is not None:
        own = learned.rotation.arguments
        budget = {name: own[name] for name in ("steps", "rate")}
        params, config = fold_norms(params, config)
        down = _online(plan, "down_proj", number)
        turns = start_turns(keys[0], config, Coordinates.parse(own["start"]), down)
    if learned.scales:
        own = next(iter(learned.scales.values())).arguments
        budget |= {"steps": own["steps"], "scale_rate": own["rate"]}
        redrawn, turns = _behind(plan, config), turns._replace(behind={})
        starts = {
            site: Coordinates.parse(stage.arguments["start"])
            for site, stage in learned.scales.items()
        }
        turns = turns._replace(scales=start_scales(params, config, windows, turns, starts))
    exact = dataclasses.replace(model, params=params, config=config)
    hidden = jnp.asarray(reference(exact, windows).hidden)
    inputs = _through(plan.at("input:q_proj", number)[0], config.hidden_size)
    weight = plan.at("weight:q_proj", number)[0] if learned.scales else None
    weights = _through(weight, config.hidden_size)
    given = params, config, windows, hidden, turns, inputs, weights
    found = learn_turns(keys[1], *given, **budget, redrawn=redrawn)
    return found._replace(behind={}).stats(number)


def _through(part: Any, width: int) -> quantizers.Quantizer | None:
    """The quantizer of a part with gradients, those of its scales too if they are in fp32."""
    if _exact(part):
        return None
    made = part.recipe.levels.fit(identity_samples(width), part.bits)
    scale = jax.eval_shape(made.encode, jax.ShapeDtypeStruct((1, width), jnp.float32)).scale
    real = scale is not None and scale.dtype == jnp.float32
    return quantizers.straight_through(made, scales="learned" if real else "held")


def _behind(plan: Plan, config: ModelConfig) -> Redrawn:
    """The coordinates of all inputs behind learned scales, and their lengths."""
    widths = dict.fromkeys(SITES, config.hidden_size) | {
        "o_proj": config.num_attention_heads * config.head_dim,
        "down_proj": config.intermediate_size,
    }
    layers = config.num_hidden_layers
    return tuple((site, _online(plan, site, layers), widths[site]) for site in SITES)


def _online(plan: Plan, site: str, layers: int) -> Coordinates:
    """The coordinates of an input without learned scales, those of its first layer."""
    part: Any = plan.at(f"input:{site}", layers)[0]
    stages = () if part is None else part.recipe.coordinates.stages
    return Coordinates(stages[bool(stages) and _is_scales(stages[0]) :])
