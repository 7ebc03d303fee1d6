"""Bitstreams: integer codes to entropy-coded bytes and back.

`len(encode_codes(codes))` is the actual size of a file, `code_entropy_bits` an ideal one. A model
holds the frequency of each code: one model for all codes, or one per channel. The stream holds its
models, so that it can be decoded without other data:

| bytes | content (integers are little-endian) |
|---|---|
| 4 | "ISO1" |
| 4 | length of the deflated header |
| ... | header: dtype, shape and models, as 64-bit integers in byte planes, deflated |
| ... | the codes by asymmetric numeral systems (Duda 2009), in 32-bit words |
| ... | words that are zero, where codes or header would be longer than the length allows |
| 4 | CRC-32 of all before |

One byte of a stream may represent at most 1024 codes and 64 bytes of the inflated header, so that
a small stream cannot demand much memory. A model takes about one byte per distinct code: the gap to
the previous one, and its frequency, to a sixteenth of an octave (which costs 2^-11 bits per code).
Where codes differ widely, some of their lowest bits are stored raw, as many as make the stream
shortest, and the model covers the rest.
"""

from __future__ import annotations

import math
import zlib
from typing import Any, NamedTuple

import numpy as np
from constriction import stream as coding  # pyright: ignore[reportAttributeAccessIssue]

from isojax._core.checks import check_choice

MAGIC = b"ISO1"
FRAME = 12  # bytes of magic, length and CRC
DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64")
PER = ("tensor", "channel")
CODES_A_BYTE = 1024  # the highest ratio of deflate
HEADER_A_BYTE = 64
SYMBOL_BITS = 8  # of a symbol in a model, plus log2 of its gap
MOST_BITS = 64  # of a code, and of their number
AXES = 64  # NumPy's maximum
RAW = 16  # most raw bits written at a time


class Model(NamedTuple):
    """Frequencies of codes.

    Attributes:
        shift: number of lowest bits that are stored raw.
        symbols: the distinct values of codes >> shift, in increasing order.
        levels: 8 log2 of the count of each symbol, rounded.
    """

    shift: int
    symbols: np.ndarray
    levels: np.ndarray

    def push(self, coder: coding.stack.AnsCoder, codes: np.ndarray) -> None:
        """Put codes on the stack `coder`."""
        for start in reversed(range(0, self.shift, RAW)):
            size = 2 ** min(RAW, self.shift - start)
            coder.encode_reverse(_int32(codes >> start & size - 1), coding.model.Uniform(size))
        if self.symbols.size > 1:
            index = np.searchsorted(self.symbols, codes >> self.shift)
            coder.encode_reverse(_int32(index), self._frequencies())

    def pop(self, coder: coding.stack.AnsCoder, number: int) -> np.ndarray:
        """Take `number` codes from the stack `coder`."""
        index = np.zeros(number, np.int32)
        if self.symbols.size > 1:
            index = coder.decode(self._frequencies(), number)
        codes = self.symbols[index] << self.shift
        for start in range(0, self.shift, RAW):
            size = 2 ** min(RAW, self.shift - start)
            codes |= coder.decode(coding.model.Uniform(size), number).astype(np.int64) << start
        return codes

    def fits(self, number: int, dtype: np.dtype) -> bool:
        """Whether the model is valid for `number` codes of `dtype`."""
        if self.symbols.size == 0 or number == 0:
            return self.symbols.size == number == self.shift
        ends = np.iinfo(dtype)
        return 0 <= self.shift < ends.bits and bool(
            np.all(self.symbols[1:] > self.symbols[:-1])
            and self.symbols[0] >= ends.min >> self.shift
            and self.symbols[-1] <= ends.max >> self.shift
            and 0 <= self.levels.min() <= self.levels.max() < 8 * MOST_BITS
        )

    def _frequencies(self) -> coding.model.Categorical:
        # whole numbers, so that encoder and decoder agree however exp2 is rounded
        return coding.model.Categorical(np.round(256 * np.exp2(self.levels / 8)), perfect=False)


def encode_codes(codes: Any, per: str = "tensor") -> bytes:
    """The bytes of integer codes.

    Args:
        codes: an array of any shape, of a dtype in `DTYPES`.
        per: which codes share a model: all of them (`tensor`), or those of one coordinate of the
            last axis (`channel`), worthwhile where a channel has many more codes than its model.

    Raises:
        ValueError: the dtype or `per` is not allowed, or `per` is `channel` for a scalar.
    """
    codes = np.asarray(codes)
    check_choice("the dtype of codes", codes.dtype.name, DTYPES)
    check_choice("per", per, PER if codes.ndim else PER[:1])
    rows = codes.reshape(_rows(codes.shape, per)).T.astype(np.int64)
    models = [_fit(row) for row in rows]
    coder = coding.stack.AnsCoder()
    for model, row in zip(models[::-1], rows[::-1], strict=True):
        model.push(coder, row)

    header = [[DTYPES.index(codes.dtype.name), PER.index(per), codes.ndim, *codes.shape]]
    header += [[m.shift for m in models], [m.symbols.size for m in models]]
    header += [np.diff(m.symbols, prepend=0) for m in models] + [m.levels for m in models]
    numbers = np.concatenate(header).astype(np.int64)
    packed = _deflate(numbers)
    words = coder.get_compressed().astype("<u4").tobytes()
    least = max(codes.size // CODES_A_BYTE, numbers.nbytes // HEADER_A_BYTE)
    words += bytes(-(max(least - FRAME - len(packed) - len(words), 0) // -4) * 4)
    body = MAGIC + len(packed).to_bytes(4, "little") + packed + words
    return body + zlib.crc32(body).to_bytes(4, "little")


def decode_codes(stream: bytes) -> np.ndarray:
    """The inverse of `encode_codes`: the codes in their shape and dtype.

    The memory used is bounded by the length of the stream, whatever its content.

    Raises:
        ValueError: `stream` is no such stream, or is truncated or damaged.
    """
    at = header_bytes(stream) - 4  # the CRC comes last
    shape, dtype, per, models = _read_header(stream, at)
    number, count = _rows(shape, per)
    if (len(stream) - at) % 4:
        raise ValueError(f"stream must hold words of 4 bytes, got {len(stream) - at - 4} bytes.")
    # words never end in zero, so zeros at the end are padding
    words = np.trim_zeros(np.frombuffer(stream[at:-4], "<u4").astype(np.uint32), "b")
    coder = coding.stack.AnsCoder(words)
    rows = np.empty((count, number), dtype)
    for row, model in zip(rows, models, strict=True):
        row[:] = model.pop(coder, number)
    if not coder.is_empty():
        raise ValueError("stream is longer than its codes.")
    return rows.T.reshape(shape)


def header_bytes(stream: bytes) -> int:
    """Number of bytes of a stream that are not codes: models, shape and frame.

    Raises:
        ValueError: as by `decode_codes`.
    """
    if stream[:4] != MAGIC or len(stream) < FRAME:
        raise ValueError(f"stream must begin with {MAGIC!r}, got {stream[:4]!r}.")
    found, expected = zlib.crc32(stream[:-4]), int.from_bytes(stream[-4:], "little")
    if found != expected:
        raise ValueError(f"stream is damaged: its CRC-32 must be {expected:#x}, got {found:#x}.")
    size = FRAME + int.from_bytes(stream[4:8], "little")
    if size > len(stream):
        raise ValueError(f"stream must hold a header of {size} bytes, got {len(stream)} bytes.")
    return size


def _read_header(stream: bytes, at: int) -> tuple[tuple[int, ...], np.dtype, str, list[Model]]:
    """Shape, dtype, `per` and models, checked against each other and the length of `stream`."""
    header = _inflate(stream[8:at], HEADER_A_BYTE * (len(stream) + 1))
    first, header = header[:3].tolist(), header[3:]
    damaged = ValueError("stream has a header that contradicts itself.")
    if len(first) < 3 or not (
        0 <= first[0] < len(DTYPES) and 0 <= first[1] < len(PER) and first[1] <= first[2] <= AXES
    ):
        raise damaged
    dtype, per, ndim = np.dtype(DTYPES[first[0]]), PER[first[1]], first[2]
    shape, header = tuple(header[:ndim].tolist()), header[ndim:]
    if len(shape) < ndim or any(size < 0 for size in shape):
        raise damaged
    number, count = _rows(shape, per)
    if number * count > CODES_A_BYTE * (len(stream) + 1):
        raise ValueError(
            f"stream of {len(stream)} bytes must hold at most {CODES_A_BYTE} codes per byte, "
            f"got shape {shape}."
        )
    if 2 * count > header.size:
        raise damaged
    (shifts, sizes), header = header[: 2 * count].reshape(2, count), header[2 * count :]
    if np.any((sizes < 0) | (sizes > header.size)) or 2 * sizes.sum() != header.size:
        raise damaged
    gaps, levels = (np.split(part, np.cumsum(sizes)[:-1]) for part in header.reshape(2, -1))
    models = [Model(int(shifts[i]), np.cumsum(gaps[i]), levels[i]) for i in range(count)]
    if not all(model.fits(number, dtype) for model in models):
        raise damaged
    return shape, dtype, per, models


def _rows(shape: tuple[int, ...], per: str) -> tuple[int, int]:
    """The number of codes per model, and the number of models."""
    count = shape[-1] if per == "channel" else 1
    return math.prod(shape) // max(count, 1), count


def _fit(codes: np.ndarray) -> Model:
    """The model that makes the stream of `codes` shortest."""
    values, counts = np.unique(codes, return_counts=True)
    best, least = Model(0, values, np.zeros(values.size, np.int64)), math.inf
    for shift in range(MOST_BITS):
        symbols, at = np.unique(values >> shift, return_inverse=True)
        often = np.bincount(at, counts)
        bits = codes.size * shift + often @ np.log2(codes.size / often)
        bits += SYMBOL_BITS * symbols.size + np.log2(np.diff(symbols.astype(float))).sum()
        if bits < least:
            least = bits
            best = Model(shift, symbols, np.round(8 * np.log2(often)).astype(np.int64))
        if symbols.size < 3:
            return best
    return best


def _deflate(numbers: np.ndarray) -> bytes:
    """Integers of either sign as byte planes, deflated."""
    planes = (numbers << 1 ^ numbers >> 63).astype("<i8").view(np.uint8).reshape(-1, 8).T
    return zlib.compress(planes.tobytes(), 9, -zlib.MAX_WBITS)


def _inflate(data: bytes, limit: int) -> np.ndarray:
    """The inverse of `_deflate`, for results of at most `limit` bytes."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        whole = inflater.decompress(data, limit + 1)
    except zlib.error as error:
        raise ValueError(f"stream has a header that cannot be inflated ({error}).") from None
    if len(whole) > limit or not inflater.eof or inflater.unused_data or len(whole) % 8:
        raise ValueError(
            f"stream has a header that does not inflate to whole numbers in {limit} bytes."
        )
    planes = np.frombuffer(whole, np.uint8).reshape(8, -1)
    numbers = planes.T.copy().view("<i8").ravel().astype(np.int64)
    return (numbers >> 1 & 2**63 - 1) ^ -(numbers & 1)


def _int32(numbers: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(numbers, np.int32)
