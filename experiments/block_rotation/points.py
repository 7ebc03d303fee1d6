"""The compared points: plans for inputs and weights of linear layers."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from isojax.quantize import Plan
from isojax.recipes import Coordinates

DOWN = "input:down_proj"
OTHERS = ("input:q_proj", "input:o_proj", "input:gate_proj")
SMOOTHED = ("input:q_proj", "input:gate_proj")  # o_proj's input is left, as in the paper
WEIGHTS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj")
SETTINGS = ("A4-down", "W16A4", "W4A16", "W4A4")
LABELS = ("A4-down", "W16A4", "W4A16", "W4A16, gptq", "W4A4", "W4A4, gptq")
ROUNDINGS = ("nearest", "gptq")
FITTED = ("gptq",)  # roundings that take Hessians
PERMUTATIONS = (
    "none", "random_permutation", "mass_diff", "co_activation", "zigzag", "absmax_order",
)  # fmt: skip
SMOOTH = "smooth:0.5"
# levels of inputs and of weights: one scale per token and row; one per 64 neighbours; the 1% of a
# token's elements with the largest error exact. Scales of int4 weights are those of least squared
# error.
FORMATS = {
    "int4": ("absmax", "absmax:range=mse"),
    "int4sparse": ("absmax@sparse:0.01", "absmax:range=mse"),
    "int4g64": ("absmax:group:64", "absmax:group:64:mse"),
    "fp4": ("fp4", "fp4"),
    "mxfp4": ("mxfp4", "mxfp4"),
    "nvfp4": ("nvfp4", "nvfp4"),
}
# Llama-3.2-1B-Instruct, INT4 weights and activations, WikiText-2 (MixQuant, 2601.22347)
PUBLISHED = {
    "model": "Llama-3.2-1B-Instruct (published)", "text": "wikitext-2", "setting": "W4A4",
    "format": "int4",
}  # fmt: skip
PUBLISHED_BLOCKS = (16, 32, 64, 128, 256, 512)
PUBLISHED_PERPLEXITY = {
    "none": (37.6, 26.5, 22.7, 21.0, 18.7, 17.5),
    "mass_diff": (18.0, 17.2, 16.9, 15.9, 16.1, 16.0),
}


class Point(NamedTuple):
    """A compared point.

    Attributes:
        setting: one of `SETTINGS`: bits of weights and of the inputs of linear layers, or only of
            down_proj's input.
        rounding: of weights; `none` where they are exact.
        format: one of `FORMATS`.
        coordinates: in front of down_proj; `smooth:0.5` is SmoothQuant in place of all rotations.
    """

    setting: str
    rounding: str
    format: str
    coordinates: str


def settings(names: tuple[str, ...], roundings: tuple[str, ...]) -> list[list[tuple[str, str]]]:
    """Pairs of a setting and a rounding, in groups that share a model."""
    groups = [[(name, "none")] for name in ("A4-down", "W16A4") if name in names]
    weights = [name for name in ("W4A16", "W4A4") if name in names]
    groups += [[(name, rounding) for name in weights] for rounding in roundings]
    return [group for group in groups if group]


def shared_plan(point: Point) -> Plan:
    """The plan without down_proj and its input, shared by all coordinates there.

    The residual stream and the values of each head are rotated by full Hadamard matrices with
    random signs, except with SmoothQuant, and where only down_proj's input is quantized, since it
    would make no difference.
    """
    lines = []
    if point.coordinates == SMOOTH:
        return Plan()
    if point.setting != "A4-down":
        lines += ["residual: hadamard", "values: hadamard"]
    if point.rounding != "none":
        lines += [f"weight:{name}: {_weight(point)}" for name in WEIGHTS]
    return Plan.parse("\n".join(lines))


def own_plan(point: Point) -> Plan:
    """The rest of the plan: the input of down_proj in its coordinates, and its weight."""
    lines = [] if point.setting == "A4-down" else _inputs(point)
    lines.append(f"{DOWN}: {point.coordinates}/{FORMATS[point.format][0]} bits=4")
    if point.rounding != "none":
        names = (*WEIGHTS, "down_proj") if point.coordinates == SMOOTH else ("down_proj",)
        lines += [f"weight:{name}: {_weight(point)}" for name in names]
    return Plan.parse("\n".join(lines))


def _inputs(point: Point) -> list[str]:
    smooth = point.coordinates == SMOOTH
    levels = FORMATS[point.format][0]
    return [
        f"{place}: {SMOOTH if smooth and place in SMOOTHED else 'identity'}/{levels} bits=4"
        for place in OTHERS
    ]


def _weight(point: Point) -> str:
    return f"identity/{FORMATS[point.format][1]} bits=4 rounding={point.rounding}"


def parts(coordinates: Any) -> tuple[float, str]:
    """Length of the blocks, and the permutation of channels before them.

    The length is 0 for no rotation and infinite for the full one, or for coordinates without
    Hadamard matrices, whose name is in place of a permutation.
    """
    if coordinates == SMOOTH:
        return 0, "smooth"
    stages = Coordinates.parse(str(coordinates)).stages
    if not stages:
        return 0, "none"
    last = stages[-1]
    if last.name not in ("hadamard", "block_hadamard"):
        return math.inf, str(coordinates)
    permutation = str(Coordinates(stages[:-1])) if len(stages) > 1 else "none"
    return last.arguments.get("block", math.inf), permutation


def coordinates_of(permutation: str, block: int) -> str:
    """The coordinates of a permutation before blocks of a Hadamard rotation."""
    return f"{permutation}@block_hadamard:{block}".removeprefix("none@")
