"""Scales of values in the input of o_proj, shared by the query heads of a key head."""

from __future__ import annotations

from isojax.transforms.base import Transform
from isojax.transforms.block_diagonal import BlockDiagonal, repeat
from isojax.transforms.diagonal import Diagonal


def spread(scale: Diagonal, heads: tuple[int, int]) -> BlockDiagonal:
    """The scale of the channels of all values, repeated for each query head that reads them.

    Args:
        scale: of the channels of all key heads, concatenated.
        heads: key heads, and query heads per key head.
    """
    groups, repeats = heads
    return BlockDiagonal(repeat(Diagonal(scale.entries.reshape(groups, -1)), repeats), groups)


def gathered(transform: Transform) -> Diagonal | None:
    """The inverse of `spread`: the scale, [key heads, d]; None for any other transform."""
    if not isinstance(transform, BlockDiagonal) or transform.shared:
        return None
    head = transform.block
    if not isinstance(head, BlockDiagonal) or not head.shared:
        return None
    return head.block if isinstance(head.block, Diagonal) else None
