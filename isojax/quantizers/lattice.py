"""Lattices: four or eight neighbours rounded together, in cells rounder than cubes.

At equal entropy and high rate the mean squared error is proportional to the normalized second
moment G of a cell: 0.083333 for the integers (ECSQ), 0.076603 for D4 (0.37 dB less), 0.071682 for
E8 (0.65 dB) and no less than 1 / (2 pi e), 1.53 dB, for any (Conway and Sloane, "Sphere Packings,
Lattices and Groups", chapters 2, 4 and 20; Zamir and Feder 1996).

| lattice | points | shortest vectors |
|---|---|---|
| D4 | four integers, or four integers plus one half | 24, the units |
| E8 | eight integers, or eight integers plus one half, with an even sum | 240, of length sqrt(2) |

As quaternions, the points of D4 are the Hurwitz integers, closed under multiplication. This form is
the dual lattice D4*; times 1 + i, a rotation and a scale of sqrt(2), it is the standard D4,
integers with an even sum.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8, UInt8

from isojax._core.axes import to_rank
from isojax._core.checks import check_above_zero, check_choice, compute_dtype
from isojax._core.pytree import pytree, static
from isojax.metrics.entropy import code_entropy_bits
from isojax.quantizers.base import Quantizer
from isojax.quantizers.codes import Codes, Packed
from isojax.quantizers.entropy import check_rate, step_for_rate
from isojax.quantizers.granularity import split
from isojax.quantizers.packing import pack_mixed, unpack_mixed

VOLUME = {4: 0.5, 8: 1.0}
MOST_WIDTH = 7


@pytree
class Lattice(Quantizer):
    """Nearest lattice point of each block of `size` neighbours; made by `d4` and `e8`.

    Codes are doubled coordinates: all even or all odd in a block, and for E8 with a sum that is a
    multiple of four. The step belongs to the quantizer, not to the codes. An unbounded lattice has
    codes of any size (`bits` None), whose rate is `entropy_bits`; the entropy of single codes, as
    in `rate_bits`, counts the coset in each of them.

    A bounded one takes the integer part of a coordinate from [-2^(width - 1), 2^(width - 1)) and
    packs into width + 1/4 (D4) or width (E8) bits per element: width bits each, one more per block
    for the coset, and one less where the even sum implies the last bit.

    Attributes:
        step: edge of the cube that has the volume of a cell. At high rate, lattices and ECSQ of
            one step have the same entropy, and the mean squared error G step^2.
        size: 4 for D4, 8 for E8.
        width: bits of the integer part of a coordinate, or 0 for an unbounded lattice.
    """

    step: Float[Array, ""]
    size: int = static()
    width: int = static()

    @property
    def bits(self) -> float | None:
        """Bits per code at fixed rate, or None if unbounded."""
        return sum(self._widths()) / self.size if self.width else None

    @property
    def together(self) -> int:  # noqa: D102
        return self.size

    def encode(self, y: Float[Array, "*batch d"]) -> Codes:
        """Codes of `y`.

        Raises:
            ValueError: `size` does not divide the last axis, or the dtype of `y` is not floating.
        """
        v = split(y.astype(compute_dtype(y.dtype, "y")), "group", self.size)
        v = v / self._spacing().astype(v.dtype)
        whole, half = self._integers(v), self._integers(v - 0.5) + 0.5
        point = jnp.where(_distance(v, half) < _distance(v, whole), half, whole)
        values = (2 * point).reshape(y.shape).astype(jnp.int8 if self.width else jnp.int32)
        return Codes(values, bits=self.bits)

    def decode(self, codes: Codes) -> Float[Array, "*batch d"]:  # noqa: D102
        return codes.values.astype(self.step.dtype) * (self._spacing() / 2)

    def entropy_bits(self, codes: Codes, per: str = "tensor", bins: int = 4096) -> Float[Array, ""]:
        """Entropy of the codes in bits per element, with the coset and the even sum counted once.

        The rate of coding the coset of a block, then each coordinate given the coset, and for E8
        the last coordinate given its parity too: H(v) - 3/4 H(v mod 2) for D4 and H(v) - 3/4 H(v
        mod 2) - 1/8 H(v mod 4) for E8, where v are the doubled coordinates.

        Args:
            codes: of one array.
            per: which coordinates share one entropy code, as in `code_entropy_bits`.
            bins: as in `code_entropy_bits`; a multiple of 4.

        Raises:
            ValueError: `per` or `bins` is none of these.
        """
        entropy, coset, parity = (
            code_entropy_bits(values, per, number)
            for values, number in (
                (codes.values, bins),
                (codes.values & 1, 2),
                (codes.values & 3, 4),
            )
        )
        return entropy - 3 / 4 * coset - (self.size == 8) / 8 * parity

    def _spacing(self) -> Array:
        return self.step / VOLUME[self.size] ** (1 / self.size)

    def _widths(self) -> list[int]:
        width = self.width
        return [width + 1, *[width] * (self.size - 2), width - (self.size == 8)]

    def _integers(self, v: Array) -> Array:
        """The nearest integers in bounds, for E8 those of an even sum.

        If the nearest have an odd sum, the coordinate where it costs least takes its second
        nearest.
        """
        high = 2 ** (self.width - 1) - 1 if self.width else math.inf
        low = -1 - high
        nearest = jnp.clip(jnp.round(v), low, high)
        if self.size == 4:
            return nearest
        rest = v - nearest
        turn = jnp.where(((rest >= 0) & (nearest < high)) | (nearest == low), 1, -1)
        place = to_rank(jnp.arange(self.size), v.ndim)
        least = jnp.argmax(turn * rest, -1, keepdims=True) == place
        odd = jnp.sum(nearest, -1, keepdims=True) % 2 == 1
        return nearest + jnp.where(odd & least, turn, 0)

    def pack_values(self, codes: Codes) -> UInt8[Array, "*batch n"]:  # noqa: D102
        v = split(codes.values.astype(jnp.int16), "group", self.size) + 2**self.width
        last = v[..., -1:] >> (1 if self.size == 4 else 2)
        free = jnp.concatenate([v[..., :1], v[..., 1:-1] >> 1, last], -1)
        widths = self._tiled(codes.values.shape[-1])
        free = free.astype(jnp.uint8).reshape(codes.values.shape)
        return pack_mixed(free, jnp.asarray(widths), -(-int(widths.sum()) // 8))

    def unpack_values(self, packed: Packed) -> Int8[Array, "*batch d"]:  # noqa: D102
        free = unpack_mixed(packed.data, jnp.asarray(self._tiled(packed.dim)))
        u = split(free.astype(jnp.int16), "group", self.size)
        coset, first, last = u[..., :1] & 1, u[..., :1] >> 1, u[..., -1:]
        u = jnp.concatenate([first, u[..., 1:-1]], -1)
        last = (
            last
            if self.size == 4
            else 2 * last + (jnp.sum(u, -1, keepdims=True, dtype=u.dtype) & 1)
        )
        v = 2 * jnp.concatenate([u, last], -1) + coset - 2**self.width
        return v.astype(jnp.int8).reshape(free.shape)

    def _tiled(self, dim: int) -> np.ndarray:
        return np.tile(self._widths(), dim // self.size)


def d4(step: float | Float[Array, ""], width: int = 0) -> Lattice:
    """The lattice D4, as Hurwitz integers: blocks of four.

    Args:
        step: edge of the cube that has the volume of a cell, in the units of the input.
        width: 1 to 7 for a lattice bounded to width + 1/4 bits per element, 0 for unbounded.

    Raises:
        ValueError: `step` is a Python number that is not above zero and finite, or `width` none of
            these.
    """
    return _lattice(4, step, width)


def e8(step: float | Float[Array, ""], width: int = 0) -> Lattice:
    """The lattice E8: blocks of eight.

    Args:
        step: edge of the cube that has the volume of a cell, in the units of the input.
        width: 1 to 7 for a lattice bounded to that many bits per element, 0 for unbounded.

    Raises:
        ValueError: `step` is a Python number that is not above zero and finite, or `width` none of
            these.
    """
    return _lattice(8, step, width)


def d4_for_rate(
    samples: Float[Array, "*batch d"],
    rate_bits: int | float | Float[Array, ""],
    per: str = "tensor",
    bins: int = 4096,
) -> Lattice:
    """The D4 whose codes of `samples` have `entropy_bits` of `rate_bits`.

    One step for all elements, found as in `ecsq_for_rate`. Traced: works under `jit`, and under
    `vmap` over samples or rates.

    Args:
        samples: vectors to fit the step to.
        rate_bits: bits per element, above zero and well below log2(bins) - 1.
        per: as in `entropy_bits`.
        bins: as in `entropy_bits`.

    Raises:
        ValueError: `per` or `bins` is not allowed, `rate_bits` is a Python number out of its range,
            or four does not divide the last axis.
    """
    return _for_rate(4, samples, rate_bits, per, bins)


def e8_for_rate(
    samples: Float[Array, "*batch d"],
    rate_bits: int | float | Float[Array, ""],
    per: str = "tensor",
    bins: int = 4096,
) -> Lattice:
    """The E8 whose codes of `samples` have `entropy_bits` of `rate_bits`; see `d4_for_rate`.

    Raises:
        ValueError: as there, or eight does not divide the last axis.
    """
    return _for_rate(8, samples, rate_bits, per, bins)


def _lattice(size: int, step: float | Array, width: int) -> Lattice:
    check_above_zero("step", step)
    check_choice("width", width, range(MOST_WIDTH + 1))
    return Lattice(jnp.asarray(step, float), size, width)


def _for_rate(
    size: int, samples: Array, rate_bits: int | float | Array, per: str, bins: int
) -> Lattice:
    check_rate(rate_bits, bins, spare=1)

    def entropy(v: Array, step: Array) -> Array:
        lattice = Lattice(step, size, 0)
        return lattice.entropy_bits(lattice.encode(v), per, bins)

    return Lattice(step_for_rate(samples, rate_bits, entropy), size, 0)


def _distance(v: Array, point: Array) -> Array:
    return jnp.sum(jnp.square(v - point), -1, keepdims=True)
