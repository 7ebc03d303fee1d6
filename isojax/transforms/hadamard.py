"""Randomised Hadamard transforms: a rotation of the whole vector in O(d log d)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8, Key

from isojax._core.checks import check_choice, check_positive, compute_dtype
from isojax._core.pytree import pytree, static
from isojax.transforms.base import Transform
from isojax.transforms.paley import admissible_blocks, decompose, paley, sylvester


def fwht(x: Float[Array, "*batch d"], *, transposed: bool = False) -> Float[Array, "*batch d"]:
    """Normalised fast Hadamard transform of the last axis: `x @ H / sqrt(d)`.

    H is `paley.hadamard_matrix(d)`, a Kronecker product. Its last factor, of some 32 numbers that
    are neighbours in memory, is one matrix product; the others are butterflies of up to 8 numbers
    that lie apart, so that loops over what lies between them are long. Each of these reads and
    writes all vectors once.

    Computed in fp32 (fp64 for fp64) and returned in the dtype of `x`.

    Args:
        x: vectors of any length d with a Hadamard matrix.
        transposed: use H^T. Only Paley I makes a difference; Sylvester and Paley II are symmetric.

    Raises:
        ValueError: no Hadamard matrix of order d (see `paley.decompose`), or `x` is not floating.
    """
    *lead, d = x.shape
    last, orders = _factors(d)
    given, dtype = x.dtype, compute_dtype(x.dtype)
    h = jnp.asarray((last.T if transposed else last) / np.sqrt(d), dtype)
    x = x.astype(dtype)
    x = jnp.matmul(x.reshape(*lead, d // len(h), len(h)), h, precision="highest")
    stride = len(h)
    for order in orders:
        if stride > len(h):  # else XLA may make one loop of all, in which each repeats those before
            x = jax.lax.optimization_barrier(x)
        x = x.reshape(*lead, d // (order * stride), order, stride)
        x = jnp.stack(_butterfly([x[..., i, :] for i in range(order)]), axis=-2)
        stride *= order
    return x.reshape(*lead, d).astype(given)


def _factors(order: int) -> tuple[Int8[np.ndarray, "n n"], list[int]]:
    """The last factor of the Hadamard matrix, and the orders of those before, of Sylvester."""
    power, base = decompose(order)
    bits, last = power.bit_length() - 1, paley(base) if base > 1 else None
    if last is None:
        least = min(bits, 6 if bits % 3 == 0 else 5)
        last, bits = sylvester(2**least), bits - least
    return last, [8] * (bits // 3) + [2 ** (bits % 3)] * (bits % 3 > 0)


def _butterfly(parts: list[Array]) -> list[Array]:
    """The Sylvester matrix of as many rows, on a list of arrays."""
    if len(parts) == 1:
        return parts
    half = len(parts) // 2
    a, b = _butterfly(parts[:half]), _butterfly(parts[half:])
    pairs = list(zip(a, b, strict=True))
    return [x + y for x, y in pairs] + [x - y for x, y in pairs]


@pytree
class Hadamard(Transform):
    """`(x * signs) @ H / sqrt(block)` on each block of `block` neighbours; or its inverse.

    Attributes:
        signs: +-1 for every coordinate, [d].
        block: order of H, a divisor of d.
        transposed: whether this is the inverse, `(x @ H^T / sqrt(block)) * signs`.
    """

    signs: Float[Array, "... d"]
    block: int = static()
    transposed: bool = static(default=False)

    @property
    def dim(self) -> int:  # noqa: D102
        return self.signs.shape[-1]

    @property
    def T(self) -> Hadamard:  # noqa: D102
        return Hadamard(self.signs, self.block, not self.transposed)

    @property
    def params(self) -> int:  # noqa: D102
        return self.dim

    @property
    def fmas(self) -> int:  # noqa: D102
        power, base = decompose(self.block)
        return self.dim * (power.bit_length() - 1 + (base if base > 1 else 0))

    def _apply(self, x: Array) -> Array:
        signs = self.signs.astype(x.dtype)
        v = x if self.transposed else x * signs
        v = v.reshape(*x.shape[:-1], self.dim // self.block, self.block)
        v = fwht(v, transposed=self.transposed).reshape(x.shape)
        return v * signs if self.transposed else v


def hadamard(key: Key[Array, ""] | None, dim: int) -> Hadamard:
    """Hadamard transform of the whole vector after random signs (Ailon and Chazelle 2006).

    Args:
        key: draws the signs; None for the plain Hadamard transform.
        dim: an order with a Hadamard matrix, such as 2^k times 1, 12, 20, 28, 36, 44, 52, 60.

    Raises:
        ValueError: `dim` is no such order; the message names the blocks that work.
    """
    decompose(dim)
    return block_hadamard(key, dim, dim)


def block_hadamard(key: Key[Array, ""] | None, dim: int, block: int) -> Hadamard:
    """The same Hadamard on every block of `block` neighbours, after random signs.

    Args:
        key: draws the `dim` signs; None for none.
        dim: length of the vectors.
        block: a divisor of `dim` with a Hadamard matrix.

    Raises:
        ValueError: `block` is no such divisor; the message names those that work.
    """
    dim = check_positive("dim", dim)
    check_choice("block", block, admissible_blocks(dim))
    if key is None:
        return Hadamard(jnp.ones(dim, jnp.float32), block)
    return Hadamard(jax.random.rademacher(key, (dim,), jnp.float32), block)
