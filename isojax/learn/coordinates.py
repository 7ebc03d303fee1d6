"""The transforms of `isojax.learn` registered as coordinates: fitted or learned on samples."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from isojax._core.checks import check_choice, check_positive
from isojax._core.finite import finite
from isojax._core.members import COORDINATES
from isojax._core.samples import Samples
from isojax.learn.alignment import aligned, learned_alignment, log_spectrum
from isojax.learn.awq import awq_scale
from isojax.learn.balance import balance_scale
from isojax.learn.kronecker import kron_wush, near_square
from isojax.learn.low_rank import low_rank
from isojax.learn.moments import second_moment
from isojax.learn.output import best_balance, learned_kronecker
from isojax.learn.permutation import absmax_order, co_activation, mass_diff, zigzag
from isojax.learn.rotation import learned_rotation
from isojax.learn.smoothquant import smooth_scale
from isojax.learn.wush import cat, wush
from isojax.quantizers import absmax
from isojax.transforms import Dense, Diagonal, Kronecker, Oblique, Permutation, Transform, pca
from isojax.transforms.coordinates import Coordinates

SPECTRA = ("power", "log")
SMALL = 1e-3  # of the root mean square over channels: a channel with less is taken to be constant


@COORDINATES.member("pca", fitted=("x",), random=False)
def _pca(key: Key[Array, ""], samples: Samples) -> Dense:
    return pca(samples.vectors)


@COORDINATES.member("aligned", fitted=("x", "metric"), random=False)
def _aligned(
    key: Key[Array, ""],
    samples: Samples,
    power: float | Float[Array, ""] = 1.0,
    spectrum: str = "power",
) -> Oblique:
    metric = samples.need("metric", "aligned axes")
    if check_choice("spectrum", spectrum, SPECTRA) == "log":
        metric = log_spectrum(metric)
    return aligned(second_moment(samples.vectors), metric, power=power)


@COORDINATES.member("low_rank", fitted=("x",))
def _low_rank(key: Key[Array, ""], samples: Samples, rate: float | Float[Array, ""] = 3.0) -> Dense:
    return low_rank(key, samples.vectors, rate)


@COORDINATES.member("learned_rotation", fitted=("x",))
def _learned_rotation(
    key: Key[Array, ""], samples: Samples, bits: int = 0, steps: int = 200
) -> Dense:
    bits = int(bits or samples.bits or 3)
    return learned_rotation(key, samples.vectors, bits, steps=steps)


@COORDINATES.member("learned_alignment", fitted=("x",))
def _learned_alignment(
    key: Key[Array, ""], samples: Samples, rate: float = 3.0, steps: int = 200
) -> Dense:
    return learned_alignment(key, samples.vectors, rate, steps=steps)


@COORDINATES.member("learned", fitted=("learned",), random=False)
def _learned(
    key: Key[Array, ""],
    samples: Samples,
    start: str = "hadamard",
    steps: int = 100,
    rate: float = 0.003,
) -> Transform:
    """The transform learned for the place, on the loss of the whole model; a matrix is made dense.

    The arguments configure the learning, which `isojax.quantize.calibrate` does.
    """
    found = samples.need("learned", "learned coordinates")
    return found if isinstance(found, Transform) else Dense(jnp.asarray(found))


@COORDINATES.member("learned_scales", fitted=("learned_scale",), diagonal=True)
def _learned_scales(
    key: Key[Array, ""],
    samples: Samples,
    start: str = "balance",
    steps: int = 100,
    rate: float = 0.003,
) -> Diagonal:
    """Division by scales learned for the place, on the loss of the whole model.

    The arguments configure the learning, which `isojax.quantize.calibrate` does: `start` is a
    diagonal fitted on second moments, `balance`, or `identity`.
    """
    return Diagonal(1 / jnp.asarray(samples.need("learned_scale", "learned_scales")))


@COORDINATES.member("standardize", fitted=("x",), random=False, diagonal=True)
def _standardize(key: Key[Array, ""], samples: Samples) -> Diagonal:
    """Division by the standard deviation per channel; of constant channels by that of all."""
    deviation = samples.vectors.std(0)
    whole = jnp.sqrt(jnp.mean(jnp.square(deviation)))
    whole = finite("the deviation of samples", whole)
    steady = jnp.where(deviation > SMALL * whole, deviation, jnp.where(whole == 0, 1, whole))
    return Diagonal(1 / steady)


@COORDINATES.member("smooth", fitted=("x", "weight"), random=False, diagonal=True)
def _smooth(
    key: Key[Array, ""], samples: Samples, alpha: float | Float[Array, ""] = 0.5
) -> Diagonal:
    """SmoothQuant: moves part of the range of the vectors into the weights that read them."""
    weight = samples.need("weight", "smooth")
    return Diagonal(1 / smooth_scale(jnp.abs(samples.vectors).max(0), [weight], alpha))


@COORDINATES.member("balance", fitted=("moment", "metric"), random=False, diagonal=True)
def _balance(
    key: Key[Array, ""], samples: Samples, exponent: float | Float[Array, ""] = 0.5
) -> Diagonal:
    """Balances the rms of the vectors per channel with that of the weight rows."""
    x = jnp.sqrt(jnp.diagonal(samples.second_moment))
    weight = jnp.sqrt(jnp.diagonal(samples.need("metric", "balance")))
    return Diagonal(1 / balance_scale(x, weight, exponent))


@COORDINATES.member("balance_search", fitted=("x", "weight"), diagonal=True)
def _balance_search(
    key: Key[Array, ""], samples: Samples, bits: int = 0, steps: int = 8
) -> Diagonal:
    """Balance with the exponent of least output error before a Hadamard matrix."""
    weight = samples.need("weight", "balance_search")
    bits = int(bits or samples.bits or 4)
    return Diagonal(1 / best_balance(key, samples.vectors, weight, bits, steps=steps))


@COORDINATES.member("awq", fitted=("x", "weight"), random=False, diagonal=True)
def _awq(
    key: Key[Array, ""], samples: Samples, bits: int = 4, group: int = 0, steps: int = 20
) -> Diagonal:
    """AWQ, for weights in `bits` with one scale per output channel, or per `group` of inputs."""
    weight = samples.need("weight", "awq")
    quantizer = absmax(bits, "group", group=group) if group else absmax(bits, "token")
    return Diagonal(1 / awq_scale(samples.vectors, weight, quantizer, steps=steps))


@COORDINATES.member("cat", fitted=("moment", "metric"), random=False, block="block")
def _cat(
    key: Key[Array, ""],
    samples: Samples,
    block: int = 0,
    damping: float | Float[Array, ""] = 0.01,
) -> Transform:
    metric = samples.need("metric", "cat")
    return cat(samples.second_moment, metric, block=block, damping=damping)


@COORDINATES.member("wush", fitted=("moment", "metric"), random=False, block="block")
def _wush(
    key: Key[Array, ""],
    samples: Samples,
    block: int = 0,
    damping: float | Float[Array, ""] = 0.01,
) -> Transform:
    metric = samples.need("metric", "wush")
    return wush(samples.second_moment, metric, block=block, damping=damping)


@COORDINATES.member("kron_wush", fitted=("moment", "metric"), random=False)
def _kron_wush(
    key: Key[Array, ""],
    samples: Samples,
    left: int = 0,
    damping: float | Float[Array, ""] = 0.01,
    steps: int = 10,
) -> Kronecker:
    metric = samples.need("metric", "kron_wush")
    return kron_wush(samples.second_moment, metric, left=left, damping=damping, steps=steps)


@COORDINATES.member("flatquant", fitted=("x", "weight"))
def _flatquant(
    key: Key[Array, ""],
    samples: Samples,
    start: str = "hadamard",
    bits: int = 0,
    steps: int = 100,
    rate: float = 0.1,
) -> Kronecker:
    """FlatQuant's Kronecker factors, learned by the layer's output error from `start` in both."""
    weight = samples.need("weight", "flatquant")
    key, *keys = jax.random.split(key, 3)
    drawn = Coordinates.parse(start)
    factors = (drawn.draw(k, n) for k, n in zip(keys, near_square(samples.dim), strict=True))
    bits = int(bits or samples.bits or 4)
    given = key, samples.vectors, weight, Kronecker(*factors), bits
    return learned_kronecker(*given, steps=steps, rate=rate)


@COORDINATES.member("mass_diff", fitted=("x",), random=False)
def _mass_diff(key: Key[Array, ""], samples: Samples, block: int = 0) -> Permutation:
    return mass_diff(samples.vectors, _block(samples, block, "mass_diff"))


@COORDINATES.member("co_activation", fitted=("x",), random=False)
def _co_activation(key: Key[Array, ""], samples: Samples, block: int = 0) -> Permutation:
    return co_activation(samples.vectors, _block(samples, block, "co_activation"))


@COORDINATES.member("zigzag", fitted=("x",), random=False)
def _zigzag(key: Key[Array, ""], samples: Samples, block: int = 0) -> Permutation:
    return zigzag(samples.vectors, _block(samples, block, "zigzag"))


@COORDINATES.member("absmax_order", fitted=("x",), random=False)
def _absmax_order(key: Key[Array, ""], samples: Samples) -> Permutation:
    return absmax_order(samples.vectors)


def _block(samples: Samples, block: int, name: str) -> Any:
    """Length of the blocks that a permutation distributes channels to: those that follow it."""
    if not (block or samples.block):
        raise ValueError(
            f"{name} must come before blocks, as in {name}@block_hadamard:32, or have "
            f"their length, as in {name}:32."
        )
    return check_positive("block", block or samples.block)
