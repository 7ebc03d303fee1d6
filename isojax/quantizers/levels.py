"""Levels by name: quantizers fitted to samples at a number of bits.

`absmax`, `minmax:group:32`, `lloyd_max:fitted@unbiased`: a member and its arguments, then wrappers,
joined by `@`. `package.module:name` is your own function `(samples, bits) -> Quantizer`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from isojax._core.axes import largest_divisor
from isojax._core.checks import check_choice
from isojax._core.members import LEVELS, WRAPPERS, Stage
from isojax._core.samples import Samples
from isojax.metrics.rate_distortion import allocate_bits
from isojax.quantizers.base import Quantizer
from isojax.quantizers.codebook import Codebook
from isojax.quantizers.controls import none, zero
from isojax.quantizers.entropy import ECSQ, ecsq_for_rate
from isojax.quantizers.float4 import FP4, MXFP4, NVFP4, fp4, mxfp4, nvfp4
from isojax.quantizers.float8 import FP8, fp8
from isojax.quantizers.lattice import Lattice, d4_for_rate, e8_for_rate
from isojax.quantizers.lloyd_max import lloyd_max_gaussian, lloyd_max_sphere
from isojax.quantizers.lloyd_max_samples import lloyd_max_channels, lloyd_max_samples
from isojax.quantizers.nf4 import nf4
from isojax.quantizers.sparse import Sparse, sparse
from isojax.quantizers.unbiased import Unbiased, unbiased
from isojax.quantizers.uniform import Uniform, absmax, minmax

CODEBOOKS = ("sphere", "gaussian", "fitted", "fitted_channel")
ALLOCATIONS = ("even", "greedy")
GAINS = {"vector": "rms", "peak": "peak", "none": "none"}


@dataclasses.dataclass(frozen=True)
class Levels:
    """A member of the levels and its wrappers; `str` returns its notation.

    Attributes:
        member: makes the quantizer.
        wrappers: in the order applied.
    """

    member: Stage
    wrappers: tuple[Stage, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Levels:
        """The levels written in `text`.

        Raises:
            ValueError: a part is no known member, or has other arguments than allowed.
        """
        first, *rest = text.split("@")
        return cls(LEVELS.parse(first), tuple(map(WRAPPERS.parse, rest)))

    def __str__(self) -> str:
        return "@".join(map(str, (self.member, *self.wrappers)))

    @property
    def needs(self) -> frozenset[str]:
        """Attributes of `Samples` that they are fitted on; vectors for members from outside."""
        return frozenset(self.member.member.facts.get("fitted", ("x",)))

    @property
    def exact(self) -> bool:
        """Whether they leave vectors unchanged."""
        return self.member.member.facts.get("exact", False)

    def fit(self, samples: Samples, bits: int | float) -> Quantizer:
        """The quantizer for vectors like those of `samples`.

        Args:
            samples: to fit on.
            bits: bits per code; for entropy-coded levels, the rate in bits per element.

        Raises:
            ValueError: the levels do not exist at `bits`, cannot be fitted to these samples, do not
                return a quantizer, or return one whose codes have more bits.
        """
        allowed = self.member.member.facts.get("bits")
        if allowed:
            check_choice(f"bits of {self.member.name}", bits, allowed)
        made = self.member(samples, bits)
        for wrapper in self.wrappers:
            made = wrapper(made)
        if not isinstance(made, Quantizer):
            raise ValueError(f"levels {self} must return a Quantizer, got {type(made).__name__}.")
        if allowed is None and not isinstance(bits, Tracer):  # the user's own, or entropy-coded
            x = jax.ShapeDtypeStruct((1, samples.dim), jnp.float32)
            found = jax.eval_shape(made.encode, x).bits
            if found is not None and found > bits:
                raise ValueError(
                    f"levels {self} must have at most the requested bits={bits}, got "
                    f"codes of {found} bits."
                )
        return made


jax.tree_util.register_dataclass(Levels, ["member", "wrappers"], [])


def group_of(granularity: str, group: int, dim: int) -> int:
    """Elements that share a scale: `group`, at most the whole vector; 0 without groups.

    Raises:
        ValueError: the granularity is `group`, and no length is set or it does not divide vectors
            that are longer.
    """
    if granularity != "group":
        return 0
    if group < 1:
        raise ValueError(f"group must be at least 1, as in group:32; got {group}.")
    group = min(group, dim)
    if dim % group:
        raise ValueError(
            f"group must divide {dim}, the length of vectors, as {largest_divisor(dim, group)} "
            f"does; got {group}."
        )
    return group


@LEVELS.member("none", fitted=(), bits=(), exact=True)
def _none(samples: Samples, bits: Any) -> Quantizer:
    return none()


@LEVELS.member("zero", fitted=(), bits=())
def _zero(samples: Samples, bits: Any) -> Quantizer:
    return zero()


@LEVELS.member("absmax", fitted=(), bits=range(2, 9))
def _absmax(
    samples: Samples, bits: int, granularity: str = "token", group: int = 0, range: str = "max",
    levels: str = "restricted", clip: float | Float[Array, ""] | None = None,
) -> Uniform:  # fmt: skip
    """Evenly spaced levels, symmetric; None is the default `clip` of the range rule."""
    group = group_of(granularity, group, samples.dim)
    return absmax(bits, granularity, group, range_rule=range, levels=levels, clip=clip)


@LEVELS.member("minmax", fitted=(), bits=range(2, 9))
def _minmax(
    samples: Samples, bits: int, granularity: str = "token", group: int = 0, range: str = "max",
    levels: str = "affine", clip: float | Float[Array, ""] | None = None,
) -> Uniform:  # fmt: skip
    """Evenly spaced levels, from minimum to maximum; `clip` as in `absmax`."""
    group = group_of(granularity, group, samples.dim)
    return minmax(bits, granularity, group, range_rule=range, levels=levels, clip=clip)


@LEVELS.member("lloyd_max", fitted=("x",), bits=range(1, 9))
def _lloyd_max(
    samples: Samples, bits: int, codebook: str = "sphere", allocation: str = "even",
    gain: str = "vector",
) -> Quantizer:  # fmt: skip
    """Lloyd-Max levels, with a norm per vector.

    Args:
        samples: vectors, for fitted codebooks.
        bits: per code; the mean, where codes differ.
        codebook: `sphere` and `gaussian` are fixed; `fitted` on all elements together,
            `fitted_channel` on each channel.
        allocation: bits per channel: `even`, or `greedy`, for `fitted_channel`: 0 to 8, each bit
            where it lowers the error most, at the same mean.
        gain: what fitted levels are relative to: the root mean square of the `vector`, its largest
            magnitude, `peak`, or `none`.
    """
    check_choice("codebook", codebook, CODEBOOKS)
    normalize = GAINS[check_choice("gain", gain, GAINS)]
    if check_choice("allocation", allocation, ALLOCATIONS) == "greedy":
        check_choice("codebook of a greedy allocation", codebook, ("fitted_channel",))
    dim = samples.dim
    if codebook in ("sphere", "gaussian"):
        check_choice(f"gain of {codebook} levels", gain, ("vector",))
        if codebook == "sphere":
            return lloyd_max_sphere(bits, dim)
        return lloyd_max_gaussian(bits, dim, normalize="norm")
    if codebook == "fitted":
        return lloyd_max_samples(samples.vectors, bits, normalize=normalize)
    each, size = bits, None
    if allocation == "greedy":
        each = allocate_bits(jnp.var(samples.vectors, 0), bits)
        size = -(-dim * bits // 8)
    return lloyd_max_channels(samples.vectors, each, total_bytes=size, normalize=normalize)


@LEVELS.member("fp4", fitted=(), bits=(4,))
def _fp4(samples: Samples, bits: int, granularity: str = "token", group: int = 0) -> FP4:
    return fp4(granularity, group_of(granularity, group, samples.dim))


@LEVELS.member("nf4", fitted=(), bits=(4,))
def _nf4(samples: Samples, bits: int, granularity: str = "token", group: int = 0) -> Codebook:
    return nf4(granularity, group_of(granularity, group, samples.dim))


@LEVELS.member("fp8", fitted=(), bits=(8,))
def _fp8(
    samples: Samples, bits: int, kind: str = "e4m3", granularity: str = "token", group: int = 0
) -> FP8:
    return fp8(kind, granularity, group_of(granularity, group, samples.dim))


@LEVELS.member("mxfp4", fitted=(), bits=(4,))
def _mxfp4(samples: Samples, bits: int) -> MXFP4:
    return mxfp4()


@LEVELS.member("nvfp4", fitted=(), bits=(4,))
def _nvfp4(samples: Samples, bits: int) -> NVFP4:
    return nvfp4()


@LEVELS.member("ecsq", fitted=("x",))
def _ecsq(samples: Samples, bits: Any, entropy_per: str = "channel") -> ECSQ:
    return ecsq_for_rate(samples.vectors, bits, entropy_per)


@LEVELS.member("d4", fitted=("x",))
def _d4(samples: Samples, bits: Any, entropy_per: str = "channel") -> Lattice:
    return d4_for_rate(samples.vectors, bits, entropy_per)


@LEVELS.member("e8", fitted=("x",))
def _e8(samples: Samples, bits: Any, entropy_per: str = "channel") -> Lattice:
    return e8_for_rate(samples.vectors, bits, entropy_per)


@WRAPPERS.member("sparse")
def _sparse(quantizer: Any, share: float = 0.01) -> Sparse:
    return sparse(quantizer, share)


@WRAPPERS.member("unbiased")
def _unbiased(quantizer: Any) -> Unbiased:
    return unbiased(quantizer)
