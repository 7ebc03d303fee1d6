"""The recipe of a codec."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.core import Tracer
from jaxtyping import Array, Key

from isojax._core.checks import nearest
from isojax._core.finite import finite
from isojax._core.members import COORDINATES, LEVELS
from isojax._core.samples import Samples
from isojax.codec import Codec
from isojax.quantizers.levels import Levels
from isojax.transforms.coordinates import Coordinates

CENTRE = "centre"
NONE = Levels.parse("none")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A codec to be fitted to samples; `str` returns its notation, `Recipe.parse(str(r)) == r`.

    Attributes:
        coordinates: the transform.
        levels: the quantizer of the transformed vectors.
        centre: whether the mean of the samples is subtracted first.
    """

    coordinates: Coordinates = Coordinates()
    levels: Levels = NONE
    centre: bool = False

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """The recipe written in `text`: COORDINATES/LEVELS, or only one of them.

        Raises:
            ValueError: a part is no known member, or has other arguments than allowed.
        """
        first, slash, second = text.strip().partition("/")
        if not slash:
            name = first.partition("@")[0].partition(":")[0]
            if name in LEVELS.members and name not in COORDINATES.members:
                return cls(levels=Levels.parse(first))
            if name not in COORDINATES.members and ":" not in first and name != CENTRE:
                near = ", ".join(nearest(name, [*COORDINATES.members, *LEVELS.members]))
                raise ValueError(
                    f"recipe must be COORDINATES/LEVELS or one of them, of {near}, or "
                    f"package.module:name; got {text.strip()!r}."
                )
        head, at, rest = first.partition("@")
        centre = head == CENTRE
        if centre:
            first = rest if at else "identity"
        levels = Levels.parse(second) if slash else NONE
        return cls(Coordinates.parse(first), levels, centre)

    def __str__(self) -> str:
        coordinates = f"{CENTRE}@" * self.centre + str(self.coordinates)
        return f"{coordinates}/{self.levels}"

    @property
    def random(self) -> bool:
        """Whether the key changes the codec."""
        return self.coordinates.random

    @property
    def needs(self) -> frozenset[str]:
        """Attributes of `Samples` that it is fitted on."""
        return self.coordinates.needs | self.levels.needs | ({"mean"} if self.centre else set())

    @property
    def words(self) -> dict[str, Any]:
        """Its parts as the keys of a row: coordinates, quantizer, arguments of levels."""
        member = self.levels.member
        given = {name: value for name, value in member.arguments.items() if value is not None}
        wrapped = {f"{w.name}": w.arguments.get("share", True) for w in self.levels.wrappers}
        return {
            "coordinates": str(self.coordinates),
            "quantizer": member.name,
            **given,
            **wrapped,
        }

    def fit(self, key: Key[Array, ""], samples: Samples, bits: int | float) -> Codec:
        """The codec for vectors like those of `samples`; over heads and layers by `vmap`.

        Args:
            key: of the random stages.
            samples: to fit on.
            bits: bits per code, scales not counted.

        Raises:
            ValueError: a part cannot be fitted to these samples or to this number of bits.
        """
        offset = None
        if self.centre:
            samples, offset = samples.centred()
            offset = finite("the mean of samples", offset)
        if not isinstance(bits, Tracer):
            samples = dataclasses.replace(samples, bits=bits)
        transform = self.coordinates.fit(key, samples)
        needed = samples.through(transform) if "x" in self.levels.needs else samples
        needed = dataclasses.replace(needed, size=transform.out_dim)
        return Codec(transform, self.levels.fit(needed, bits), offset)


jax.tree_util.register_dataclass(Recipe, ["coordinates", "levels"], ["centre"])
