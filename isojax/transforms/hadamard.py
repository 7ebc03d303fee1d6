"""Randomised Hadamard transforms: a rotation of the whole vector in O(d log d)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8, Key

from isojax._core.axes import to_rank
from isojax._core.checks import check_choice, check_positive, compute_dtype
from isojax._core.pytree import pytree, static
from isojax.transforms.base import Transform
from isojax.transforms.drawn import drawn
from isojax.transforms.paley import admissible_blocks, decompose, hadamard_matrix, sylvester


def fwht(x: Float[Array, "*batch d"], *, transposed: bool = False) -> Float[Array, "*batch d"]:
    """Normalised fast Hadamard transform of the last axis: `x @ H / sqrt(d)`.

    H is `paley.hadamard_matrix(d)`, a Kronecker product whose factors may act in any order. Here
    the first factor, of 16 distant elements, acts first, then the last, of 16 or more neighbours,
    then those between. Each reads and writes all vectors once.

    Computed in fp32 (fp64 for fp64) and returned in the dtype of `x`.

    Args:
        x: vectors of any length d with a Hadamard matrix.
        transposed: use H^T. Only Paley I makes a difference; Sylvester and Paley II are symmetric.

    Raises:
        ValueError: no Hadamard matrix of order d (see `paley.decompose`), or `x` is not floating.
    """
    return _multiply(x.astype(compute_dtype(x.dtype)), transposed).astype(x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _multiply(x: Array, transposed: bool) -> Array:
    """`x @ H / sqrt(d)`, or with H^T."""
    return _sums(x, transposed)


@_multiply.defjvp
def _tangent(transposed: bool, x: tuple[Array], t: tuple[Array]) -> tuple[Array, Array]:
    """Written as the adjoint of the inverse, so that its own adjoint, a gradient, is fast."""
    adjoint = jax.linear_transpose(lambda v: _sums(v, not transposed), *x)
    return _multiply(*x, transposed), *adjoint(*t)


def _sums(x: Array, transposed: bool) -> Array:
    """The computation of `_multiply`.

    The last factor is a matrix product. The others are sums with signs: LLVM does not vectorise a
    butterfly, whose sums share terms. XLA on a CPU fuses a sum with the computation of its terms,
    barrier or not, and repeats that for each term; but not across a product, nor for 16 terms.
    Hence 16 first, then the product.
    """
    *lead, d = x.shape
    last, orders = _factors(d)
    h = jnp.asarray((last.T if transposed else last) / np.sqrt(d), x.dtype)
    stride = d
    for i, order in enumerate(orders or [1]):
        x = x.reshape(*lead, d // stride, 1, stride)
        signs = jnp.asarray(sylvester(order)[..., None], x.dtype)
        parts = jnp.split(x, order, axis=-1)
        terms = (to_rank(signs[:, j], x.ndim) * part for j, part in enumerate(parts))
        x = sum(terms, jnp.zeros((), x.dtype))
        stride //= order
        if i == 0:
            x = jnp.matmul(x.reshape(*lead, d // len(h), len(h)), h, precision="highest")
    return x.reshape(*lead, d)


def _factors(order: int) -> tuple[Int8[np.ndarray, "n n"], list[int]]:
    """The last factor of the Hadamard matrix, and the orders of the Sylvester factors before it."""
    power, last = decompose(order)
    while power > 1 and (last < 16 or (last % 8 and last < 64)):  # else SIMD vectors are not full
        power, last = power // 2, last * 2
    bits = power.bit_length() - 1
    orders = [16] * (bits // 4)
    if bits % 4:
        orders.insert(1, 2 ** (bits % 4))
    return hadamard_matrix(last), orders


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

    def forward(self, x: Array) -> Array:  # noqa: D102
        signs = to_rank(self.signs.astype(x.dtype), x.ndim)
        v = x if self.transposed else x * signs
        v = v.reshape(*x.shape[:-1], self.dim // self.block, self.block)
        v = fwht(v, transposed=self.transposed).reshape(x.shape)
        return v * signs if self.transposed else v


@drawn("hadamard")
def hadamard(key: Key[Array, ""] | None, dim: int) -> Hadamard:
    """Hadamard transform of the whole vector after random signs (Ailon and Chazelle 2006).

    Args:
        key: draws the signs; None for the plain Hadamard transform.
        dim: an order of a Hadamard matrix, such as 2^k times 1, 12, 20, 28, 36, 44, 52, 60.

    Raises:
        ValueError: `dim` is no such order; the message names the allowed blocks.
    """
    decompose(dim)
    return block_hadamard(key, dim, dim)


@drawn("block_hadamard", block="block")
def block_hadamard(key: Key[Array, ""] | None, dim: int, block: int) -> Hadamard:
    """The same Hadamard on every block of `block` neighbours, after random signs.

    Args:
        key: draws the `dim` signs; None for none.
        dim: length of the vectors.
        block: a divisor of `dim` with a Hadamard matrix.

    Raises:
        ValueError: `block` is no such divisor; the message names the allowed ones.
    """
    dim = check_positive("dim", dim)
    check_choice("block", block, admissible_blocks(dim))
    if key is None:
        return Hadamard(jnp.ones(dim, jnp.float32), block)
    return Hadamard(jax.random.rademacher(key, (dim,), jnp.float32), block)
