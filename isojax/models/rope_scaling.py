"""Rescaling of the rotary frequencies of a model for texts longer than its training texts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from isojax.models.fields import LARGEST, is_positive, require, short

KINDS = ("default", "llama3", "yarn", "linear")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3's rescaling of the rotary frequencies (factor and the two bands it blends)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN (Peng et al. 2023, arXiv 2309.00071): slow frequencies are divided, fast ones kept.

    Attributes:
        factor: divisor of the slow frequencies.
        original_max_position_embeddings: tokens per text in the original training.
        attention_factor: multiplies queries and keys, so its square multiplies logits.
        beta_fast: turns within the original context from which a frequency is kept.
        beta_slow: turns up to which a frequency is divided by the whole factor.
        truncate: whether the band between them is rounded to whole channels.
    """

    factor: float
    original_max_position_embeddings: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """All frequencies divided by one factor (Chen et al. 2023, arXiv 2306.15595)."""

    factor: float


AnyScaling = RopeScaling | YarnScaling | LinearScaling


def yarn_attention_factor(factor: float, mscale: float = 1.0) -> float:
    """The attention factor of the paper, equation 22: 0.1 ln(factor) + 1."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def read_rope(fields: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The rotary settings, one object in transformers 5 and separate fields in 4.

    Raises:
        ValueError: they are malformed, contradict each other or are not supported.
    """
    scaling, parameters = (fields.get(name) or {} for name in ("rope_scaling", "rope_parameters"))
    for rope in (scaling, parameters):
        if not isinstance(rope, Mapping):
            raise ValueError(f"{source}: rope_parameters must be an object, got {short(rope)}.")
        for name, value in rope.items():
            if isinstance(value, Mapping):
                raise ValueError(f"{source}: rope_parameters with only {name} are not supported.")
    if scaling and parameters and scaling != parameters:
        raise ValueError(f"{source}: rope_scaling and rope_parameters differ.")
    outer = {n: fields[n] for n in ("rope_theta", "partial_rotary_factor") if n in fields}
    rope = {"rope_theta": 10000.0, **outer, **scaling, **parameters}
    context = "original_max_position_embeddings"
    if rope.get(context) is not None:
        # some versions of transformers use the outer one
        require(source, context, fields.get(context), (rope[context], None))
    elif context not in rope or kind_of(rope) == "yarn":
        rope[context] = fields.get(context) or fields.get("max_position_embeddings")
    require(source, "partial_rotary_factor", rope.get("partial_rotary_factor"), (1, None))
    if not is_positive(rope["rope_theta"]):
        raise ValueError(
            f"{source}: rope_theta must be a positive number, got {short(rope['rope_theta'])}."
        )
    return rope


def kind_of(rope: Mapping[str, Any]) -> Any:
    """The kind of rescaling in the settings; old files call the field `type`."""
    return rope.get("rope_type", rope.get("type", "default"))


def _check_named(rope: Mapping[str, Any], source: str) -> None:
    """Refuse a factor without a kind of rescaling."""
    if not {"rope_type", "type"} & set(rope) and rope.get("factor") not in (None, 1):
        raise ValueError(
            f"{source}: rope_type must be given with factor={short(rope['factor'])}, one of "
            f"{', '.join(KINDS)}."
        )


def rope_scaling(rope: Mapping[str, Any], source: str) -> AnyScaling | None:
    """The rescaling in the settings of `read_rope`, None if there is none.

    Raises:
        ValueError: it is not one of `KINDS`, or a field of it is missing or malformed.
    """
    _check_named(rope, source)
    kind = kind_of(rope)
    if kind not in KINDS:
        raise ValueError(
            f"{source}: rope_type must be one of {', '.join(KINDS)}; got {short(kind)}."
        )

    def number(name: str, default: Any = None) -> float:
        value = rope.get(name)
        value = default if value is None else value
        if not is_positive(value):
            raise ValueError(
                f"{source}: {name} of rope scaling {kind} must be a positive number, got "
                f"{short(value)}."
            )
        return float(value)

    def context() -> int:
        name = "original_max_position_embeddings"
        value = number(name)
        if value != int(value) or value > LARGEST:
            raise ValueError(
                f"{source}: {name} must be a whole number of at most {LARGEST}, got {value!r}."
            )
        return int(value)

    if kind == "llama3":
        low, high = number("low_freq_factor"), number("high_freq_factor")
        scaling = RopeScaling(number("factor"), low, high, context())
        if scaling.low_freq_factor >= scaling.high_freq_factor:
            raise ValueError(
                f"{source}: low_freq_factor must be below high_freq_factor="
                f"{scaling.high_freq_factor}, got {scaling.low_freq_factor}."
            )
        return scaling
    if kind == "linear":
        return LinearScaling(number("factor"))
    if kind == "yarn":
        if rope["rope_theta"] <= 1:
            raise ValueError(
                f"{source}: rope_theta must be above 1 for yarn, got {rope['rope_theta']!r}."
            )
        factor = number("factor")
        suggested = yarn_attention_factor(factor)
        if rope.get("mscale") and rope.get("mscale_all_dim"):
            suggested = yarn_attention_factor(factor, number("mscale"))
            suggested /= yarn_attention_factor(factor, number("mscale_all_dim"))
        truncate = rope.get("truncate", True)
        if not isinstance(truncate, bool):
            raise ValueError(f"{source}: truncate must be true or false, got {truncate!r}.")
        return YarnScaling(
            factor,
            context(),
            number("attention_factor", suggested),
            number("beta_fast", 32.0),
            number("beta_slow", 1.0),
            truncate,
        )
    return None


def scaling_to_hf(scaling: AnyScaling) -> dict[str, Any]:
    """The object `rope_scaling` of `config.json`."""
    kinds = {RopeScaling: "llama3", YarnScaling: "yarn", LinearScaling: "linear"}
    return {"rope_type": kinds[type(scaling)]} | dataclasses.asdict(scaling)
