"""What a plan learns on the loss of the whole model, and the checks of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from isojax._core.members import Stage
from isojax.quantize.learn_turns import CHECKS
from isojax.quantize.parts import (
    INPUT_PLACES,
    LEARNED,
    LEARNED_SCALE,
    WEIGHT_PLACES,
    Part,
    recipe_of,
)
from isojax.quantize.plan import Plan
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

    @property
    def stages(self) -> list[Stage]:
        """All of them."""
        return [*([] if self.rotation is None else [self.rotation]), *self.scales.values()]


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
    learned = Learned(_rotation(plan, layers), _scales(plan, layers))
    if learned.stages:
        _check_quantized(plan, layers, learned)
    for name, stages in (("steps", learned.stages), ("rate", list(learned.scales.values()))):
        if len({stage.arguments[name] for stage in stages}) > 1:
            raise ValueError(f"learned stages must have the same {name}, got {_listed(stages)}.")
    for stage in learned.stages:
        steps, rate = stage.arguments["steps"], stage.arguments["rate"]
        if steps < 1 or steps % CHECKS:
            raise ValueError(f"steps of {stage.name} must be a multiple of {CHECKS}, got {steps}.")
        if not rate > 0:
            raise ValueError(f"rate of {stage.name} must be above 0, got {rate}.")
    return learned


def drawn_coordinates(plan: Plan, site: str, layers: int) -> Coordinates:
    """The coordinates of an input behind its learned scales, those of its first layer."""
    return _parted(plan.at(f"input:{site}", layers)[0])[1]


def exact(part: Part | None) -> bool:
    """Whether a part does not quantize."""
    return part is None or recipe_of(part).levels.exact


def _rotation(plan: Plan, layers: int) -> Stage | None:
    turned: Any = [plan.whole("residual"), *plan.at("values", layers)]
    if not any(part is not None and LEARNED in part.coordinates.needs for part in turned):
        return None
    if len(set(map(str, turned))) > 1 or len(turned[0].coordinates.stages) > 1:
        raise ValueError(
            "residual and values of all layers must be learned together, as `learned` with the "
            f"same arguments; got {_listed(turned)}."
        )
    stage = turned[0].coordinates.stages[0]
    for what, drawn in (
        ("the start of learned", Coordinates.parse(stage.arguments["start"])),
        ("input:down_proj with learned rotations", drawn_coordinates(plan, "down_proj", layers)),
    ):
        if drawn.needs:
            raise ValueError(f"{what} must have random coordinates, got {drawn}.")
    return stage


def _scales(plan: Plan, layers: int) -> dict[str, Stage]:
    inputs: dict[str, Any] = {place: plan.at(place, layers) for place in INPUT_PLACES}
    every = [part for parts in inputs.values() for part in parts]
    if not any(part is not None and LEARNED_SCALE in part.recipe.needs for part in every):
        return {}
    found: dict[str, Stage] = {}
    for place, parts in inputs.items():
        if len(set(map(str, parts))) > 1:
            raise ValueError(
                f"{place} must be the same in all layers where scales are learned: "
                f"{_listed(parts)}."
            )
        scales, drawn = _parted(parts[0])
        if drawn.needs:
            raise ValueError(
                f"{place} must have learned_scales first and drawn coordinates behind, or drawn "
                f"ones alone, where scales are learned; got {parts[0]}."
            )
        if scales is not None:
            found[place.removeprefix("input:")] = scales
    for part in every:
        if part is not None and part.recipe.centre:
            raise ValueError(f"inputs must not be centred where scales are learned, got {part}.")
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


def _check_quantized(plan: Plan, layers: int, learned: Learned) -> None:
    """Whether what is learned sees the quantizers of the plan, without samples."""
    seen = ("input:q_proj", "weight:q_proj") if learned.scales else ("input:q_proj",)
    first: dict[str, Any] = {place: plan.at(place, layers)[0] for place in seen}
    if learned.scales:
        for name, places in (("inputs", INPUT_PLACES), ("weights", WEIGHT_PLACES)):
            every: list[Any] = [part for place in places for part in plan.at(place, layers)]
            said = {"none" if exact(p) else f"{p.recipe.levels} bits={p.bits}" for p in every}
            if len(said) > 1:
                raise ValueError(
                    f"all {name} must be quantized alike where scales are learned, got "
                    f"{_listed(said)}."
                )
            for part in every:
                if name == "weights" and part is not None and part.recipe.coordinates.stages:
                    raise ValueError(
                        f"weights must have no coordinates with learned_scales, got {part}."
                    )
    if all(map(exact, first.values())):
        what = "inputs or weights" if learned.scales else "input:q_proj"
        raise ValueError(f"{what} must be quantized where transforms are learned, got none.")
    for place, part in first.items():
        if not exact(part) and part.recipe.levels.needs:
            raise ValueError(
                f"{place} must have levels that need no samples where transforms are learned, got "
                f"{part.recipe.levels}."
            )


def _parted(part: Any) -> tuple[Stage | None, Coordinates]:
    """The learned scales of an input, None without, and the coordinates behind them."""
    stages = () if part is None else part.recipe.coordinates.stages
    if stages and LEARNED_SCALE in stages[0].member.facts.get("fitted", ()):
        return stages[0], Coordinates(stages[1:])
    return None, Coordinates(stages)


def _listed(parts: Iterable[Any]) -> str:
    return ", ".join(sorted({"none" if part is None else str(part) for part in parts}))
