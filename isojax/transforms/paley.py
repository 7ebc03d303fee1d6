"""Hadamard matrices by construction: Sylvester, Paley I and Paley II, in integers on the host.

A Hadamard matrix of order n has entries +-1 and H H^T = n I. Orders here are 2^k times 1 or a
`base` that has an odd factor:

- Sylvester (1867): [[H, H], [H, -H]], order 2^k;
- Paley I (1933): order q + 1 for a prime power q = 3 mod 4;
- Paley II: order 2 (q + 1) for a prime power q = 1 mod 4.

The Kronecker product of two Hadamard matrices is a Hadamard matrix. Bases that need Williamson's
construction (92, 116, 156, 172, ...) are left out; of them, twice 156 and 172 are Paley orders.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
from jaxtyping import Int8

from isojax._core.checks import check_positive


def decompose(order: int) -> tuple[int, int]:
    """Split `order` into (2^k, base): base is 1, or the smallest Paley order that works.

    Example:
        >>> decompose(8960)
        (64, 140)

    Raises:
        ValueError: there is no such split; the message names the divisors of `order` that have one.
    """
    order = check_positive("order", order)
    base = _base(order)
    if base is None:
        works = ", ".join(map(str, admissible_blocks(order)))
        raise ValueError(
            f"order must be 2^k times a Paley order, got {order}; blocks that divide it and "
            f"work: {works}."
        )
    return order // base, base


def admissible_blocks(dim: int) -> tuple[int, ...]:
    """The divisors of `dim` that are orders of a Hadamard matrix here, largest first."""
    low = [n for n in range(1, math.isqrt(dim) + 1) if dim % n == 0]
    divisors = sorted({*low, *(dim // n for n in low)}, reverse=True)
    return tuple(n for n in divisors if _base(n) is not None)


def largest_block(most: int, dim: int) -> int:
    """The largest of `admissible_blocks` that is at most `most`."""
    return next(block for block in admissible_blocks(dim) if block <= most)


@functools.lru_cache(maxsize=16)
def sylvester(order: int) -> Int8[np.ndarray, "n n"]:
    """The symmetric Hadamard matrix of order 2^k in natural order: (-1)^popcount(i & j)."""
    i = np.arange(order)
    return _frozen(1 - 2 * (np.bitwise_count(i[:, None] & i) % 2).astype(np.int8))


@functools.lru_cache(maxsize=16)
def paley(order: int) -> Int8[np.ndarray, "n n"]:
    """The Hadamard matrix of a Paley order: skew plus identity (I) or symmetric (II).

    Raises:
        ValueError: neither `order` - 1 is a prime power that is 3 mod 4, nor `order` / 2 - 1 one
            that is 1 mod 4.
    """
    if _is_paley_1(order):
        q = _jacobsthal(order - 1)
        return _frozen(np.eye(order, dtype=np.int8) + np.block([[0, _row(q)], [-_row(q).T, q]]))
    if _is_paley_2(order):
        q = _jacobsthal(order // 2 - 1)
        conference = np.block([[0, _row(q)], [_row(q).T, q]])
        identity = np.eye(order // 2, dtype=np.int8)
        return _frozen(
            np.kron(conference, [[1, 1], [1, -1]]) + np.kron(identity, [[1, -1], [-1, -1]])
        )
    raise ValueError(f"order must be a Paley order (12, 20, 28, 36, ...), got {order}.")


def hadamard_matrix(order: int) -> Int8[np.ndarray, "n n"]:
    """The Hadamard matrix of any admissible order: sylvester(2^k) Kronecker paley(base).

    Raises:
        ValueError: see `decompose`.
    """
    power, base = decompose(order)
    return np.kron(sylvester(power), paley(base)) if base > 1 else sylvester(power)


def _base(order: int) -> int | None:
    odd = order // (order & -order)
    if odd == 1:
        return 1
    base = 4 * odd
    while order % base == 0:
        if _is_paley_1(base) or _is_paley_2(base):
            return base
        base *= 2
    return None


def _is_paley_1(order: int) -> bool:
    return order % 4 == 0 and _prime_power(order - 1) is not None


def _is_paley_2(order: int) -> bool:
    return order % 4 == 0 and order % 8 != 0 and _prime_power(order // 2 - 1) is not None


def _prime_power(q: int) -> tuple[int, int] | None:
    """The prime p and exponent k with q = p^k, or None."""
    if q < 2:
        return None
    p = next((p for p in range(2, int(q**0.5) + 1) if q % p == 0), q)
    k = 1
    while p**k < q:
        k += 1
    return (p, k) if p**k == q else None


def _jacobsthal(q: int) -> np.ndarray:
    """Q[a, b] = chi(a - b) for the quadratic character chi of the field of q elements."""
    p, k = _prime_power(q) or (q, 1)
    elements = np.array(list(itertools.product(range(p), repeat=k)))
    place = p ** np.arange(k)[::-1]
    chi = np.full(q, -1, np.int8)
    chi[0] = 0
    chi[_squares(p, k) @ place] = 1
    return chi[(elements[:, None] - elements) % p @ place]


def _squares(p: int, k: int) -> np.ndarray:
    """Nonzero squares of the field of p^k elements, as polynomials, constant term first.

    They are the even powers of x modulo a primitive polynomial x^k - sum_i c_i x^i. One is found
    by trial: x must take p^k - 1 powers to come back to 1.
    """
    for c in itertools.product(range(1, p), *[range(p)] * (k - 1)):
        power = (1,) + (0,) * (k - 1)
        powers = []
        for _ in range(p**k - 1):
            powers.append(power)
            *low, top = power
            power = tuple((a + top * b) % p for a, b in zip((0, *low), c, strict=True))
        if len(set(powers)) == len(powers):
            return np.array(powers[::2])
    raise AssertionError(f"no primitive polynomial for {p}^{k}")


def _row(q: np.ndarray) -> np.ndarray:
    return np.ones((1, len(q)), np.int8)


def _frozen(matrix: np.ndarray) -> np.ndarray:
    matrix = matrix.astype(np.int8)
    matrix.flags.writeable = False
    return matrix
