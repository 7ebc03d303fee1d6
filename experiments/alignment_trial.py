"""What `alignment` fits and measures: one tensor, in other coordinates, coded at some rates."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Integer

from experiments.alignment_report import CODERS
from isojax import learn, metrics, quantizers, transforms

TRANSFORMS = (
    "identity", "haar", "hadamard", "learned_rotation", "low_rank", "pca", "local_pca",
    "learned_alignment",
)  # fmt: skip
RANDOM = ("haar", "hadamard", "learned_rotation", "low_rank", "local_pca", "learned_alignment")
CLUSTERS = 4
RATE = 3.0  # bits a number, which axes are fitted for
STEPS, BATCH = 200, 256
BINS, PSEUDO = 4096, 4
FEW = 4096  # vectors to find a step with

Case = tuple[str, int]  # coder, bits
Turn = Callable[[Float[Array, "n d"]], Float[Array, "n d"]]
UNITS = {
    "nmse": "1", "rate_bits": "bits per element", "kurtosis": "1", "peak_to_rms": "1",
    "coding_gain_db": "dB", "effective_dims": "1", "top_tenth_energy": "1",
}  # fmt: skip


@functools.partial(jax.jit, static_argnames=("name", "rates"))
def measure(
    key: Array,
    train: Float[Array, "u n d"],
    test: Float[Array, "u m d"],
    name: str,
    rates: tuple[int, ...],
) -> dict[Case, dict[str, Array]]:
    """For each coder and rate the error and the rate; for ("", 0) how the coordinates lie.

    Each unit (a head; a whole vector) has axes and codes of its own, fitted on `train`. Numbers are
    those of `test`: errors of all units together over their energy, means over units of the rest.
    """
    mean = train.mean(1, keepdims=True)
    keys = jax.random.split(key, len(train))
    one = functools.partial(_unit, name=name, rates=rates)
    found = jax.vmap(one)(keys, train - mean, test - mean)
    energy = jnp.square(test - mean).mean((1, 2))
    share = energy / energy.sum()
    return {
        case: {k: jnp.sum(share * v) if k == "nmse" else jnp.mean(v) for k, v in values.items()}
        for case, values in found.items()
    }


@functools.partial(jax.jit, static_argnames="rates")
def bound(
    train: Float[Array, "u n d"], test: Float[Array, "u m d"], rates: tuple[int, ...]
) -> dict[Case, dict[str, Array]]:
    """The least error of Gaussian vectors with the second moments of `test`, unit by unit."""
    test = test - train.mean(1, keepdims=True)
    moment = jax.vmap(learn.second_moment)(test)
    variances = jnp.maximum(jnp.linalg.eigvalsh(moment), 0) + 1e-9 * jnp.mean(jnp.square(test))
    least = {
        rate: jax.vmap(lambda v, rate=rate: metrics.shannon_distortion(v, float(rate)))(variances)
        for rate in rates
    }
    return {
        ("shannon", r): {"nmse": jnp.sum(d) / jnp.sum(variances.mean(-1))} for r, d in least.items()
    }


def _unit(key: Array, x: Array, z: Array, *, name: str, rates: tuple[int, ...]) -> Any:
    turn, side = coordinates(key, x, name)
    y, w = turn(x), turn(z)
    variance, energy = jnp.mean(jnp.square(w), 0), jnp.mean(jnp.square(z))
    found: dict[Case, dict[str, Array]] = {
        ("", 0): {
            "kurtosis": metrics.kurtosis(w),
            "peak_to_rms": metrics.peak_to_rms(w, "token"),
            # of what clusters leave, and what they took
            "coding_gain_db": metrics.coding_gain_db(variance)
            + 10 * jnp.log10(energy / jnp.mean(variance)),
            "effective_dims": metrics.effective_coordinates(w),
            "top_tenth_energy": metrics.top_k_coordinates(w, max(w.shape[-1] // 10, 1)),
        }
    }
    for rate in rates:
        for coder in CODERS:
            w_hat, spent = _code(coder, rate, y, w)
            nmse = metrics.mse(w, w_hat) / energy
            found[coder, rate] = {"nmse": nmse, "rate_bits": spent + side}
    return found


def coordinates(key: Array, x: Float[Array, "n d"], name: str) -> tuple[Turn, float]:
    """An isometry of that name, fitted to the vectors where it is not drawn, and bits it adds."""
    if name == "local_pca":
        return _local(key, x), math.log2(CLUSTERS) / x.shape[-1]
    return axes(key, x, name).apply, 0.0


def axes(key: Array, x: Float[Array, "n d"], name: str) -> transforms.Transform:
    """The transform of that name, fitted to the vectors where it is not drawn."""
    dim = x.shape[-1]
    if name == "pca":
        return transforms.pca(x)
    if name == "low_rank":
        return learn.low_rank(key, x, RATE)
    if name == "learned_rotation":
        return learn.learned_rotation(key, x, steps=STEPS, batch=BATCH)
    if name == "learned_alignment":
        start = transforms.pca(x)
        step = quantizers.ecsq_for_rate(start.apply(x), RATE, "channel").step
        weight = 6 / (math.log(2) * jnp.square(step))

        def concentrate(t: Any, key: Array) -> Array:
            return learn.rate_distortion(t, learn.minibatch(key, x, BATCH), step, weight)

        optimizer = learn.stiefel(optax.adam(3e-3))
        return learn.fit(concentrate, start, optimizer, key=key, steps=STEPS, checks=10)[0]
    return transforms.from_name(key, name, dim)


def _local(key: Array, x: Float[Array, "n d"]) -> Turn:
    """Axes of each of a few clusters (k-means), of which every vector takes the nearest."""
    first = x[jax.random.choice(key, len(x), (CLUSTERS,), replace=False)]

    def nearest(x: Array, centres: Array) -> Array:
        return jnp.argmax(2 * x @ centres.T - jnp.square(centres).sum(-1), -1)

    def move(_: Any, centres: Array) -> Array:
        own = jax.nn.one_hot(nearest(x, centres), CLUSTERS)
        number = own.sum(0)[:, None]
        return jnp.where(number > 0, own.T @ x / jnp.maximum(number, 1), centres)

    centres = jax.lax.fori_loop(0, 10, move, first)
    own = jax.nn.one_hot(nearest(x, centres), CLUSTERS)
    axes = jax.vmap(lambda c, m: transforms.pca((x - c) * m[:, None]), (0, 1))(centres, own)

    def turn(x: Array) -> Array:
        own = jax.nn.one_hot(nearest(x, centres), CLUSTERS)
        every = jax.vmap(lambda t, c: t.apply(x - c))(axes, centres)
        return jnp.einsum("nc,cnd->nd", own, every)

    return turn


def coded_bits(seen: Integer[Array, "n d"], codes: Integer[Array, "m d"]) -> Array:
    """Bits a number of `codes` under the frequencies, component by component, of those `seen`.

    What a coder with fixed tables takes: surprises cost. All BINS codes together count as PSEUDO
    codes seen.
    """
    first = BINS * jnp.arange(codes.shape[1])
    count = jnp.bincount((jnp.mod(seen, BINS) + first).ravel(), length=BINS * codes.shape[1])
    count = jnp.take(count, jnp.mod(codes, BINS) + first)
    return -jnp.mean(jnp.log2((count + PSEUDO / BINS) / (len(seen) + PSEUDO)))


def _code(coder: str, rate: int, y: Array, w: Array) -> tuple[Array, Array]:
    """`w` from its codes, all fitted on `y`, and the bits a number that they take."""
    dim = y.shape[-1]
    if coder in ("entropy", "lattice"):
        fit = quantizers.ecsq_for_rate if coder == "entropy" else quantizers.e8_for_rate
        quantizer = fit(y[:FEW], float(rate), "channel")
        seen, codes = quantizer.encode(y).values, quantizer.encode(w)
        spent = coded_bits(seen, codes.values)
        if coder == "lattice":  # as `Lattice.entropy_bits`: coset and parity once a block
            spent -= 3 / 4 * coded_bits(seen & 1, codes.values & 1)
            spent -= 1 / 8 * coded_bits(seen & 3, codes.values & 3)
        return quantizer.decode(codes), spent
    if coder == "fixed":
        quantizer = quantizers.lloyd_max_samples(y, rate, normalize="rms")
    else:
        each = metrics.allocate_bits(jnp.var(y, 0), rate)
        quantizer = quantizers.lloyd_max_channels(
            y, each, total_bytes=-(-dim * rate // 8), normalize="rms"
        )
    codes = quantizer.encode(w)
    return quantizer.decode(codes), jnp.asarray(rate + 16 / dim)  # a norm in fp16 beside the codes
