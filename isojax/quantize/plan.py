"""Plans: the transforms and quantizers at the places of a decoder, as plain data.

    residual: hadamard
    values: hadamard
    input: identity/absmax bits=4
    input:down_proj: mass_diff@block_hadamard:32/absmax bits=4
    input:down_proj[0,1]: mass_diff@block_hadamard:32/absmax bits=8
    weight: identity/absmax:range=mse bits=4 rounding=gptq
    cache:keys: aligned/lloyd_max:fitted_channel:greedy bits=3 offset=pre_rope sinks=4

A line is a rule: a place, its layers (all, unless indexed in brackets as in Python), and the part
for it. Of two rules for a place and layer the later one counts. `none` leaves a place unchanged.
`#` starts a comment, and `;` ends a rule as a new line does.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Set
from pathlib import Path
from typing import Any

import jax

from isojax._core.checks import nearest
from isojax.models.hooks import INPUTS
from isojax.quantize.parts import GROUPS, PLACES, TABLES, Part, parse_part, recipe_of

_LINE = re.compile(r"\s*([a-z_:]+?)\s*(\[[^\]]*\])?\s*:\s+(.*?)\s*")
_LAYERS = "as in [0,-1] or [2:5]"


@dataclasses.dataclass(frozen=True)
class Rule:
    """The part at a place, in all layers or some.

    Attributes:
        place: one of `PLACES`, or of `GROUPS`: `input`, `weight`, `cache`.
        part: the part, or None for nothing.
        layers: indices and slices as in Python, joined by commas; all if empty.
    """

    place: str
    part: Part | None
    layers: str = ""

    @classmethod
    def parse(cls, text: str) -> Rule:
        """The rule written in a line.

        Raises:
            ValueError: there is no such place, or its part or layers are not allowed.
        """
        match = _LINE.fullmatch(text)
        if not match:
            raise ValueError(f"a rule must read as PLACE: RECIPE, got {text.strip()!r}.")
        place, layers, rest = match.group(1), match.group(2) or "", match.group(3)
        kind, _, name = place.partition(":")
        if kind == "input" and name in INPUTS:
            place = f"input:{INPUTS[name]}"  # k and q share their input
        if place not in PLACES and place not in GROUPS:
            near = ", ".join(nearest(place, (*PLACES, *GROUPS)))
            raise ValueError(f"place must be one of {near}; got {place!r}.")
        if layers:
            layers = layers[1:-1].replace(" ", "")
            _indices(layers, 1)
            if not layers:
                raise ValueError(f"layers must be {_LAYERS}, got [].")
        if layers and place in ("residual", *TABLES):
            raise ValueError(f"{place} must be set for all layers together, got {place}[{layers}].")
        part = None if rest == "none" else parse_part(GROUPS.get(place, (place,))[0], rest)
        return cls(place, part, layers)

    def __str__(self) -> str:
        where = self.place + (f"[{self.layers}]" if self.layers else "")
        return f"{where}: {'none' if self.part is None else self.part}"

    def indices(self, layers: int) -> set[int]:
        """Indices of the layers of the rule, for a model of `layers` layers.

        Raises:
            ValueError: a layer is out of range.
        """
        return _indices(self.layers, layers, check=True)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A plan: rules; `str` returns the notation, `Plan.parse(str(p)) == p`.

    Attributes:
        rules: in order; later ones count.
    """

    rules: tuple[Rule, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Plan:
        """The plan written in `text`.

        Raises:
            ValueError: a line is no rule; the message names the line.
        """
        rules = []
        for number, line in enumerate(re.split(r"[\n;]", text), 1):
            rule = line.partition("#")[0]
            if rule.strip():
                try:
                    rules.append(Rule.parse(rule))
                except ValueError as error:
                    raise ValueError(f"plan, line {number}: {error}") from None
        return cls(tuple(rules))

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """The plan in a file.

        Raises:
            ValueError: it holds no plan; the message names the file and the line.
            OSError: it cannot be read.
        """
        try:
            return cls.parse(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def __str__(self) -> str:
        return "\n".join(map(str, self.rules))

    def __add__(self, other: Plan) -> Plan:
        """The rules of this plan, then those of the other."""
        return Plan(self.rules + other.rules)

    def at(self, place: str, layers: int) -> list[Part | None]:
        """The part at a place in each of `layers` layers.

        Raises:
            ValueError: a rule names a missing layer.
        """
        found: list[Part | None] = [None] * layers
        for rule in self.rules:
            if place in GROUPS.get(rule.place, (rule.place,)):
                for i in rule.indices(layers):
                    found[i] = rule.part
        return found

    def layer(self, number: int, layers: int) -> dict[str, Part]:
        """The parts of one layer by place; for places shared by all layers see `whole`."""
        places = [p for p in PLACES if p != "residual" and p not in TABLES]
        found = {place: self.at(place, layers)[number] for place in places}
        return {place: part for place, part in found.items() if part is not None}

    def whole(self, place: str) -> Any:
        """The part at a place shared by all layers, or None."""
        return self.at(place, 1)[0]

    @property
    def parts(self) -> dict[str, list[Part]]:
        """The parts at each place in any layer, without rules replaced by later ones for all."""
        found: dict[str, list[Part]] = {}
        for rule in self.rules:
            for place in GROUPS.get(rule.place, (rule.place,)):
                if not rule.layers:
                    found.pop(place, None)
                if rule.part is not None:
                    found.setdefault(place, []).append(rule.part)
        return found

    @property
    def random(self) -> bool:
        """Whether the key of `quantize` changes the model."""
        return any(recipe_of(part).random for each in self.parts.values() for part in each)

    @property
    def places(self) -> set[str]:
        """All places with a part."""
        return set(self.parts)

    def without(self, places: Set[str]) -> Plan:
        """The rules for all other places."""
        kept: list[Rule] = []
        for rule in self.rules:
            each = GROUPS.get(rule.place, (rule.place,))
            some = [place for place in each if place not in places]
            whole = len(some) == len(each)
            kept += [rule] if whole else [dataclasses.replace(rule, place=p) for p in some]
        return Plan(tuple(kept))


jax.tree_util.register_dataclass(Rule, ["part"], ["place", "layers"])
jax.tree_util.register_dataclass(Plan, ["rules"], [])


def _indices(text: str, layers: int, check: bool = False) -> set[int]:
    if not text:
        return set(range(layers))
    found: set[int] = set()
    for item in text.split(","):
        bounds = item.split(":")
        try:
            numbers = [int(b) if b else None for b in bounds]
            if len(numbers) > 3 or numbers in ([None], [*numbers[:2], 0]):
                raise ValueError
        except ValueError:
            raise ValueError(f"layers must be {_LAYERS}, got [{text}].") from None
        if len(numbers) > 1:
            found.update(range(layers)[slice(*numbers)])
        elif check and not -layers <= int(numbers[0] or 0) < layers:
            raise ValueError(f"layers must be from {-layers} to {layers - 1}, got [{text}].")
        else:
            found.add(int(numbers[0] or 0) % layers)
    return found
