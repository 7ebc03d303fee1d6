"""Transforms by name, as tables and command lines have them."""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable

import jax
from jaxtyping import Array, Key

from isojax._core.checks import check_choice, check_positive
from isojax.transforms.base import Transform, identity
from isojax.transforms.butterfly import butterfly
from isojax.transforms.cayley import cayley
from isojax.transforms.dense import haar
from isojax.transforms.exponential import exponential
from isojax.transforms.hadamard import block_hadamard, hadamard
from isojax.transforms.padded import padded
from isojax.transforms.permutation import permutation
from isojax.transforms.planar import planar
from isojax.transforms.quaternion import quaternion
from isojax.transforms.rotor import rotor

# Each with the length of its blocks; 1 where any length does, 0 where `block` says.
_MEMBERS: dict[str, tuple[int, Callable[..., Transform]]] = {
    "identity": (1, lambda key, dim: identity(dim)),
    "haar": (1, haar),
    "hadamard": (1, hadamard),
    "block_hadamard": (0, block_hadamard),
    "planar": (2, planar),
    "rotor": (3, rotor),
    "quaternion_fast": (4, functools.partial(quaternion, form="fast")),
    "quaternion_full": (4, functools.partial(quaternion, form="full")),
    "permutation": (1, permutation),
    "cayley": (1, cayley),
    "exponential": (1, exponential),
    "butterfly_planar": (1, functools.partial(butterfly, form="planar")),
    "butterfly_quaternion": (1, functools.partial(butterfly, form="quaternion")),
}

NAMES = tuple(_MEMBERS)
_BLOCK = re.compile(r"block_hadamard:[1-9]\d*")


def from_name(key: Key[Array, ""], name: str, dim: int, *, block: int = 0) -> Transform:
    """The random transform called `name`, for vectors of length `dim`.

    Vectors are padded with zeros where blocks of 2, 3, 4 or `block` do not divide their length.

    Args:
        key: draws the parameters; split over the factors of a composition.
        name: one of `NAMES`, or several joined by "@" in the order applied, such as
            "permutation@block_hadamard". Each takes the length that the one before it returns. In
            `block_hadamard:32` the name gives the block.
        dim: length of the vectors.
        block: length of the blocks of `block_hadamard`, 0 for the whole vector; others ignore it.

    Raises:
        ValueError: unknown name, or a length without a Hadamard matrix.
    """
    dim = check_positive("dim", dim)
    names = [part.strip() for part in name.split("@")]
    for part in names:
        check_choice("name", part.partition(":")[0] if _BLOCK.fullmatch(part) else part, NAMES)
    keys = [key] if len(names) == 1 else jax.random.split(key, len(names))
    factors: list[Transform] = []
    for part, part_key in zip(names, keys, strict=True):
        length = factors[-1].out_dim if factors else dim
        factors.append(_member(part_key, part, length, block))
    return functools.reduce(operator.matmul, factors)


def _member(key: Array, name: str, dim: int, block: int) -> Transform:
    name, _, given = name.partition(":")
    multiple, make = _MEMBERS[name]
    block = int(given or block)
    if multiple == 0:
        multiple = check_positive("block", block or dim)
        make = functools.partial(make, block=multiple)
    length = -(-dim // multiple) * multiple
    return make(key, length) if length == dim else padded(make(key, length), dim)
