"""Recipes: stores by a few words, fitted on the keys or values of calibration tokens."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from isojax import quantizers, transforms
from isojax._core.checks import check_choice
from isojax.codec import Codec
from isojax.kvcache.attention import apply_rope
from isojax.kvcache.store import Store, mean_at, store
from isojax.learn import (
    aligned,
    co_activation,
    learned_rotation,
    log_spectrum,
    mass_diff,
    second_moment,
)
from isojax.metrics import allocate_bits

# length of the blocks that a permutation shares channels out to
BLOCKS = {"planar": 2, "quaternion_full": 4, "quaternion_fast": 4}
PERMUTATIONS = {"none": None, "mass_diff": mass_diff, "co_activation": co_activation}
FITTED = ("pca", "aligned", "learned_rotation")
TRANSFORMS = (*transforms.NAMES, *FITTED)
OFFSETS = ("none", "channel_pre_rope", "channel_post_rope")
SCALES = ("none", "channel")
SPECTRA = ("power", "log")
ALLOCATIONS = ("even", "greedy")
GAINS = {"vector": "rms", "unbiased": "rms", "none": "none"}
CODEBOOKS = ("sphere", "gaussian", "fitted", "fitted_channel", "minmax", "minmax_channel")
TINY = 1e-12


def block_of(transform: str) -> int:
    """Length of the blocks of a transform, in which a permutation before it is worth something.

    Raises:
        ValueError: it has none.
    """
    name, _, length = transform.partition(":")
    if name == "block_hadamard" and length.isdecimal():
        return int(length)
    return BLOCKS[check_choice("transform of a permutation", transform, BLOCKS)]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to store keys or values, in the words of rows.

    Attributes:
        transform: a name of `isojax.transforms` (drawn for each layer and head), `pca`, or what
            `isojax.learn` makes: a `learned_rotation`, or axes `aligned` in the metric of what
            reads the vectors.
        permutation: of channels before planar and quaternion blocks or `block_hadamard:N`,
            `mass_diff` or `co_activation` of `isojax.learn`, or `none`.
        offset: what is subtracted first: nothing, the mean of keys before the rotary embedding
            (and its rotation added back), or the mean of what the codec sees. Values have no
            positions: for them both means are the same.
        scale: `channel` divides each channel by its standard deviation.
        codebook: levels for one norm a vector: `sphere` and `gaussian` are fixed, `fitted` is
            Lloyd-Max on the rotated calibration vectors of a head, `fitted_channel` on each
            coordinate; or a minimum and a maximum: `minmax` a vector or `group`, `minmax_channel` a
            channel and page.
        spectrum: of the metric of `aligned` axes: raised to a `power`, or its `log` (SMAQ), see
            `isojax.learn.log_spectrum`.
        power: of the spectrum; 0 ignores the metric.
        allocation: bits of a component: `even`, or `greedy`, for `fitted_channel`: 0 to 8, each bit
            where it lowers the error most, at the same mean.
        gain: what levels are relative to: the root mean square of the `vector`; that made
            `unbiased` (see there: what is decoded does not shrink); or, fitted ones, `none`.
        group: numbers that share a range of `minmax` (of these, as many as also divide the
            vector), or 0 for the whole vector.
        rope: whether keys are stored `after` or `before` the rotary embedding.
        sparse: share of numbers kept out of the codes (KVQuant), or 0.
        page: tokens encoded together; above 1 for `minmax_channel` alone.
        sinks: first tokens that stay exact.
        recent: last tokens that stay exact.
        scale_dtype: of norms, minima and maxima.
    """

    transform: str = "identity"
    permutation: str = "none"
    offset: str = "none"
    scale: str = "none"
    codebook: str = "sphere"
    spectrum: str = "power"
    power: float = 1.0
    allocation: str = "even"
    gain: str = "vector"
    group: int = 0
    rope: str = "after"
    sparse: float = 0.0
    page: int = 1
    sinks: int = 0
    recent: int = 0
    scale_dtype: str = "float16"

    @property
    def random(self) -> bool:
        """Whether a seed changes it."""
        return self.transform not in ("identity", "pca", "aligned")

    def fit(
        self,
        key: Key[Array, ""],
        samples: Float[Array, "layers n t g d"],
        bits: int,
        frequency: Float[Array, " half"] | None = None,
        metric: Float[Array, "layers g d d"] | None = None,
    ) -> Store:
        """The store for a model whose keys or values look like `samples`.

        Args:
            key: draws the rotations.
            samples: keys after the rotary embedding, or values, of n texts of t tokens each from
                position 0, for all layers and key heads.
            bits: a code, 2 to 8; their mean, where they differ.
            frequency: of the rotary embedding, for keys; None for values.
            metric: for `aligned`, what errors count in (see there): the second moment of the
                queries that read the keys, or that of the rows of o_proj which read the values.

        Raises:
            ValueError: a word of the recipe is none of the allowed ones, or there is no metric.
        """
        name = self.transform.partition(":")[0]
        check_choice("transform", self.transform if name in FITTED else name, TRANSFORMS)
        check_choice("permutation", self.permutation, PERMUTATIONS)
        if self.permutation != "none":
            block_of(self.transform)
        check_choice("offset", self.offset, OFFSETS)
        check_choice("scale", self.scale, SCALES)
        check_choice("codebook", self.codebook, CODEBOOKS)
        check_choice("spectrum", self.spectrum, SPECTRA)
        check_choice("allocation", self.allocation, ALLOCATIONS)
        check_choice("gain", self.gain, GAINS)
        if self.allocation == "greedy":
            check_choice("codebook of a greedy allocation", self.codebook, ("fitted_channel",))
        if self.transform != "aligned":
            check_choice("spectrum without aligned axes", self.spectrum, ("power",))
        else:
            # the metric is that of keys as queries meet them, channel by channel
            check_choice("scale of aligned axes", self.scale, ("none",))
            check_choice("rope of aligned axes", self.rope, ("after",))
            if metric is None:
                raise ValueError("metric must be given for aligned axes, got None.")
        check_choice("bits", bits, range(2, 9))
        if self.gain == "unbiased" and (self.sparse or "minmax" in self.codebook):
            raise ValueError(
                "codebook of an unbiased gain must have a norm and no sparse numbers, "
                f"got {self.codebook} and sparse={self.sparse}."
            )
        if (self.page > 1) != (self.codebook == "minmax_channel"):
            raise ValueError(
                f"page must be above 1 for minmax_channel and 1 for others, got {self.page} for "
                f"{self.codebook}."
            )
        if not self.sinks < samples.shape[2]:
            raise ValueError(
                f"samples must be longer than {self.sinks} sinks, got {samples.shape}."
            )
        # what is never read from codes is nothing to fit them on
        x, mean = samples[:, :, self.sinks :].astype(jnp.float32), None
        positions = jnp.arange(self.sinks, samples.shape[2])
        if frequency is not None and (self.rope == "before" or self.offset == "channel_pre_rope"):
            unrotated = apply_rope(x, -positions, frequency)
            x = unrotated if self.rope == "before" else x
            if self.offset == "channel_pre_rope":
                mean = unrotated.mean((1, 2))
                at = jax.vmap(lambda m: mean_at(m, positions, frequency, self.rope))(mean)
                x = x - at[:, None]
        own_mean = self.offset != "none" and mean is None
        layers, heads, dim = x.shape[0], *x.shape[3:]
        vectors = x.transpose(0, 3, 1, 2, 4).reshape(layers, heads, -1, dim)
        keys = jax.random.split(key, (layers, heads))
        make = jax.vmap(jax.vmap(lambda k, v, m: self._codec(k, v, m, bits, own_mean)))
        codec = make(keys, vectors, metric)
        return store(
            codec, mean=mean, rope="after" if frequency is None else self.rope, page=self.page,
            sinks=self.sinks, recent=self.recent, scale_dtype=self.scale_dtype,
        )  # fmt: skip

    def _codec(self, key: Array, x: Array, metric: Any, bits: int, own_mean: bool) -> Codec:
        """The codec of one head, from its calibration vectors [m, d]."""
        offset = x.mean(0) if own_mean else None
        x = x if offset is None else x - offset
        scale = jnp.maximum(x.std(0), TINY) if self.scale == "channel" else None
        x = x if scale is None else x / scale
        if self.transform == "pca":
            transform = transforms.pca(x)
        elif self.transform == "aligned":
            metric = log_spectrum(metric) if self.spectrum == "log" else metric
            transform = aligned(second_moment(x), metric, power=self.power)
        elif self.transform == "learned_rotation":
            transform = learned_rotation(key, x, bits)
        else:
            transform = transforms.from_name(key, self.transform, x.shape[-1])
        permute = PERMUTATIONS[self.permutation]
        if permute is not None:
            transform = permute(x, block_of(self.transform)) @ transform
        return Codec(transform, self._quantizer(transform.apply(x), bits), offset, scale)

    def _quantizer(self, y: Array, bits: int) -> Any:
        """For coordinates like those of `y`, [m, e]."""
        dim = y.shape[-1]
        if self.codebook == "sphere":
            made = quantizers.lloyd_max_sphere(bits, dim)
        elif self.codebook == "gaussian":
            made = quantizers.lloyd_max_gaussian(bits, dim, normalize="norm")
        elif self.codebook == "fitted":
            made = quantizers.lloyd_max_samples(y, bits, normalize=GAINS[self.gain])
        elif self.codebook == "fitted_channel":
            each, size = bits, None
            if self.allocation == "greedy":
                each, size = allocate_bits(jnp.var(y, 0), bits), -(-dim * bits // 8)
            made = quantizers.lloyd_max_channels(
                y, each, total_bytes=size, normalize=GAINS[self.gain]
            )
        else:
            per = "group" if self.group else "token"
            per = "channel" if self.codebook == "minmax_channel" else per
            group = math.gcd(self.group, dim) if per == "group" else 0
            made = quantizers.minmax(bits, per, group, levels="affine")
        if self.gain == "unbiased":
            return quantizers.unbiased(made)
        return quantizers.sparse(made, self.sparse) if self.sparse else made
