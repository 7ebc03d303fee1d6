"""Settings of `stage1`."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from ..common import Common

Case = tuple[str, int]  # codebook, bits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    """Settings."""

    seeds: int = 10
    """Seeds; each draws the rotation and the synthetic vectors."""
    dims: tuple[int, ...] = (128, 256, 512)
    """Lengths of the synthetic vectors."""
    bits: tuple[int, ...] = (2, 3, 4)
    """Bits per coordinate."""
    dtypes: tuple[Literal["float16", "float32", "bfloat16"], ...] = (
        "float16", "float32", "bfloat16",
    )  # fmt: skip
    """Dtypes of the synthetic vectors."""
    coordinates: tuple[str, ...] = (
        "identity", "haar", "hadamard", "rotor", "planar", "quaternion_fast", "quaternion_full",
    )  # fmt: skip
    """Random coordinates, see `isojax.recipes`; the identity is always among them."""
    codebooks: tuple[Literal["gaussian", "sphere"], ...] = ("gaussian", "sphere")
    """Lloyd-Max levels of N(0, 1/d), which are always among them, and of the exact law."""
    vectors: int = 8192
    """Synthetic vectors per seed."""
    repeats: int = 51
    """Timed calls of each program, alternating with all others of the same shape."""

    def quickened(self) -> dict[str, Any]:  # noqa: D102
        fewer = {"seeds": 3, "dims": (128,), "dtypes": ("float32",), "vectors": 2048}
        fewer |= {"coordinates": ("identity", "haar", "rotor", "planar", "quaternion_full")}
        return fewer | {"codebooks": ("gaussian",), "windows": 1, "length": 256, "repeats": 31}

    def resolved(self) -> Config:  # noqa: D102
        return dataclasses.replace(
            super().resolved(),
            coordinates=tuple(dict.fromkeys(("identity", *self.coordinates))),
            codebooks=tuple(dict.fromkeys(("gaussian", *self.codebooks))),
        )

    @property
    def cases(self) -> list[Case]:
        """Codebooks and bits, in the order of the tables."""
        return [(kind, bits) for kind in self.codebooks for bits in self.bits]
