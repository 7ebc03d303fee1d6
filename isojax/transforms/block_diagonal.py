"""Block-diagonal transforms: any transform, block by block."""

from __future__ import annotations

import jax
from jaxtyping import Array

from isojax._core.checks import check_positive
from isojax._core.pytree import pytree, static
from isojax.transforms.base import Transform


@pytree
class BlockDiagonal(Transform):
    """diag(B_1, ..., B_n): block i of the vector goes through transform i.

    Attributes:
        block: a batch of n transforms (leading axis n on every leaf), or one for all blocks.
        count: n.
        shared: whether `block` is one transform for all blocks.
    """

    block: Transform
    count: int = static()
    shared: bool = static(default=False)

    @property
    def dim(self) -> int:  # noqa: D102
        return self.count * self.block.dim

    @property
    def out_dim(self) -> int:  # noqa: D102
        return self.count * self.block.out_dim

    @property
    def T(self) -> BlockDiagonal:  # noqa: D102
        return BlockDiagonal(self.block.T, self.count, self.shared)

    @property
    def params(self) -> int:  # noqa: D102
        return self.block.params * (1 if self.shared else self.count)

    @property
    def fmas(self) -> int:  # noqa: D102
        return self.block.fmas * self.count

    def _apply(self, x: Array) -> Array:
        blocks = x.reshape(*x.shape[:-1], self.count, self.block.dim)
        if self.shared:
            blocks = self.block.apply(blocks)
        else:
            blocks = jax.vmap(lambda t, v: t.apply(v), (0, -2), -2)(self.block, blocks)
        return blocks.reshape(*x.shape[:-1], self.out_dim)


def block_diagonal(block: Transform) -> BlockDiagonal:
    """One transform a block, from a batch of them.

    Args:
        block: transforms with a leading axis on every leaf, as from `jax.vmap(make)(keys)`.

    Example:
        >>> block_diagonal(jax.vmap(lambda key: haar(key, 64))(jax.random.split(key, 14)))

    Raises:
        ValueError: the leaves do not share a leading axis.
    """
    lengths = {leaf.shape[:1] for leaf in jax.tree.leaves(block)}
    if len(lengths) != 1 or lengths == {()}:
        raise ValueError(
            f"block must have one leading axis on all leaves, got lengths {sorted(lengths)}."
        )
    return BlockDiagonal(block, lengths.pop()[0])


def repeat(block: Transform, count: int) -> BlockDiagonal:
    """The same transform on each of `count` blocks.

    Raises:
        ValueError: `count` is not a whole number of at least 1.
    """
    return BlockDiagonal(block, check_positive("count", count), shared=True)
