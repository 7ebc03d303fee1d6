"""Descriptions of quantized models, from a plan and a configuration without weights."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from isojax.models import ModelConfig
from isojax.models.hooks import INPUTS
from isojax.quantize.costs import Costs, code_bits, costs, online_fmas
from isojax.quantize.parts import (
    GROUPS,
    PLACES,
    TABLES,
    WEIGHT_PLACES,
    Cached,
    Input,
    Part,
    Weight,
    recipe_of,
)
from isojax.quantize.plan import Plan
from isojax.quantize.quantized import Quantized
from isojax.quantize.shapes import (
    input_samples,
    no_weights,
    quantized_shapes,
    statistics_shapes,
)
from isojax.quantize.stats import Stats
from isojax.recipes import CENTRE, Coordinates, Samples
from isojax.transforms import Composed, Identity, Transform

SHARED = ("residual", *TABLES)  # places shared by all layers
COUNTED = (
    "Weights: bits per element of the projections of all layers with their scales, exact ones at "
    "16. Bytes: of all parameters, embedding, head, norms and biases at 16 bits unless quantized. "
    "Cache: with scales, exact tokens and a side that is not in codes at 16 bits. Multiply-adds: "
    "of online transforms per token, queries and outputs of attention included; rounding, means "
    "and permutations are not counted."
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One place of a plan, in the layers where it is alike.

    Attributes:
        place: one of `PLACES`.
        layers: indices of the layers; empty for a place shared by all layers.
        part: the part of the plan, in the notation.
        merged: the coordinates that merge into weights, "" for none.
        online: the coordinates that run online, "" for none.
        fmas: multiply-adds per token and layer of the online ones.
        bits: bits per quantized element, scales counted; None if nothing is quantized.
    """

    place: str
    layers: tuple[int, ...]
    part: str
    merged: str = ""
    online: str = ""
    fmas: int = 0
    bits: float | None = None


@dataclasses.dataclass(frozen=True)
class Description:
    """The description of a quantized model; prints as a table.

    Attributes:
        entries: by place.
        costs: of the whole model.
        linear_fmas: multiply-adds per token of the projections, all layers, for comparison.
        layers: number of layers.
        notes: consequences of the plan that are easily missed.
    """

    entries: tuple[Entry, ...]
    costs: Costs
    linear_fmas: int
    layers: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        notes = [line for note in (*self.notes, COUNTED) for line in textwrap.wrap(note, 100)]
        return "\n".join([self.table, "", *notes])

    @property
    def table(self) -> str:
        """One line per entry, and the costs."""
        head = ("place", "layers", "merged", "online", "FMAs", "bits", "rule")
        lines = [head, *(self._line(e) for e in self.entries)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        cost = self.costs
        share = cost.online_fmas / self.linear_fmas
        total = [
            f"weights: {cost.weight_bits:.4g} bits per element; all parameters "
            f"{cost.weight_bytes:,.0f} bytes",
            f"cache of {cost.tokens} tokens: {cost.cache_bits:.4g} bits per element, "
            f"{cost.cache_bytes:,.0f} bytes per token",
            f"online: {cost.online_fmas:,} multiply-adds per token, {share:.2%} of the projections'"
            f"; {cost.side_bytes:,} bytes of transforms, means and codebooks",
        ]
        if cost.decoder_bytes:
            total.insert(1, f"coordinates and codebooks of weights: {cost.decoder_bytes:,} bytes")
        return "\n".join([*table, "", *total])

    def _line(self, entry: Entry) -> tuple[str, ...]:
        every = len(entry.layers) in (0, self.layers)
        return (
            entry.place, "all" if every else _ranges(entry.layers), entry.merged or "-",
            entry.online or "-", f"{entry.fmas:,}" if entry.online else "-",
            "-" if entry.bits is None else f"{entry.bits:.4g}", entry.part,
        )  # fmt: skip


def describe(
    plan: Plan,
    model: ModelConfig | Quantized,
    *,
    tokens: int = 1024,
    stats: Stats | None = None,
) -> Description:
    """Describe the model that `quantize` would return, by running `quantize` on shapes.

    It needs no weights and no statistics, and raises the errors of `quantize` except those for
    missing statistics.

    Args:
        plan: of the model.
        model: a configuration, or a quantized model to which the plan adds places.
        tokens: number of tokens in the cache, among which exact ones are averaged.
        stats: with learned transforms, whose form decides their cost; by default dense matrices.

    Raises:
        ValueError: as `quantize`, with the same messages.
    """
    base = no_weights(model) if isinstance(model, ModelConfig) else model
    number, given = base.config.num_hidden_layers, statistics_shapes(base.config, stats)
    made = _with_codes(quantized_shapes(plan, model, given), base)
    alike: dict[Any, list[int]] = {}
    for place in PLACES:
        kinds = made.inputs[place].group if place in made.inputs else (0,) * number
        for i, part in enumerate(plan.at(place, 1 if place in SHARED else number)):
            if part is not None:
                alike.setdefault((place, part, kinds[i]), []).append(i)
    entries = []
    for (place, part, _), where in alike.items():
        entry = _entry(place, where[0], part, made, given.layers[where[0]], tokens)
        where = () if place in SHARED else tuple(where)
        entries.append(dataclasses.replace(entry, layers=where))
    asked = {
        place.removeprefix("weight:"): [getattr(part, "bits", math.nan) for part in each]
        for place in (*WEIGHT_PLACES, *TABLES)
        for each in [plan.at(place, 1 if place in SHARED else number)]
    }
    linear = sum(made.params["layers"][name]["kernel"].size for name in INPUTS)
    notes = tuple(_notes(plan, number, made, base))
    return Description(tuple(entries), costs(made, tokens, asked), linear, number, notes)


def _with_codes(made: Quantized, base: Quantized) -> Quantized:
    """`made`, with the concrete codes of `base`, whose entropy is not known from shapes."""
    codes = {}
    for name, each in made.codes.items():
        before = base.codes.get(name, each)
        codes[name] = tuple(b or new for b, new in zip(before, each, strict=True))
    return dataclasses.replace(made, codes=codes)


def _entry(
    place: str, layer: int, part: Part, made: Quantized, stats: Mapping[str, Any], tokens: int
) -> Entry:
    """The entry of a place in one layer."""
    name, coordinates = place.partition(":")[2], recipe_of(part).coordinates
    entry = Entry(place, (), str(part))
    if isinstance(part, Weight):
        codes = made.codes[name or place][layer]
        return dataclasses.replace(entry, bits=code_bits(codes, part.bits))
    if place in ("residual", "values"):
        return dataclasses.replace(entry, merged=_text(coordinates.stages))
    entry = dataclasses.replace(entry, fmas=online_fmas(made, layer).get(place, 0))
    if not isinstance(part, Input):
        bits = _side_bits(made, name, tokens) if isinstance(part, Cached) else None
        return dataclasses.replace(entry, online=_text(coordinates.stages), bits=bits)
    each = made.inputs.get(place)
    codec = None if each is None else jax.eval_shape(lambda each: each.of(layer), each)
    merged = _merged(coordinates, codec, input_samples(name, made, stats))
    stages, bits = coordinates.stages, None
    centre = [CENTRE] if codec is not None and part.recipe.centre else []
    if codec is not None and part.recipe.levels.member.name != "none":
        x = jax.ShapeDtypeStruct((tokens, codec.transform.dim), jnp.float32)
        bits = code_bits(jax.eval_shape(lambda c, x: c.quantizer.encode(x), codec, x), part.bits)
    return dataclasses.replace(
        entry, merged=_text(stages[:merged]), online=_text([*centre, *stages[merged:]]), bits=bits
    )


def _merged(coordinates: Coordinates, codec: Any, samples: Samples) -> int:
    """Number of stages of an input's coordinates that merge: those before the online ones."""

    def factors(stages: int) -> int:
        rest = Coordinates(coordinates.stages[stages:])
        return _factors(jax.eval_shape(rest.fit, jax.random.key(0), samples))

    online = 0 if codec is None else _factors(codec.transform)
    return max(i for i in range(len(coordinates.stages) + 1) if factors(i) >= online)


def _factors(transform: Transform) -> int:
    if isinstance(transform, Identity):
        return 0
    return len(transform.factors) if isinstance(transform, Composed) else 1


def _text(stages: Sequence[Any]) -> str:
    return "@".join(map(str, stages))


def _side_bits(made: Quantized, side: str, tokens: int) -> float:
    """Bits per element of keys or values."""
    cache = jax.eval_shape(lambda q: q.cache(1, tokens, jnp.float16), made)
    config = made.config
    elements = config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return 8 * getattr(cache.layers, side).nbytes / tokens / elements


def _notes(plan: Plan, layers: int, made: Quantized, base: Quantized) -> Iterator[str]:
    """The consequences of a plan that are easily missed."""
    last = {
        (place, i): rule
        for rule in plan.rules
        for place in GROUPS.get(rule.place, (rule.place,))
        for i in rule.indices(layers)
    }
    for rule in plan.rules:
        if not any(rule is kept for kept in last.values()):
            yield f"Without effect, since later rules replace it: {rule}."
    if "residual" in made.shared and "residual" not in base.shared:
        yield "The scales of norms are folded into weights, since the residual stream is turned."
    if made.config.tie_word_embeddings != base.config.tie_word_embeddings:
        yield "Embedding and head, which are one, become two."
    parts = [(place, rule.part) for (place, _), rule in last.items()]
    if any(isinstance(p, Weight) and p.recipe.coordinates.stages for _, p in parts):
        yield "Weights rounded in coordinates are transformed back when read: not counted."
    codes = [c for each in made.codes.values() for c in each if c is not None and c.bits is None]
    if any(isinstance(c.values, jax.ShapeDtypeStruct) for c in codes):
        yield "Weights in unbounded codes count the requested rate."
    keys = made.keys
    if keys is not None and keys.rope == "before":
        yield "Keys stored before the rotary embedding are rotated on every read: not counted."


def _ranges(layers: Sequence[int]) -> str:
    """Numbers as ranges: 0-3, 7."""
    runs: list[list[int]] = []
    for number in layers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)
