"""Codes to bytes and back inside a kernel, in the layout of `quantizers.packing`.

The fields of a code are written and read one after the other, in runs of lanes that fill whole
bytes of a field: a byte is a sum of shifted fields.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from isojax.kernels._pallas import Span, fma, whole
from isojax.kernels.tile import Lanes, indices, parts, placed, read_raw, rows_of, write
from isojax.quantizers.packing import fields

MOST_BITS = 4


@dataclasses.dataclass(frozen=True)
class Words:
    """The layout of the codes of `lanes` in bytes.

    Attributes:
        lanes: the lanes that hold codes.
        bits: bits per code, 1 to 4.
        size: codes per vector.
    """

    lanes: Lanes
    bits: int
    size: int

    @property
    def unsupported(self) -> str:
        """The requirement that these words do not meet; empty if the kernels support them."""
        if self.bits > MOST_BITS:
            return f"codes of at most {MOST_BITS} bits, got {self.bits}."
        if any(low * self.size % 8 for low, _ in fields(self.bits)):
            return f"vectors of a multiple of 4 codes of {self.bits} bits, got {self.size}."
        if any(self._run(width) > self.lanes.count for _, width in fields(self.bits)):
            return f"packed codes of more than {self.lanes.pitch} elements."
        return ""

    @property
    def dense(self) -> bool:
        """Whether every lane holds a code, and codes end where a byte does."""
        full = self.lanes.pitch == self.lanes.width and self.size == self.lanes.count
        return full and self.size % 8 == 0

    def write(self, ref: Any, index: Array, span: Span) -> None:
        """Write the bytes of the codes `index` [rows, lanes] into a tile of bytes."""
        lanes = self.lanes
        _, lane = indices(span.rows, lanes.count)
        masks = [lane % lanes.width < lanes.pitch] if lanes.pitch < lanes.width else []
        if self.size < lanes.count // lanes.width * lanes.pitch:
            masks.append(self._place(lane) < self.size)
        for mask in masks:
            index = jnp.where(mask, index, 0)
        for low, width in fields(self.bits):
            each, run, number = 8 // width, self._run(width), self._bytes_of_run(width)
            place = self._place(lane % run)
            field = index >> low if low else index
            if low + width < self.bits:
                field &= 2**width - 1
            field <<= place % each * width
            for i in range(number):
                own = field if number == 1 else jnp.where(place // each == i, field, 0)
                value = jnp.sum(own.reshape(span.rows, -1, run), axis=-1)
                write(ref, *self._bytes(span, low, width, i), value)

    def write_fields(self, ref: Any, found: list[Any], span: Span, interpret: bool) -> None:
        """Write codes with the fields a t + b for each (t, a, b) of `found`, in fp32."""
        for (low, width), (t, a, b) in zip(fields(self.bits), found, strict=True):
            *rest, byte = parts(t, 8 // width)
            for code in reversed(rest):
                byte = fma(byte, 2.0**width, code, interpret)
            ones = sum(2 ** (width * i) for i in range(8 // width))
            byte = whole(fma(byte, a, b * ones, interpret), interpret)
            write(ref, *self._bytes(span, low, width, 0), byte)

    def load(self, span: Span, tiled: Sequence[Any]) -> tuple[list[Array], Array | None]:
        """The `load` of `over_rows` for bytes and optional scales."""
        scale = read_raw(tiled[1], *rows_of(span)) if len(tiled) > 1 else None
        return self.read(tiled[0], span), scale

    def read(self, ref: Any, span: Span) -> list[Array]:
        """The bytes of each field; or one per lane, where some lanes hold no code."""
        if self.lanes.pitch == self.lanes.width:
            each = fields(self.bits)
            return [read_raw(ref, *self._bytes(span, low, width, 0)) for low, width in each]
        row, lane = indices(span.rows, self.lanes.count)
        place = self._place(lane)
        found = []
        for low, width in fields(self.bits):
            byte = low * self.size // 8 + place // (8 // width)
            found.append(read_raw(ref, *placed(span, row, byte, [place < self.size])))
        return found

    def index(self, found: list[Array], span: Span) -> Array:
        """The codes [rows, lanes] from the result of `read`; undefined for lanes without a code."""
        index: Any = None
        for (low, width), byte in zip(fields(self.bits), found, strict=True):
            each, mask, byte = 8 // width, 2**width - 1, byte.astype(jnp.int32)
            if self.lanes.pitch == self.lanes.width:
                shift = width * lax.broadcasted_iota(jnp.int32, (1, 1, each), 2)
                field = (byte[:, :, None] >> shift & mask).reshape(span.rows, self.lanes.count)
            else:
                place = self._place(indices(span.rows, self.lanes.count)[1])
                field = byte >> place % each * width & mask
            index = field if index is None else index | field << low
        return index

    def _bytes_of_run(self, width: int) -> int:
        """Bytes of the fewest codes of a field that fill whole groups of lanes with gaps."""
        gaps = self.lanes.pitch < self.lanes.width
        return math.lcm(8 // width, self.lanes.pitch) * width // 8 if gaps else 1

    def _run(self, width: int) -> int:
        """Number of lanes that hold these codes."""
        codes = self._bytes_of_run(width) * 8 // width
        return codes * self.lanes.width // self.lanes.pitch

    def _place(self, lane: Array) -> Array:
        """The index of the code in a lane."""
        width, pitch = self.lanes.width, self.lanes.pitch
        return lane if width == pitch else lane // width * pitch + lane % width

    def _bytes(self, span: Span, low: int, width: int, i: int) -> tuple[tuple[Array, Array], Any]:
        """The position of byte `i` of each run of a field."""
        runs, number = self.lanes.count // self._run(width), self._bytes_of_run(width)
        row, run = indices(span.rows, runs)
        column, total = run * number + i, -(-self.size * width // 8)
        masks = [column < total] if runs * number > total else []
        return placed(span, row, low * self.size // 8 + column, masks)
