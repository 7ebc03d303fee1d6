"""Packing: codes of any number of bits in bytes, without gaps.

A code is split into fields of 4, 2 and 1 bits (of 8 for codes of 8), lowest bits first, that sum to
its number of bits: 3 bits are a field of 2 and one of 1. The bytes of a vector hold the first field
of all codes, then the second, and so on. So 3-bit codes take 3 bits, and no field crosses a byte:
reading one takes one byte and one shift. Bit k of the stream is bit k % 8 of byte k // 8.
"""

from __future__ import annotations

import functools
import itertools
import operator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Integer, UInt8

from isojax._core.axes import to_rank
from isojax._core.checks import check_choice, check_last_axis

MOST_BITS = 8


def packed_bytes(dim: int, bits: int | float) -> int:
    """Bytes of `dim` packed codes of `bits` bits: ceil(dim * bits / 8).

    Where codes differ, `bits` is their mean.
    """
    return -(-round(dim * bits) // 8)


def fields(bits: int) -> list[tuple[int, int]]:
    """The lowest bit and the width of each field of a code of `bits` bits, 0 to 8."""
    widths = [width for width in (8, 4, 2, 1) if bits & width]
    return list(zip(itertools.accumulate([0, *widths]), widths, strict=False))


def pack_bits(values: UInt8[Array, "*batch d"], bits: int) -> UInt8[Array, "*batch n"]:
    """The bytes of codes of `bits` bits.

    Args:
        values: codes below 2^bits, of any length; not checked.
        bits: 0 to 8.

    Raises:
        ValueError: `bits` is none of these.
    """
    check_choice("bits", bits, range(MOST_BITS + 1))
    *batch, dim = values.shape
    length = packed_bytes(dim, bits)
    packed = jnp.zeros((*batch, length), jnp.uint8)
    for low, width in fields(bits):
        each = 8 // width  # codes per byte
        field = _padded((values >> low) & (2**width - 1), 0, dim + -dim % each)
        field = field.reshape(*batch, -(-dim // each), each)
        plane = functools.reduce(operator.or_, (field[..., i] << (width * i) for i in range(each)))
        byte, shift = divmod(low * dim, 8)
        packed |= _padded(plane << shift, byte, length)
        if shift:
            packed |= _padded(plane >> (8 - shift), byte + 1, length)
    return packed


def unpack_bits(packed: UInt8[Array, "*batch n"], bits: int, dim: int) -> UInt8[Array, "*batch d"]:
    """The inverse of `pack_bits`: `dim` codes of `bits` bits.

    Raises:
        ValueError: `bits` is not 0 to 8, or `packed` does not have the length of `dim` codes.
    """
    check_choice("bits", bits, range(MOST_BITS + 1))
    check_last_axis("packed", packed, packed_bytes(dim, bits))
    values = jnp.zeros((*packed.shape[:-1], dim), jnp.uint8)
    for low, width in fields(bits):
        each = 8 // width
        size = -(-dim // each)
        byte, shift = divmod(low * dim, 8)
        plane = packed[..., byte : byte + size] >> shift
        if shift:
            above = packed[..., byte + 1 : byte + 1 + size]
            plane |= _padded(above, 0, size) << (8 - shift)
        within = width * jnp.arange(each, dtype=jnp.uint8)
        field = plane[..., None] >> to_rank(within, plane.ndim + 1)
        field = jax.lax.collapse(field & (2**width - 1), packed.ndim - 1)[..., :dim]
        values |= field << low
    return values


def unpack_columns(packed: UInt8[Array, "n s"], bits: int, dim: int) -> UInt8[Array, "d s"]:
    """`unpack_bits` of s vectors that are columns: loops over vectors, which vectorise.

    Args:
        packed: the bytes of each vector in a column.
        bits: 0 to 8; fields begin where bytes do, as they do for a `dim` that 8 divides.
        dim: codes per vector.
    """
    values = jnp.zeros((dim, packed.shape[-1]), jnp.uint8)
    for low, width in fields(bits):
        each = 8 // width
        plane = packed[low * dim // 8 :][: -(-dim // each)]
        within = width * jnp.arange(each, dtype=jnp.uint8)
        field = plane[:, None] >> within[None, :, None]
        values |= (field & (2**width - 1)).reshape(-1, packed.shape[-1])[:dim] << low
    return values


def pack_mixed(
    values: UInt8[Array, "*batch d"], bits: Integer[Array, "d"], total_bytes: int
) -> UInt8[Array, "*batch n"]:
    """The bytes of codes, where code i has `bits[i]` bits, an array that may be traced.

    Args:
        values: codes below 2^bits, component by component; not checked.
        bits: 0 to 8, summing to at most 8 * total_bytes. Codes whose bits lie beyond that are
            lost without an error, since traced values cannot be checked.
        total_bytes: length of the result.
    """
    byte, shift = _places(bits)
    pair = values.astype(jnp.uint16) << to_rank(shift, values.ndim)
    empty = jnp.zeros((*values.shape[:-1], total_bytes), jnp.uint8)
    packed = empty.at[..., byte].add(pair.astype(jnp.uint8), mode="drop")
    return packed.at[..., byte + 1].add((pair >> 8).astype(jnp.uint8), mode="drop")


def unpack_mixed(
    packed: UInt8[Array, "*batch n"], bits: Integer[Array, "d"]
) -> UInt8[Array, "*batch d"]:
    """The inverse of `pack_mixed`; lost bits are read as zero."""
    byte, shift = _places(bits)
    pads = [(0, 0)] * (packed.ndim - 1) + [(0, 1)]
    padded = jnp.pad(packed, pads).astype(jnp.uint16)
    low, high = (padded.at[..., at].get(mode="clip") for at in (byte, byte + 1))
    mask = (jnp.uint16(1) << bits.astype(jnp.uint16)) - 1
    shift, mask = (to_rank(a, packed.ndim) for a in (shift, mask))
    return (((low | high << 8) >> shift) & mask).astype(jnp.uint8)


def _places(bits: Array) -> tuple[Array, Array]:
    """The byte in which each code begins, and at which bit of it."""
    bits = bits.astype(jnp.int32)  # sums of bytes would wrap
    start = jnp.cumsum(bits) - bits
    return start // 8, (start % 8).astype(jnp.uint16)


def _padded(x: Array, before: int, length: int) -> Array:
    """`x` after `before` zeros, padded with zeros or cropped to `length`."""
    pads = [(0, 0)] * (x.ndim - 1) + [(before, max(length - before - x.shape[-1], 0))]
    return jnp.pad(x, pads)[..., :length]
