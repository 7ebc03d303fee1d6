"""Block-diagonal transforms: any transform, block by block."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax._core.axes import to_rank
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
    def isometry(self) -> bool:  # noqa: D102
        return self.block.isometry

    @property
    def inverse(self) -> BlockDiagonal:  # noqa: D102
        return BlockDiagonal(self.block.inverse, self.count, self.shared)

    @property
    def params(self) -> int:  # noqa: D102
        return self.block.params * (1 if self.shared else self.count)

    @property
    def fmas(self) -> int:  # noqa: D102
        return self.block.fmas * self.count

    def forward(self, x: Array) -> Array:  # noqa: D102
        blocks = x.reshape(*x.shape[:-1], self.count, self.block.dim)
        if self.shared:
            blocks = self.block.apply(blocks)
        else:
            blocks = jax.vmap(lambda t, v: t.apply(v), (0, -2), -2)(self.block, blocks)
        return blocks.reshape(*x.shape[:-1], self.out_dim)


def block_diagonal(block: Transform) -> BlockDiagonal:
    """One transform per block, from a batch of them.

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


def block_product(
    x: Float[Array, "*batch d"], m: Float[Array, "k k n"], size: int = 0
) -> Float[Array, "*batch e"]:
    """Block b of `x`, of k neighbours, times the matrix `m[:, :, b]`; for small k.

    Written element by element: XLA makes one loop of it, which reads and writes each vector once,
    and keeps `m` out of that loop where it comes from a matrix product. A shortened last block is
    a separate term, since padding or cropping inside that loop makes it slow.

    Args:
        x: vectors of n k elements, or fewer in the last block: as if padded with zeros.
        m: the matrices.
        size: length of the result, by default that of `x`; longer results are cropped to it.
    """
    k, size = len(m), size or x.shape[-1]
    whole = min(x.shape[-1], size) // k
    v = x[..., : whole * k].reshape(*x.shape[:-1], whole, k)
    columns = [
        sum(v[..., j] * to_rank(m[j, i, :whole], x.ndim) for j in range(k)) for i in range(k)
    ]
    y = jnp.stack(columns, axis=-1).reshape(*x.shape[:-1], whole * k)
    rest = x[..., whole * k :]
    if rest.shape[-1] == size - whole * k == 0:
        return y
    last = sum(
        rest[..., j, None] * to_rank(m[j, : size - whole * k, whole], x.ndim)
        for j in range(rest.shape[-1])
    )
    return jnp.concatenate([y, last], axis=-1)
