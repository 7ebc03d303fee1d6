import tracemalloc
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from isojax import quantizers as q
from isojax.bitstream import CODES_A_BYTE, DTYPES, decode_codes, encode_codes, header_bytes
from isojax.metrics import code_entropy_bits

RNG = np.random.default_rng(0)
NUMBER = 120_000


def gaussian(deviation, dtype):
    return np.round(deviation * RNG.normal(size=NUMBER)).astype(dtype)


SMOOTH = {
    "nearly-constant": gaussian(0.2, np.int8),
    "one-bit": RNG.integers(0, 2, NUMBER, np.uint8),
    "two-bits": gaussian(1, np.int8),
    "five-bits": gaussian(8, np.int8),
    "eight-bits": gaussian(60, np.int32),
    "all-of-uint8": RNG.integers(0, 256, NUMBER).astype(np.uint8),
    "three-axes": gaussian(3, np.int16).reshape(20, 60, 100),
    "heavy-tails": np.round(20 * RNG.standard_t(2, NUMBER)).astype(np.int32),
    "outliers": np.where(RNG.random(NUMBER) < 1e-4, 2**31 - 1, gaussian(2, np.int64)),
    "multiples": 1000 * gaussian(5, np.int32),
}
OTHERS = {
    "constant": np.full((3, 50), -7, np.int8),
    "no-codes": np.zeros((0, 4), np.int32),
    "no-channels": np.zeros((4, 0), np.int32),
    "one-number": np.array(-5, np.int16),
    "full-range": RNG.integers(-(2**31), 2**31, 5000).astype(np.int32),
    "few-far-apart": RNG.choice([-(2**63), 0, 2**63 - 1], 500),
    "uint32": RNG.integers(0, 2**32, (40, 5), np.uint32),
    "fortran": np.asfortranarray(gaussian(4, np.int32).reshape(400, 300)),
}
LONG = {  # a stream shorter than this would stand for too much
    "constant": (np.zeros(3_000_000, np.int8), "tensor"),
    "one-of-many": (np.arange(2_000_000) == 1000, "tensor"),
    "constant-channels": (np.tile(np.arange(4000) % 7, (3, 1)), "channel"),
    "channels-of-nothing": (np.zeros((0, 4000), np.uint16), "channel"),
}
STREAM = encode_codes(SMOOTH["two-bits"][:1000])


def codes(table):
    return pytest.mark.parametrize("codes", table.values(), ids=table.keys())


@codes(SMOOTH | OTHERS)
@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_codes_return_bit_for_bit(codes, per):
    if codes.ndim == 0:
        per = "tensor"
    elif per == "channel" and codes.size == NUMBER:
        codes = codes.reshape(-1, 100)
    decoded = decode_codes(encode_codes(codes, per))
    assert decoded.dtype == codes.dtype
    assert_array_equal(decoded, codes, strict=True)


@codes(SMOOTH)
def test_the_stream_with_its_model_is_as_long_as_the_entropy(codes):
    entropy = float(code_entropy_bits(jnp.asarray(codes, jnp.int32), bins=2**17)) * codes.size / 8
    assert entropy - 1 < len(encode_codes(codes)) < 1.01 * entropy + 64


def test_a_model_a_channel_gives_each_its_own_entropy():
    spread = RNG.normal(size=(4096, 48)) * np.geomspace(0.1, 100, 48)
    codes = np.round(spread).astype(np.int32)
    stream = encode_codes(codes, "channel")
    entropy = float(code_entropy_bits(jnp.asarray(codes), "channel")) * codes.size / 8
    assert header_bytes(stream) < 48 * 40
    assert entropy < len(stream) - header_bytes(stream) + 48 * 32 < 1.02 * entropy + 48 * 32
    assert len(stream) < 0.8 * len(encode_codes(codes))


def test_the_header_is_what_does_not_grow_with_the_codes():
    few, many = (encode_codes(np.tile(SMOOTH["two-bits"][:5000], n)) for n in (1, 20))
    assert abs(header_bytes(few) - header_bytes(many)) < 8
    assert len(few) - header_bytes(few) == pytest.approx(
        (len(many) - header_bytes(many)) / 20, rel=0.01
    )


def test_codes_without_a_model_of_use_take_their_own_bits():
    noise = OTHERS["full-range"]
    assert len(encode_codes(noise)) < noise.nbytes + 64
    assert len(encode_codes(OTHERS["constant"])) < 64


@pytest.mark.parametrize("make", [q.d4_for_rate, q.e8_for_rate], ids=["d4", "e8"])
def test_the_entropy_of_a_lattice_is_that_of_streams_that_decode(make):
    y = jax.random.normal(jax.random.key(0), (30_000, 8))
    lattice = make(y, 2.0)
    codes = lattice.encode(y)
    v = np.asarray(codes.values).reshape(-1, lattice.size)
    coset = v[:, 0] % 2
    streams = [encode_codes(coset)] + [encode_codes(v[coset == s, :-1] // 2) for s in (0, 1)]
    # the last coordinate is known up to a multiple of four, or of two where any sum is allowed
    known = 4 if lattice.size == 8 else 2
    rest = v[:, -1] % known
    streams += [encode_codes(v[rest == r, -1] // known) for r in range(known)]
    rate = float(lattice.entropy_bits(codes))
    assert sum(map(len, streams)) < (1.01 * rate * y.size) / 8 + 64 * len(streams)

    parts = [decode_codes(s).astype(int) for s in streams]
    again, coset = np.empty_like(v), parts[0]
    for s in (0, 1):
        again[coset == s, :-1] = 2 * parts[1 + s] + s
    rest = coset if known == 2 else -again[:, :-1].sum(1) % 4
    for r in range(known):
        again[rest == r, -1] = known * parts[3 + r] + r
    assert_array_equal(again, v)


@pytest.mark.parametrize("at", [0, 3, 6, 9, 40, len(STREAM) - 1])
def test_a_changed_byte_is_found(at):
    damaged = bytearray(STREAM)
    damaged[at] ^= 0x10
    with pytest.raises(ValueError, match="stream (is damaged|must begin)"):
        decode_codes(bytes(damaged))


@pytest.mark.parametrize("length", [0, 3, 8, 11, 30, len(STREAM) - 1])
def test_a_stream_cut_off_is_found(length):
    with pytest.raises(ValueError, match="stream (is damaged|must begin)"):
        decode_codes(STREAM[:length])


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: encode_codes(np.ones(3)), "dtype of codes must be one of int8.* got 'float64'"),
        (lambda: encode_codes(np.ones(3, int), "token"), "per must be .* channel; got 'token'"),
        (lambda: encode_codes(np.array(3), "channel"), "per must be one of tensor; got 'channel'"),
        (lambda: decode_codes(b"GIF89a012345"), r"begin with b'ISO1', got b'GIF8'"),
    ],
)
def test_errors_name_what_was_got_and_what_is_allowed(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ends_of_every_dtype_return(dtype):
    ends = np.array([np.iinfo(dtype).min, 0, np.iinfo(dtype).max], dtype)
    assert_array_equal(decode_codes(encode_codes(ends)), ends, strict=True)


@pytest.mark.parametrize("case", LONG)
def test_a_byte_stands_for_no_more_than_it_may(case):
    codes, per = LONG[case]
    codes = codes.astype(np.int8) if codes.dtype == bool else codes
    stream = encode_codes(codes, per)
    assert_array_equal(decode_codes(stream), codes, strict=True)
    assert codes.size <= CODES_A_BYTE * (len(stream) + 1)
    assert len(stream) < max(codes.nbytes / 500, 25_000)


def crafted(numbers, words=b"", packed=None):
    """A stream whose CRC is right, with these numbers for a header."""
    numbers = np.asarray(numbers, np.int64)
    planes = (numbers << 1 ^ numbers >> 63).view(np.uint8).reshape(-1, 8).T.tobytes()
    packed = zlib.compress(planes, 9, -15) if packed is None else packed
    body = b"ISO1" + len(packed).to_bytes(4, "little") + packed + words
    return body + zlib.crc32(body).to_bytes(4, "little")


def zeros(number):
    return zlib.compress(bytes(number), 9, -15)


# dtype, per, axes, shape; shifts, sizes, gaps, levels
RIGHT = [0, 0, 1, 5, 0, 2, -1, 3, 8, 0]
CRAFTED = {
    "a billion codes in 33 bytes": ([0, 0, 1, 10**9, 0, 1, 7, 0], "at most 1024 codes per byte"),
    "more codes than 64 bits count": ([6, 0, 2, 2**62, 2**62, 0, 1, 7, 0], "at most 1024 codes"),
    "raw codes": ([6, 0, 1, 2**40, 63, 1, 0, 0], "at most 1024 codes per byte"),
    "a trillion channels": ([0, 1, 2, 1, 2**40, 0, 0], "at most 1024 codes per byte"),
    "a trillion channels of nothing": ([0, 1, 2, 0, 2**40, 0, 0], "contradicts itself"),
    "nothing, in more axes than fit": (
        [0, 0, 3, 0, 2**62, 2**62, 0, 0],
        "array is too big|too large|dimension",
    ),
    "nothing": ([], "contradicts itself"),
    "no shape": ([0, 0, 3, 5], "contradicts itself"),
    "no models": ([0, 0, 1, 5], "contradicts itself"),
    "too much": ([*RIGHT, 0, 0], "contradicts itself"),
    "one too much": ([*RIGHT, 0], "contradicts itself"),
    "dtype 7": ([7, *RIGHT[1:]], "contradicts itself"),
    "dtype -1": ([-1, *RIGHT[1:]], "contradicts itself"),
    "per 2": ([0, 2, *RIGHT[2:]], "contradicts itself"),
    "per -1": ([0, -1, *RIGHT[2:]], "contradicts itself"),
    "channels of a number": ([0, 1, 0, 0, 1, 7, 0], "contradicts itself"),
    "65 axes": ([0, 0, 65, *[1] * 65, 0, 1, 7, 0], "contradicts itself"),
    "-1 axes": ([0, 0, -1, 0, 1, 7, 0], "contradicts itself"),
    "-1 codes": ([0, 0, 1, -1, 0, 1, 7, 0], "contradicts itself"),
    "a shift of 8 in int8": ([*RIGHT[:4], 8, *RIGHT[5:]], "contradicts itself"),
    "a shift of 2^60": ([*RIGHT[:4], 2**60, *RIGHT[5:]], "contradicts itself"),
    "a shift of -1": ([*RIGHT[:4], -1, *RIGHT[5:]], "contradicts itself"),
    "-1 symbols": ([*RIGHT[:5], -1, *RIGHT[6:]], "contradicts itself"),
    "2^62 symbols": ([*RIGHT[:5], 2**62, *RIGHT[6:]], "contradicts itself"),
    "codes without symbols": ([*RIGHT[:4], 0, 0], "contradicts itself"),
    "symbols without codes": ([0, 0, 1, 0, 0, 1, 7, 0], "contradicts itself"),
    "a symbol twice": ([*RIGHT[:7], 0, 8, 0], "contradicts itself"),
    "symbols that fall": ([*RIGHT[:7], -3, 8, 0], "contradicts itself"),
    "a symbol above int8": ([*RIGHT[:7], 129, 8, 0], "contradicts itself"),
    "a symbol below int8": ([*RIGHT[:6], -129, *RIGHT[7:]], "contradicts itself"),
    "a level of -1": ([*RIGHT[:9], -1], "contradicts itself"),
    "a level of 2^62": ([*RIGHT[:9], 2**62], "contradicts itself"),
}
DAMAGED = {
    "a deflate bomb": (crafted([], packed=zeros(2**26)), "does not inflate to whole numbers in"),
    "no deflate": (crafted([], packed=b"\xff" * 9), "cannot be inflated"),
    "half of it": (crafted([], packed=zeros(4096)[:-4]), "does not inflate to whole numbers"),
    "more than it": (crafted([], packed=zeros(64) + b"x"), "does not inflate to whole numbers"),
    "7 bytes": (crafted([], packed=zeros(7)), "does not inflate to whole numbers"),
    "words of 3 bytes": (crafted(RIGHT, b"abc"), "words of 4 bytes, got 3"),
    "words that are no codes": (crafted(RIGHT, b"abcd" * 4), "longer than its codes"),
}
SHORT = b"ISO1" + (2**32 - 1).to_bytes(4, "little")
DAMAGED["a header beyond the end"] = (SHORT + zlib.crc32(SHORT).to_bytes(4, "little"), "header of")
HOSTILE = {name: (crafted(numbers), words) for name, (numbers, words) in CRAFTED.items()} | DAMAGED


@pytest.mark.parametrize("case", HOSTILE)
def test_a_crafted_stream_is_one_error_and_takes_no_memory(case):
    stream, words = HOSTILE[case]
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=words) as caught:
            decode_codes(stream)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20 + 256 * len(stream)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_a_crafted_stream_that_is_right_is_read():
    assert_array_equal(np.unique(decode_codes(crafted(RIGHT))), [-1])
