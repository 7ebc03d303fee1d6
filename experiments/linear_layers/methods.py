"""The compared cases: coordinates at the inputs of linear layers, formats and rounding."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from isojax.quantize import Plan
from isojax.quantize.parts import SITES
from isojax.recipes import Coordinates, Samples
from isojax.transforms import Diagonal

# of weights; `gptq-behind` has the Hessians of inputs after quantized layers
ROUNDINGS = {
    "nearest": "rounding=nearest",
    "gptq": "rounding=gptq",
    "gptq-behind": "rounding=gptq inputs=quantized",
}
# levels of inputs and of weights; ranges are those of least squared error, except with `int4max`
FORMATS = {
    "int4": ("absmax:range=mse", "absmax:range=mse"),
    "int4max": ("absmax", "absmax"),
    "int4g32": ("absmax:group:32:mse", "absmax:group:32:mse"),
    "int4g128": ("absmax:group:128:mse", "absmax:group:128:mse"),
    "mxfp4": ("mxfp4", "mxfp4"),
    "nvfp4": ("nvfp4", "nvfp4"),
}
# residual stream and values, whether the scales of norms are folded, and coordinates of the four
# inputs: of q/k/v, o, gate/up, down
ROTATED = ("identity", "hadamard", "identity", "hadamard")
PLANS: dict[str, tuple[dict[str, str], str, tuple[str, ...]]] = {
    "none": ({}, "input", ("identity",) * 4),
    "smoothquant": ({}, "input", ("smooth:0.5", "identity", "smooth:0.5", "identity")),
    "quarot": ({"residual": "hadamard", "values": "hadamard"}, "folded", ROTATED),
    "quarot+balance": (
        {"residual": "hadamard"}, "folded",
        ("identity", "balance@hadamard", "identity", "balance@hadamard"),
    ),
    "quarot+centre": (
        {"residual": "hadamard", "values": "hadamard"}, "folded",
        tuple(f"centre@{chain}" for chain in ROTATED),
    ),
    "spinquant": (
        {"residual": "learned:steps={steps}", "values": "learned:steps={steps}"}, "folded", ROTATED,
    ),
    "ostquant": (
        {"residual": "learned:steps={steps}", "values": "learned:steps={steps}"}, "folded",
        ("learned_scales", "learned_scales@hadamard") * 2,
    ),
    "folded": ({"residual": "identity"}, "folded", ("hadamard",) * 4),
}  # fmt: skip
"""Plans by name; `folded` is the full Hadamard at all four inputs, norms folded as in QuaRot."""
LEARNED = ("spinquant", "ostquant")
"""Plans with rotations learned on the loss of the model, by seed."""
COORDINATES = (
    "hadamard", "haar",
    "smooth:0.3@hadamard", "smooth:0.5@hadamard", "smooth:0.7@hadamard",
    "awq@hadamard",
    "balance:0.25@hadamard", "balance@hadamard", "balance:0.75@hadamard",
    "block_hadamard:32", "mass_diff@block_hadamard:32", "balance@block_hadamard:32",
    "balance_search@hadamard", "balance@haar", "shuffled_balance@hadamard",
    "cat:32@hadamard", "wush:32@block_hadamard:32", "kron_wush@hadamard", "wush@hadamard",
    "balance@kron_wush@hadamard", "flatquant", "balance@flatquant",
    "centre@hadamard", "centre@balance@hadamard", "centre@wush@hadamard",
)  # fmt: skip
"""Coordinates at all four inputs, with the scales of norms not folded."""
OWN = {"shuffled_balance": f"{__name__}:shuffled_balance"}
"""Stages that this study adds."""


def shuffled_balance(key: Key[Array, ""], samples: Samples) -> Diagonal:
    """A control: the scales of `balance` in a random order of channels."""
    scale = Coordinates.parse("balance").fit(key, samples)
    return Diagonal(jax.random.permutation(key, jnp.diagonal(scale.matrix())))


class Case(NamedTuple):
    """A compared case.

    Attributes:
        plan: one of `PLANS`, or `inputs` for coordinates at all four inputs.
        coordinates: of the inputs; all four, joined by commas, where they differ.
        norm_scale: `folded` or `input`.
        setting: bits of weights and of inputs, as W4A4.
        format: one of `FORMATS`.
        rounding: one of `ROUNDINGS`; `none` where weights are exact.
    """

    plan: str
    coordinates: str
    norm_scale: str
    setting: str
    format: str
    rounding: str


def cases(
    plans: tuple[str, ...], coordinates: tuple[str, ...], settings: tuple[str, ...],
    formats: tuple[str, ...], roundings: tuple[str, ...],
) -> list[Case]:  # fmt: skip
    """All requested cases, ordered by setting, format and rounding."""
    found = []
    for setting in settings:
        rounded = roundings if bits_of(setting)[0] < 16 else ("none",)
        for form in formats:
            for rounding in rounded:
                how = (setting, form, rounding)
                for name in plans:
                    _, norm_scale, inputs = PLANS[name]
                    said = inputs[0] if len(set(inputs)) == 1 else ", ".join(inputs)
                    found.append(Case(name, said, norm_scale, *how))
                found += [Case("inputs", chain, "input", *how) for chain in coordinates]
    return found


def bits_of(setting: str) -> tuple[int, int]:
    """Bits of weights and of inputs, 16 for exact ones.

    Raises:
        ValueError: it does not read as W4A4.
    """
    match = re.fullmatch(r"W(\d+)A(\d+)", setting)
    if not match or not all(2 <= int(bits) <= 8 or bits == "16" for bits in match.groups()):
        raise ValueError(f"settings must read as W4A4, bits from 2 to 8, or 16; got {setting!r}.")
    return int(match[1]), int(match[2])


def plan_of(case: Case, steps: int, **changes: Any) -> Plan:
    """The plan of a case; `steps` are those of transforms learned on the loss."""
    case = case._replace(**changes)
    turns, _, inputs = PLANS.get(case.plan, ({}, "", (case.coordinates,) * 4))
    weight, activation = bits_of(case.setting)
    levels = FORMATS[case.format]
    lines = [f"{place}: {turn.format(steps=steps)}" for place, turn in turns.items()]
    for site, chain in zip(SITES, inputs, strict=True):
        coordinates = "@".join(_stage(stage, steps) for stage in chain.split("@"))
        if activation < 16:
            lines.append(f"input:{site}: {coordinates}/{levels[0]} bits={activation}")
        elif coordinates != "identity":
            lines.append(f"input:{site}: {coordinates}")
    if weight < 16:
        lines.append(f"weight: identity/{levels[1]} bits={weight} {ROUNDINGS[case.rounding]}")
    return Plan.parse("\n".join(lines))


def _stage(stage: str, steps: int) -> str:
    """A stage of this study by its module; `learned_scales` with the steps of the settings."""
    name, *fields = stage.split(":")
    given = sum("=" not in field for field in fields) > 1 or any("steps=" in f for f in fields)
    learned = name == "learned_scales" and not given
    return f"{stage}:steps={steps}" if learned else OWN.get(stage, stage)
