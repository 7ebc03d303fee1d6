"""Measurements of coordinates: their statistics, and errors and rates of their codes."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from isojax import learn, metrics, transforms
from isojax.models import LanguageModel, capture_tensors
from isojax.quantizers import Lattice, Quantizer
from isojax.recipes import Coordinates, Levels, Samples
from isojax.report import Entry
from isojax.transforms import Transform

LOOK = {
    "kurtosis": "1", "peak_to_rms": "1", "coding_gain_db": "dB", "effective_dims": "1",
    "top_tenth_energy": "1",
}  # fmt: skip
CODED = {"nmse": "1", "rate_bits": "bits per element"}
BOUND = {"nmse": "1"}
CODINGS = {
    name: Levels.parse(levels)
    for name, levels in (
        ("fixed", "lloyd_max:fitted"), ("allocated", "lloyd_max:fitted_channel:greedy"),
        ("entropy", "ecsq"), ("lattice", "e8"), ("lattice_d4", "d4"),
    )
}  # fmt: skip
BLOCKS = {"lattice": 8, "lattice_d4": 4}  # the first whose blocks divide the vector
LOCAL = "local_pca"  # no linear transform
CLUSTERS = 4
FEW = 4096  # vectors to fit the step of an entropy coder

Case = tuple[str, int]  # coding, bits
Turn = Callable[[Float[Array, "n d"]], Float[Array, "n e"]]


class Turned(NamedTuple):
    """Vectors in their coordinates.

    Attributes:
        train: to fit codes on [u, n, e].
        test: to code [u, m, e].
        inverse: back to the input, where errors there are others than here.
        side: bits per element besides the codes.
    """

    train: Array
    test: Array
    inverse: Transform | None
    side: Array


def known(name: str) -> str:
    """The name of the coordinates in rows.

    Raises:
        ValueError: there are no such coordinates.
    """
    return name if name == LOCAL else str(Coordinates.parse(name))


def codings(dim: int) -> tuple[str, ...]:
    """Codings of vectors of length `dim`, with the largest lattice that divides it, if any."""
    lattice = next((name for name, block in BLOCKS.items() if dim % block == 0), None)
    return tuple(name for name in CODINGS if name not in BLOCKS or name == lattice)


def random(name: str) -> bool:
    """Whether the key changes the coordinates."""
    return name == LOCAL or Coordinates.parse(name).random


class Reader:
    """Vectors of tensors of a model: some to fit on, and others to test on."""

    def __init__(
        self,
        model: LanguageModel,
        calibration: np.ndarray,
        texts: np.ndarray,
        tensors: Sequence[str],
    ) -> None:
        """Read windows [n, tokens]; `tensors` as for `capture_tensors`."""
        self.heads = model.config.head_dim
        self.seen = [
            [capture_tensors(model, ids, tensors) for ids in windows]
            for windows in (calibration, texts)
        ]
        self.vectors = functools.lru_cache(1)(self._vectors)

    def _vectors(self, tensor: str) -> tuple[Float[Array, "u n d"], Float[Array, "u m d"]]:
        """Training and test vectors per unit (head or vector); of weights, every second output."""
        kind = tensor.partition(":")[0]
        if kind == "weight":
            rows = self.seen[0][0][tensor]
            return rows[None, ::2], rows[None, 1::2]

        def units(windows: Any) -> Array:
            x = jnp.concatenate([one[tensor] for one in windows])
            size = self.heads if kind in ("key", "value") else x.shape[-1]
            return x.reshape(len(x), -1, size).swapaxes(0, 1)

        return units(self.seen[0]), units(self.seen[1])

    def codings(self, tensor: str, name: str, bits: tuple[int, ...]) -> tuple[str, ...]:
        """Codings of the coordinates `name`.

        Raises:
            ValueError: they cannot be coded at these bits.
        """
        made = functools.partial(measure, name=name, bits=bits)
        found = jax.eval_shape(made, jax.random.key(0), *self.vectors(tensor))
        return tuple(name for name in CODINGS if (name, bits[0]) in found)

    def bound(self, tensor: str, todo: Sequence[Entry]) -> Iterator[dict[str, Array]]:
        """Shannon's bound at the bits of each entry."""
        for entry in todo:
            yield {"nmse": bound(*self.vectors(tensor), entry.config["bits"])}

    def coded(
        self, tensor: str, name: str, seed: int, bits: tuple[int, ...], todo: Sequence[Entry]
    ) -> Iterator[dict[str, Array]]:
        """Codes of the coordinates `name` at some bits, and their statistics."""
        found = measure(jax.random.key(seed), *self.vectors(tensor), name, bits)
        for entry in todo:
            yield found[entry.config.get("coding", ""), entry.config.get("bits", 0)]


def measure(
    key: Array,
    train: Float[Array, "u n d"],
    test: Float[Array, "u m d"],
    name: str,
    bits: tuple[int, ...],
) -> dict[Case, dict[str, Array]]:
    """The error and the rate per coding and bits; for ("", 0) statistics of the coordinates.

    Each unit has separate coordinates and codes, fitted on `train`. Values are those of `test`:
    errors of all units together over their energy, means over units of the other metrics. Programs
    of codes are shared by all coordinates.
    """
    mean = train.mean(1, keepdims=True)
    test = test - mean
    turned, looked = _turned(jax.random.split(key, len(train)), train - mean, test, name)
    found: dict[Case, dict[str, Array]] = {("", 0): looked}
    longer = turned.test.shape[-1] / test.shape[-1]
    for rate, coding in itertools.product(bits, codings(turned.test.shape[-1])):
        decoded, spent = _coded(turned.train, turned.test, coding, rate)
        found[coding, rate] = {
            "nmse": _error(turned, test, decoded), "rate_bits": spent * longer + turned.side
        }  # fmt: skip
    return found


@functools.partial(jax.jit, static_argnames="bits")
def bound(train: Float[Array, "u n d"], test: Float[Array, "u m d"], bits: int) -> Float[Array, ""]:
    """The least error of Gaussian vectors with the second moments of `test`, unit by unit."""
    test = test - train.mean(1, keepdims=True)
    moment = jax.vmap(learn.second_moment)(test)
    variances = jnp.maximum(jnp.linalg.eigvalsh(moment), 0) + 1e-9 * jnp.mean(jnp.square(test))
    least = jax.vmap(lambda v: metrics.shannon_distortion(v, float(bits)))(variances)
    return jnp.sum(least) / jnp.sum(variances.mean(-1))


@functools.partial(jax.jit, static_argnames="name")
def _turned(keys: Array, train: Array, test: Array, name: str) -> tuple[Turned, dict[str, Array]]:
    """Vectors in coordinates fitted per unit, and their statistics, means over units."""

    def one(key: Array, x: Array, z: Array) -> tuple[Turned, dict[str, Array]]:
        if name == LOCAL:
            turn, inverse, side = _local(key, x), None, math.log2(CLUSTERS) / x.shape[-1]
        else:
            transform = Coordinates.parse(name).fit(key, Samples(x))
            turn, side = transform.apply, 0.0
            inverse = None if transform.isometry else transform.inverse
        w = turn(z)
        variance, energy = jnp.mean(jnp.square(w), 0), jnp.mean(jnp.square(z))
        return Turned(turn(x), w, inverse, jnp.asarray(side)), {
            "kurtosis": metrics.kurtosis(w),
            "peak_to_rms": metrics.peak_to_rms(w, "token"),
            # of the residual after clusters, and of their centres
            "coding_gain_db": metrics.coding_gain_db(variance)
            + 10 * jnp.log10(energy / jnp.mean(variance)),
            "effective_dims": metrics.effective_coordinates(w),
            "top_tenth_energy": metrics.top_k_coordinates(w, max(w.shape[-1] // 10, 1)),
        }

    turned, looked = jax.vmap(one)(keys, train, test)
    return turned._replace(side=turned.side[0]), jax.tree.map(jnp.mean, looked)


@functools.partial(jax.jit, static_argnames=("coding", "rate"))
def _coded(
    train: Float[Array, "u n e"], test: Float[Array, "u m e"], coding: str, rate: int
) -> tuple[Float[Array, "u m e"], Float[Array, ""]]:
    """Decoded vectors of `test`, and the mean of their bits per element."""
    levels, entropy = CODINGS[coding], coding == "entropy" or coding in BLOCKS

    def one(y: Array, w: Array) -> tuple[Array, Array]:
        fitted = (Samples(y[:FEW]), float(rate)) if entropy else (Samples(y), rate)
        quantizer = levels.fit(*fitted)
        codes = quantizer.encode(w)
        spent = _entropy(quantizer, y, codes.values) if entropy else rate + 16 / w.shape[-1]
        return quantizer.decode(codes), jnp.asarray(spent)

    decoded, spent = jax.vmap(one)(train, test)
    return decoded, jnp.mean(spent)


@jax.jit
def _error(turned: Turned, test: Array, decoded: Array) -> Float[Array, ""]:
    """The squared error over the energy; isometries and clusters keep errors."""
    if turned.inverse is None:
        error = jnp.square(turned.test - decoded).sum()
    else:
        back = jax.vmap(lambda t, w: t.apply(w))(turned.inverse, decoded)
        error = jnp.square(test - back).sum()
    return error / jnp.square(test).sum()


def _entropy(quantizer: Quantizer, y: Array, codes: Array) -> Array:
    """Bits per element of codes, with the frequencies of the codes of `y`."""
    seen = quantizer.encode(y).values
    spent = metrics.cross_entropy_bits(codes, seen)
    if isinstance(quantizer, Lattice):  # as `entropy_bits`: coset and parity once per block
        spent -= 3 / 4 * metrics.cross_entropy_bits(codes & 1, seen & 1)
        if quantizer.size == 8:
            spent -= 1 / 8 * metrics.cross_entropy_bits(codes & 3, seen & 3)
    return spent


def _local(key: Array, x: Float[Array, "n d"]) -> Turn:
    """Separate axes for a few clusters (k-means); every vector uses its nearest cluster."""
    first = x[jax.random.choice(key, len(x), (CLUSTERS,), replace=False)]

    def nearest(x: Array, centres: Array) -> Array:
        scores = 2 * x @ centres.T - jnp.square(centres).sum(-1)
        return jax.nn.one_hot(jnp.argmax(scores, -1), CLUSTERS)

    def move(_: Any, centres: Array) -> Array:
        own = nearest(x, centres)
        number = own.sum(0)[:, None]
        return jnp.where(number > 0, own.T @ x / jnp.maximum(number, 1), centres)

    centres = jax.lax.fori_loop(0, 10, move, first)
    own = nearest(x, centres)
    axes = jax.vmap(lambda c, m: transforms.pca((x - c) * m[:, None]), (0, 1))(centres, own)

    def turn(x: Array) -> Array:
        every = jax.vmap(lambda t, c: t.apply(x - c))(axes, centres)
        return jnp.einsum("nc,cnd->nd", nearest(x, centres), every)

    return turn
