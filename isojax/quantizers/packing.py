"""Packing: codes of any number of bits in bytes, without gaps.

The bits of a vector's codes form one stream, lowest bit first, and bit k of the stream is bit
k % 8 of byte k // 8. So 3-bit codes take 3 bits: eight of them fill three bytes.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Integer, UInt8

from isojax._core.checks import check_choice, check_last_axis

MOST_BITS = 8


def packed_bytes(dim: int, bits: int | float) -> int:
    """Bytes of `dim` packed codes of `bits` bits: ceil(dim * bits / 8).

    Where codes differ, `bits` is their mean.
    """
    return -(-round(dim * bits) // 8)


def pack_bits(values: UInt8[Array, "*batch d"], bits: int) -> UInt8[Array, "*batch n"]:
    """The bytes of codes of `bits` bits: code i has the bits [bits * i, bits * (i + 1)).

    Args:
        values: codes below 2^bits, of any length; not checked.
        bits: 0 to 8.

    Raises:
        ValueError: `bits` is none of these.
    """
    check_choice("bits", bits, range(MOST_BITS + 1))
    *batch, dim = values.shape
    codes, size = _cycle(bits)
    pads = [(0, 0)] * len(batch) + [(0, -dim % codes)]
    cycles = jnp.pad(values, pads).reshape(*batch, -(-dim // codes), codes)
    packed = [jnp.zeros(cycles.shape[:-1], jnp.uint8)] * size
    for i in range(codes):
        for byte in range(bits * i // 8, -(-bits * (i + 1) // 8)):
            packed[byte] |= _shift_left(cycles[..., i], bits * i - 8 * byte)
    return _joined(packed, batch)[..., : packed_bytes(dim, bits)]


def unpack_bits(packed: UInt8[Array, "*batch n"], bits: int, dim: int) -> UInt8[Array, "*batch d"]:
    """The `dim` codes of `bits` bits that `pack_bits` made `packed` from.

    Raises:
        ValueError: `bits` is not 0 to 8, or `packed` has not the length of so many codes.
    """
    return jax.lax.collapse(unpack_cycles(packed, bits, dim), -2)[..., :dim]


def unpack_cycles(
    packed: UInt8[Array, "*batch n"], bits: int, dim: int
) -> UInt8[Array, "*batch cycles codes"]:
    """`unpack_bits` by cycles, the fewest codes that fill whole bytes; the last one is filled up.

    Raises:
        ValueError: as there.
    """
    check_choice("bits", bits, range(MOST_BITS + 1))
    check_last_axis("packed", packed, packed_bytes(dim, bits))
    *batch, length = packed.shape
    codes, size = _cycle(bits)
    if bits == 0:
        return jnp.zeros((*batch, -(-dim // codes), codes), jnp.uint8)
    pads = [(0, 0)] * len(batch) + [(0, -length % size)]
    cycles = jnp.pad(packed, pads).reshape(*batch, -(-length // size), size).astype(jnp.uint32)
    run = min(codes, 32 // bits)
    runs = []
    for first in range(0, codes, run):
        here = range(first, min(first + run, codes))
        word = jnp.zeros(cycles.shape[:-1], jnp.uint32)
        for byte in range(bits * here[0] // 8, -(-bits * (here[-1] + 1) // 8)):
            word |= _shift_left(cycles[..., byte], 8 * byte - bits * first)
        shifts = bits * jnp.arange(len(here), dtype=jnp.uint32)
        runs.append(word[..., None] >> shifts)
    return (jnp.concatenate(runs, axis=-1) & (2**bits - 1)).astype(jnp.uint8)


def pack_mixed(
    values: UInt8[Array, "*batch d"], bits: Integer[Array, "d"], total_bytes: int
) -> UInt8[Array, "*batch n"]:
    """The bytes of codes of which code i has `bits[i]` bits, which are data.

    Args:
        values: codes below 2^bits, component by component; not checked.
        bits: 0 to 8, summing to at most 8 * total_bytes. Codes whose bits lie beyond that are
            lost, in silence, since traced numbers cannot be checked.
        total_bytes: length of the result.
    """
    byte, shift = _places(bits)
    pair = values.astype(jnp.uint16) << shift
    empty = jnp.zeros((*values.shape[:-1], total_bytes), jnp.uint8)
    packed = empty.at[..., byte].add(pair.astype(jnp.uint8), mode="drop")
    return packed.at[..., byte + 1].add((pair >> 8).astype(jnp.uint8), mode="drop")


def unpack_mixed(
    packed: UInt8[Array, "*batch n"], bits: Integer[Array, "d"]
) -> UInt8[Array, "*batch d"]:
    """The codes that `pack_mixed` made `packed` from; lost bits are read as zero."""
    byte, shift = _places(bits)
    pads = [(0, 0)] * (packed.ndim - 1) + [(0, 1)]
    padded = jnp.pad(packed, pads).astype(jnp.uint16)
    low, high = (padded.at[..., at].get(mode="clip") for at in (byte, byte + 1))
    mask = (jnp.uint16(1) << bits.astype(jnp.uint16)) - 1
    return (((low | high << 8) >> shift) & mask).astype(jnp.uint8)


def _places(bits: Array) -> tuple[Array, Array]:
    """The byte in which each code begins, and at which bit of it."""
    start = jnp.cumsum(bits) - bits
    return start // 8, (start % 8).astype(jnp.uint16)


def _cycle(bits: int) -> tuple[int, int]:
    """The fewest codes of `bits` bits that fill whole bytes, and how many bytes."""
    common = math.gcd(8, bits)
    return 8 // common, bits // common


def _shift_left(a: Array, by: int) -> Array:
    return a << by if by >= 0 else a >> -by


def _joined(parts: list[Array], batch: list[int]) -> Array:
    if not parts:
        return jnp.zeros((*batch, 0), jnp.uint8)
    return jax.lax.collapse(jnp.stack(parts, axis=-1), -2)
