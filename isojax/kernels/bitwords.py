"""Codes to bytes and back inside of a kernel, in the order of `quantizers.packing`.

Lanes are taken in runs that fill whole bytes. The codes of a run make words of one byte, or of
three, which hold a whole number of codes of 1 to 4 bits: a word is a sum of shifted codes, and a
code a shifted word.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from isojax.kernels._pallas import Span
from isojax.kernels.tile import Lanes, indices, placed, read, write
from isojax.quantizers.packing import packed_bytes

MOST_WORDS = 3


@dataclasses.dataclass(frozen=True)
class Words:
    """How the codes of `lanes` lie in bytes.

    Attributes:
        lanes: the lanes that hold codes.
        bits: bits a code, 1 to 4.
        size: codes a vector.
    """

    lanes: Lanes
    bits: int
    size: int

    @property
    def codes(self) -> int:
        """Codes a run: the fewest that fill both groups of lanes and bytes."""
        return math.lcm(8 // math.gcd(8, self.bits), self.lanes.pitch)

    @property
    def run(self) -> int:
        """Lanes a run."""
        return self.codes // self.lanes.pitch * self.lanes.width

    @property
    def length(self) -> int:
        """Bytes a word."""
        return 3 if self.codes * self.bits // 8 % 3 == 0 else 1

    @property
    def number(self) -> int:
        """Words a run."""
        return self.codes * self.bits // 8 // self.length

    @property
    def unsupported(self) -> str:
        """What the kernels need of these words; empty if they have it."""
        if self.bits > 4:
            return f"codes of at most 4 bits, got {self.bits}."
        if self.number > MOST_WORDS or self.run > self.lanes.count:
            return f"packed codes of blocks without a factor {self.lanes.pitch} only."
        return ""

    def write(self, ref: Any, index: Array, span: Span) -> None:
        """Write the bytes of the codes `index` [rows, lanes] into a tile of bytes."""
        _, lane = indices(*index.shape)
        place, word, shift = self._of(lane % self.run)
        masks = []
        if self.lanes.pitch < self.lanes.width:
            masks.append(lane % self.lanes.width < self.lanes.pitch)
        if self.size < self.lanes.count:
            masks.append(lane // self.run * self.codes + place < self.size)
        for mask in masks:
            index = jnp.where(mask, index, 0)
        index = index << shift
        for i in range(self.number):
            own = index if self.number == 1 else jnp.where(word == i, index, 0)
            value = jnp.sum(own.reshape(span.rows, -1, self.run), axis=-1)
            if self.length == 3:
                value = value[:, :, None] >> _shifts(value.shape)
            write(ref, *self._bytes(span, i), (value & 255).reshape(span.rows, -1))

    def read(self, ref: Any, span: Span) -> Array:
        """The codes [rows, lanes] that `write` wrote."""
        lane = lax.broadcasted_iota(jnp.int32, (1, 1, self.run), 2)
        _, word, shift = self._of(lane)
        index: Any = 0
        for i in range(self.number):
            value = read(ref, *self._bytes(span, i)).astype(jnp.int32)
            if self.length == 3:
                value = value.reshape(span.rows, -1, 4)
                value = jnp.sum(value << _shifts(value.shape[:2]), axis=-1)
            index = jnp.where(word == i, value[:, :, None], index) if i else value[:, :, None]
        index = (index >> shift) & (2**self.bits - 1)
        return index.reshape(span.rows, self.lanes.count)

    def _of(self, lane: Array) -> tuple[Array, Array, Array]:
        """The code of a run that a lane holds, its word, and by how much it is shifted there."""
        width, pitch = self.lanes.width, self.lanes.pitch
        place = lane if width == pitch else lane // width * pitch + lane % width
        codes = 8 * self.length // self.bits
        return place, place // codes, place % codes * self.bits

    def _bytes(self, span: Span, word: int) -> tuple[tuple[Array, Array], Any]:
        """Where word `word` of each run lies, byte by byte; three bytes take four lanes."""
        runs = self.lanes.count // self.run
        lanes = 4 if self.length == 3 else 1
        row, at = indices(span.rows, runs * lanes)
        column = (at // lanes * self.number + word) * self.length + at % lanes
        total, masks = packed_bytes(self.size, self.bits), []
        if lanes == 4:
            masks.append(at % 4 < 3)
        if runs * self.number * self.length > total:
            masks.append(column < total)
        return placed(span, row, column, masks)


def _shifts(words: tuple[int, ...]) -> Array:
    """By how much each of four bytes, of which the last is none, is shifted in its word."""
    return 8 * lax.broadcasted_iota(jnp.int32, (*words, 4), 2)
