"""Checks of plans: for contradictions, alone or with an already quantized model."""

from __future__ import annotations

from isojax.quantize.parts import INPUT_PLACES, TABLES, Cached, Turn, recipe_of
from isojax.quantize.plan import Plan
from isojax.quantize.quantized import ByLayer, Quantized


def check_plan(plan: Plan, layers: int, turn: ByLayer | None = None) -> None:
    """Raise `ValueError` for a plan whose parts contradict each other.

    Args:
        plan: to check.
        layers: of the model.
        turn: the turn of queries and keys that the model has already.

    Raises:
        ValueError: keys are turned after the rotary embedding, and their store inverts it.
    """
    parts = plan.at("queries_keys", layers)
    for i, keys in enumerate(plan.at("cache:keys", layers)):
        part = parts[i]
        own = isinstance(part, Turn) and bool(part.coordinates.stages)
        turned = own or (turn is not None and turn.group[i] >= 0)
        if turned and isinstance(keys, Cached):
            recipe = keys.recipe
            if (recipe.offset, recipe.rope) != ("none", "after"):
                hint = ": add the rule queries_keys: none" if own else ""
                raise ValueError(
                    "cache:keys must not undo the rotary embedding after a turn of queries_keys, "
                    f"got {recipe}{hint}."
                )


def check_added(plan: Plan, base: Quantized) -> None:
    """Raise `ValueError` for a plan that cannot be added to a quantized model.

    Raises:
        ValueError: as `check_plan`; or a place is quantized already, or must come before one that
            is.
    """
    check_plan(plan, base.config.num_hidden_layers, base.turn)
    taken = {name if name in TABLES else f"weight:{name}" for name in base.codes}
    taken |= set(base.shared) | ({"queries_keys"} if base.turn is not None else set())
    taken |= {f"cache:{side}" for side in ("keys", "values") if getattr(base, side) is not None}
    for place, later in (
        ("values", "input:o_proj"), ("values", "cache:values"), ("queries_keys", "cache:keys"),
    ):  # fmt: skip
        if place in plan.places and later in taken:
            raise ValueError(f"{place} must be turned before {later} is quantized.")
    o_proj = plan.at("input:o_proj", base.config.num_hidden_layers)
    chains = [recipe_of(part).coordinates.stages for part in o_proj if part is not None]
    if base.values is not None and any(c and c[0].member.facts.get("diagonal") for c in chains):
        raise ValueError("input:o_proj must scale values before cache:values is quantized.")
    again = sorted(taken & plan.places)
    if again:
        raise ValueError(f"the model is quantized at {', '.join(again)} already.")
    if "residual" in plan.places and (base.codes or taken & set(INPUT_PLACES)):
        raise ValueError("residual must be turned before weights or inputs are quantized.")
