"""Coordinates by name: a chain of stages, each drawn, fitted or learned.

`pca`, `block_hadamard:32`, `aligned:0.5@hadamard`: stages are joined by `@` in the order applied,
and each is fitted on the output of the one before it. A stage (see `isojax._core.members`) is a
member's name and its arguments, or `package.module:name` for your own function
`(key, samples) -> Transform`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import jax
from jaxtyping import Array, Key

from isojax._core.members import COORDINATES, Stage
from isojax._core.samples import Samples, identity_samples
from isojax.transforms.base import Identity, Transform, chained, identity
from isojax.transforms.drawn import drawn
from isojax.transforms.paley import largest_block
from isojax.transforms.value_scale import spread


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """A chain of stages; `str` returns its notation, `Coordinates.parse(str(c)) == c`.

    Attributes:
        stages: in the order applied; an empty tuple is the identity.
    """

    stages: tuple[Stage, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Coordinates:
        """The chain written in `text`.

        Raises:
            ValueError: a stage is no known member, or has other arguments than allowed.
        """
        return cls.of(COORDINATES.parse(part) for part in text.split("@"))

    @classmethod
    def of(cls, stages: Iterable[Stage]) -> Coordinates:
        """The chain of these stages, without those that change nothing."""
        return cls(tuple(s for s in stages if s.name != "identity"))

    def __str__(self) -> str:
        return "@".join(map(str, self.stages)) or "identity"

    def __add__(self, other: Coordinates) -> Coordinates:
        """This chain, then the other."""
        return Coordinates(self.stages + other.stages)

    @property
    def random(self) -> bool:
        """Whether the key changes the transform; assumed for members from outside."""
        return any(stage.member.facts.get("random", True) for stage in self.stages)

    @property
    def needs(self) -> frozenset[str]:
        """Attributes of `Samples` that it is fitted on; all for members from outside."""
        every = ("x", "metric", "weight", "moment")
        return frozenset(n for s in self.stages for n in s.member.facts.get("fitted", every))

    def fit(self, key: Key[Array, ""], samples: Samples) -> Transform:
        """The transform for vectors like those of `samples`.

        Args:
            key: split over the stages if there are several.
            samples: what to fit on.

        Raises:
            ValueError: a stage cannot be fitted to these samples, or does not return a transform of
                their length.
        """
        if not self.stages:
            return identity(samples.dim)
        keys = [key] if len(self.stages) == 1 else jax.random.split(key, len(self.stages))
        made: list[Transform] = []
        for place, stage in enumerate(self.stages):
            block = block_of(self.stages[place + 1]) if place + 1 < len(self.stages) else 0
            heads = samples.heads if stage.member.facts.get("diagonal") else None
            given = dataclasses.replace(samples, block=block, heads=heads).by_value()
            transform = stage(keys[place], given)
            if heads is not None:
                transform = spread(transform, heads)
            if not isinstance(transform, Transform) or transform.dim != samples.dim:
                got = (
                    f"one of length {transform.dim}"
                    if isinstance(transform, Transform)
                    else type(transform).__name__
                )
                raise ValueError(
                    f"coordinates {stage} must return a Transform of length {samples.dim}, "
                    f"got {got}."
                )
            made.append(transform)
            if place + 1 < len(self.stages):
                samples = samples.through(transform)
                samples = dataclasses.replace(samples, heads=heads)
        return chained(made[0].dim, made)

    def draw(self, key: Key[Array, ""], dim: int) -> Transform:
        """The random transform for vectors of length `dim`, of stages that need no samples.

        Raises:
            ValueError: a stage is fitted on samples, or has no form for the length.
        """
        fitted = [str(s) for s in self.stages if s.member.facts.get("fitted", ("x",))]
        if fitted:
            raise ValueError(f"{fitted[0]} is fitted on samples: use fit(key, samples).")
        return self.fit(key, identity_samples(dim))


jax.tree_util.register_dataclass(Coordinates, ["stages"], [])


def block_of(stage: Stage) -> int:
    """Length of the blocks within which a stage mixes coordinates, 0 where it has none."""
    block = stage.member.facts.get("block", 0)
    return stage.arguments[block] if isinstance(block, str) and block else int(block or 0)


def dividing(stage: Stage, dim: int) -> Stage:
    """The stage with the longest Hadamard blocks, up to its own, that divide `dim`."""
    argument, length = stage.member.facts.get("block"), block_of(stage)
    if not isinstance(argument, str) or not length or dim % length == 0:
        return stage
    return stage.member.stage(**dict(stage.given) | {argument: largest_block(length, dim)})


def from_name(key: Key[Array, ""], name: str, dim: int) -> Transform:
    """The random transform called `name`, for vectors of length `dim`; see `Coordinates`.

    Vectors are padded with zeros where the blocks of a member do not divide their length.

    Args:
        key: draws the parameters; split over the stages of a chain.
        name: such as "haar" or "random_permutation@block_hadamard:32".
        dim: length of the vectors.

    Raises:
        ValueError: the name is unknown, a stage is fitted on samples, or the length has no Hadamard
            matrix.
    """
    return Coordinates.parse(name).draw(key, dim)


@drawn("identity", random=False)
def _identity(key: Key[Array, ""], dim: int) -> Identity:
    return identity(dim)
