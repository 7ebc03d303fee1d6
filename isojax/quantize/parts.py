"""Places of a decoder, and the parts of a plan allowed at each."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from isojax._core.checks import check_choice
from isojax._core.members import ROUNDINGS, Stage
from isojax.kvcache.recipe import StoreRecipe
from isojax.models.hooks import INPUTS
from isojax.recipes import Coordinates, Recipe

SITES = tuple(dict.fromkeys(INPUTS.values()))
"""Projections that name an input: q (shared by k and v), o, gate (shared by up), down."""
NORMS = {"q_proj": "input_norm", "gate_proj": "post_norm"}
"""Norms that write an input; its statistics are taken before the scale of the norm."""
TURNS = ("residual", "values", "queries_keys")
INPUT_PLACES = tuple(f"input:{site}" for site in SITES)
WEIGHT_PLACES = tuple(f"weight:{name}" for name in INPUTS)
TABLES = ("embedding", "head")
CACHES = ("cache:keys", "cache:values")
PLACES = (*TURNS, *INPUT_PLACES, *WEIGHT_PLACES, *TABLES, *CACHES)
GROUPS = {"input": INPUT_PLACES, "weight": WEIGHT_PLACES, "cache": CACHES}
"""Names of several places together."""
NEAREST = ROUNDINGS.parse("nearest")
LEARNED, LEARNED_SCALE = "learned", "learned_scale"  # attributes of `Samples`
BEHIND = ("exact", "quantized")
"""Kinds of layers after which statistics may be taken."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """Coordinates of the residual stream, of values, or of queries and keys.

    Attributes:
        coordinates: the transform.
    """

    coordinates: Coordinates

    def __str__(self) -> str:
        return str(self.coordinates)


@dataclasses.dataclass(frozen=True)
class Input:
    """The transform and quantizer of the input of a projection.

    Attributes:
        recipe: the transform, whose inverse merges into the weights, and the levels after it.
        bits: per element.
    """

    recipe: Recipe
    bits: int | float = 0

    def __str__(self) -> str:
        return _words(self.recipe, bits=self.bits)


@dataclasses.dataclass(frozen=True)
class Weight:
    """The codec of a weight.

    Attributes:
        recipe: of the codec of its rows [out, in], along the input.
        bits: per element.
        rounding: `nearest`, or one that minimises the error of the output, as `gptq`.
        inputs: one of `BEHIND`: statistics are taken after `exact` layers, or after `quantized`
            layers, as in the paper of GPTQ.
    """

    recipe: Recipe
    bits: int | float = 0
    rounding: Stage = NEAREST
    inputs: str = BEHIND[0]

    def __str__(self) -> str:
        shown = {} if self.rounding == NEAREST else {"rounding": self.rounding}
        shown |= {} if self.inputs == BEHIND[0] else {"inputs": self.inputs}
        return _words(self.recipe, bits=self.bits, **shown)


@dataclasses.dataclass(frozen=True)
class Cached:
    """The store of keys or values.

    Attributes:
        recipe: of the store.
        bits: per code.
    """

    recipe: StoreRecipe
    bits: int | float = 0

    def __str__(self) -> str:
        first, *settings = str(self.recipe).split(" ")
        return " ".join([*_words(first, bits=self.bits).split(" "), *settings])


Part = Turn | Input | Weight | Cached


def recipe_of(part: Part) -> Recipe:
    """The coordinates and levels of a part."""
    if isinstance(part, Turn):
        return Recipe(part.coordinates)
    return part.recipe.recipe if isinstance(part, Cached) else part.recipe


def is_learned(part: Part | None) -> bool:
    """Whether a part has coordinates learned on the loss of the model."""
    return part is not None and bool({LEARNED, LEARNED_SCALE} & recipe_of(part).needs)


for _part, _leaves, _fixed in (
    (Turn, ["coordinates"], []), (Input, ["recipe"], ["bits"]),
    (Weight, ["recipe", "rounding"], ["bits", "inputs"]), (Cached, ["recipe"], ["bits"]),
):  # fmt: skip
    jax.tree_util.register_dataclass(_part, _leaves, _fixed)


def parse_part(place: str, text: str) -> Part:
    """The part written in `text` for a place: a recipe, then settings as `name=value`.

    Raises:
        ValueError: the recipe or a setting is not allowed there.
    """
    words = text.split()
    if not words:
        raise ValueError(f"{place} must be followed by a recipe, got nothing.")
    first, settings = words[0], {}
    for word in words[1:]:
        name, equals, value = word.partition("=")
        if not equals or name in settings:
            raise ValueError(f"{place}: settings must be name=value, each once; got {word!r}.")
        settings[name] = value
    if place in TURNS:
        _only(place, settings, ())
        return Turn(Coordinates.parse(first))
    recipe = Recipe.parse(first)
    bits = _bits(place, recipe, settings.pop("bits", ""))
    if place in CACHES:
        return Cached(StoreRecipe.of(recipe, settings), bits)
    if place in INPUT_PLACES:
        _only(place, settings, ("bits",))
        return Input(recipe, bits)
    if recipe.centre:
        raise ValueError(
            f"{place} must not be centred, since nothing adds the mean back; got {first!r}."
        )
    rounding = ROUNDINGS.parse(settings.pop("rounding", "nearest"))
    inputs = check_choice(f"{place}: inputs", settings.pop("inputs", BEHIND[0]), BEHIND)
    _only(place, settings, ("bits", "rounding", "inputs"))
    if place in TABLES and rounding.member.facts.get("fitted", ("moment",)):
        raise ValueError(
            f"rounding of {place} must need no statistics, as nearest; got {rounding}."
        )
    if inputs != BEHIND[0] and place in TABLES:
        raise ValueError(f"{place} has no layers before it, got inputs={inputs}.")
    return Weight(recipe, bits, rounding, inputs)


def _only(place: str, settings: dict[str, str], allowed: tuple[str, ...]) -> None:
    for name in settings:
        if not allowed:
            raise ValueError(f"{place} takes no settings, got {name}.")
        check_choice(f"setting of {place}", name, allowed)


def _bits(place: str, recipe: Recipe, text: str) -> int | float:
    """Bits per element; by default the only number that the levels allow."""
    member = recipe.levels.member
    allowed = member.member.facts.get("bits")
    if not text:
        if allowed == ():
            return 0
        if allowed is not None and len(allowed) == 1:
            return allowed[0]
        raise ValueError(f"{place}: bits must be given for {recipe.levels}, as in bits=4.")
    try:
        bits = int(text) if text.isdecimal() else float(text)
    except ValueError:
        raise ValueError(f"{place}: bits must be a number, got {text!r}.") from None
    if allowed == ():
        alone = recipe.coordinates.stages and recipe.levels.exact
        hint = f"; write identity/{recipe.coordinates} if these are levels" if alone else ""
        raise ValueError(f"{place}: {recipe.levels} takes no bits, got bits={text}{hint}.")
    if allowed is not None:
        check_choice(f"{place}: bits of {recipe.levels}", bits, allowed)
    if not bits > 0:
        raise ValueError(f"{place}: bits must be above 0, got {text}.")
    return bits


def _words(recipe: Any, **settings: Any) -> str:
    return " ".join([str(recipe), *(f"{k}={v}" for k, v in settings.items() if v != 0)])
