"""A matrix of a language model, quantized in several coordinates over seeds."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from isojax import metrics, quantizers, transforms
from isojax.recipes import Coordinates, Levels, Samples
from isojax.report import Job
from isojax.transforms import Transform

CLIP = {"percentile": 0.999, "std": 4.0}  # quantile of |x|, and standard deviations
UNIFORM = {"absmax": quantizers.absmax, "minmax": quantizers.minmax}
OTHERS: dict[str, Callable[[int, str, int], quantizers.Quantizer]] = {
    "kivi": functools.partial(quantizers.minmax, levels="affine"),
    "lloyd_max": lambda bits, by, group: quantizers.lloyd_max_gaussian(
        bits, granularity=by, group=group
    ),
}
RULES = ("", "_mse", *(f"_{rule}" for rule in CLIP))
FIXED_RATE = (*(family + rule for family in UNIFORM for rule in RULES), *OTHERS, "fp4")
ERRORS = metrics.MEASURE_UNITS | {"false_firing_share": "1"}
RATES = {"code_entropy_bits": "bits per element", "rate_bits": "bits per element"}
SHAPE = {"kurtosis": "1", "peak_to_rms": "1"}
STACK = 2**29  # bytes of reconstructions that one program may hold at a time


class Case(NamedTuple):
    """A quantizer of the coordinates, or a control.

    Attributes:
        quantizer: of `FIXED_RATE`: `absmax` or `minmax` with its range rule, `fp4`, or one of
            `OTHERS`; or `zero`, `none`, `ecsq`, `gaussian_noise`.
        bits: bits per element; for `ecsq` its rate, with one entropy code per channel.
        granularity: elements that share a scale: tensor, token, channel, or group:N.
        levels: of `absmax`, see there.
        matches: `haar`: the same code entropy (`ecsq`) or noise floor (`gaussian_noise`) as
            `absmax` at `bits` and one scale after a Haar rotation with the same seed.
    """

    quantizer: str
    bits: float
    granularity: str = "tensor"
    levels: str = "restricted"
    matches: str = ""

    @property
    def scale(self) -> tuple[str, int]:
        """Granularity and group length (0 without groups), as arguments of the quantizers."""
        granularity, _, group = self.granularity.partition(":")
        if group and not group.isdigit():
            raise ValueError(f"granularities: group:N needs a number, got {self.granularity!r}.")
        return granularity, int(group or 0)

    @property
    def uniform(self) -> tuple[str, str]:
        """`absmax` or `minmax` and its range rule, or twice an empty string."""
        family, _, rule = self.quantizer.partition("_")
        return (family, rule or "max") if family in UNIFORM else ("", "")

    @property
    def units(self) -> dict[str, str]:
        """Metrics of this case and their units; noise has no codes."""
        if self.quantizer == "none":
            return SHAPE
        return ERRORS | ({} if self.quantizer == "gaussian_noise" else RATES)

    def config(self) -> dict[str, Any]:
        """Names and values of this case in the configuration of a row."""
        granularity, group = self.scale
        own: dict[str, Any] = {"quantizer": self.quantizer, "bits": self.bits, "coding": "fixed"}
        own |= {"granularity": granularity, "group": group, "matches": self.matches}
        if self.quantizer == "ecsq":
            own |= {"coding": "entropy", "entropy_per": "channel"}
        if self.quantizer == "lloyd_max":
            own |= {"codebook": "gaussian"}
        family, rule = self.uniform
        if family == "absmax":
            own |= {"levels": self.levels}
        if rule in CLIP:
            own |= {"clip": CLIP[rule]}
        return own

    def make(self, key: jax.Array, y: jax.Array, haar: dict[str, jax.Array]) -> Any:
        """The quantizer; fitted to `y`, or to the case it matches, where it needs fitting."""
        if self.quantizer == "ecsq":
            rate = haar["rate"] if self.matches else jnp.float32(self.bits)
            return quantizers.ecsq_for_rate(y, rate, per="channel")
        if self.quantizer == "gaussian_noise":
            noise_key = jax.random.fold_in(key, 1)  # the key itself draws the rotation
            return quantizers.gaussian_noise(noise_key, y.shape, haar["noise_floor"])
        bits = int(self.bits)
        family, rule = self.uniform
        if family:
            own: dict[str, Any] = {"levels": self.levels} if family == "absmax" else {}
            return UNIFORM[family](bits, *self.scale, range_rule=rule, clip=CLIP.get(rule), **own)
        if self.quantizer in OTHERS:
            return OTHERS[self.quantizer](bits, *self.scale)
        scale = ":{}:{}".format(*self.scale) if bits else ""
        return Levels.parse(self.quantizer + scale).fit(Samples(y), bits)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """The matrix under study.

    Attributes:
        x: matrix [tokens, width], or a weight [out, in].
        at: thresholds of the metrics.
        samples: vectors [n, width] to fit coordinates on; None where none are fitted.
        inputs: for weights, activations [n, in] to measure the error of the layer's output.
    """

    x: jax.Array
    at: metrics.Thresholds
    samples: jax.Array | None = None
    inputs: jax.Array | None = None

    def check(self, names: Sequence[str], cases: Sequence[Case]) -> None:
        """Raise `ValueError` unless the coordinates and fixed-rate cases exist for this width."""
        key = jax.random.key(0)
        for name in names:
            jax.eval_shape(functools.partial(fit, name=name, tensor=self), key)
        for case in cases:
            jax.eval_shape(lambda y, case=case: case.make(key, y, {}).encode(y), self.x)


def check_names(names: Sequence[str], cases: Sequence[Case]) -> None:
    """Raise `ValueError` unless the coordinates and the fixed-rate cases exist."""
    for name in names:
        Coordinates.parse(name)
    for case in cases:
        if case.quantizer not in FIXED_RATE:
            raise ValueError(
                f"quantizers must be of {', '.join(FIXED_RATE)}; got {case.quantizer!r}."
            )
        case.make(jax.random.key(0), jnp.zeros(0), {})  # its own checks


def jobs(
    base: Mapping[str, Any],
    tensor: Tensor,
    names: Sequence[str],
    cases: Sequence[Case],
    seeds: int,
) -> Iterator[Job]:
    """Quantize `tensor` in the coordinates of each transform.

    Deterministic transforms run once, with no seed, unless the cases are random or match something
    random. All cases of one transform and seed share the rotation.

    Args:
        base: configuration that all rows share.
        tensor: the matrix.
        names: coordinates, see `isojax.recipes`.
        cases: all fixed-rate, or all `ecsq`, or all `gaussian_noise`, or `none` for the shape of
            only the coordinates; all matching or none.
        seeds: of everything random.
    """
    first = cases[0]
    make = shape_trial if first.quantizer == "none" else make_trial
    units = first.units | ({} if tensor.inputs is None else {"output_nmse": "1"})
    drawn = {name for name in names if Coordinates.parse(name).random or first.matches}
    once = [name for name in names if name not in drawn]
    room = max(1, STACK // (5 * tensor.x.size))  # a reconstruction in fp32 and its codes

    def config(point: dict[str, Any]) -> dict[str, Any]:
        return {**base, **point["case"].config(), "coordinates": point["coordinates"]}

    for group, count in ((once, None), ([n for n in names if n not in once], seeds)):
        for start in range(0, len(cases) if group else 0, room):
            some = cases[start : start + room]
            yield Job.sweep(
                f"{base['tensor']} {first.quantizer}", config, units, jax.random.key(0),
                make(tensor, some), seeds=count, static={"coordinates": group},
                inner={"case": some},
            )  # fmt: skip


def fit(key: jax.Array, name: str, tensor: Tensor) -> Transform:
    """The coordinates called `name`, for the last axis of the tensor."""
    return Coordinates.parse(name).fit(key, Samples(tensor.samples, size=tensor.x.shape[-1]))


def shape_trial(tensor: Tensor, cases: Sequence[Case]) -> Callable[..., Any]:
    """`trial(key, *, coordinates)`: kurtosis and peak of the coordinates, nothing quantized."""

    def trial(key: jax.Array, *, coordinates: str) -> dict[Case, dict[str, jax.Array]]:
        y = fit(key, coordinates, tensor).apply(tensor.x)
        return {cases[0]: {"kurtosis": metrics.kurtosis(y), "peak_to_rms": metrics.peak_to_rms(y)}}

    return trial


def make_trial(tensor: Tensor, cases: Sequence[Case]) -> Callable[..., Any]:
    """`trial(key, *, coordinates)`: the metrics of every case in one set of coordinates."""
    x, inputs = tensor.x, tensor.inputs
    per = "channel" if cases[0].quantizer == "ecsq" else "tensor"
    coded = cases[0].quantizer != "gaussian_noise"

    def trial(key: jax.Array, *, coordinates: str) -> dict[Case, dict[str, jax.Array]]:
        haar = haar_reference(key, tensor, cases[0].bits) if cases[0].matches else {}
        t = fit(key, coordinates, tensor)
        y = t.apply(x)
        made = [case.make(key, y, haar) for case in cases]
        codes = [quantizer.encode(y) for quantizer in made]
        y_hat = jnp.stack([q.decode(c) for q, c in zip(made, codes, strict=True)])
        values = jnp.stack([c.values for c in codes])

        def look(case: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
            x_hat = t.inverse.apply(case[0])
            found = metrics.measure(x, x_hat, tensor.at)
            found["false_firing_share"] = found["false_firings"] / x.size
            if coded:
                found["code_entropy_bits"] = metrics.code_entropy_bits(case[1], per)
            if inputs is not None:
                error, output = inputs @ (x_hat - x).T, inputs @ x.T
                found["output_nmse"] = jnp.sum(error**2) / jnp.sum(output**2)
            return found

        found = jax.lax.map(look, (y_hat, values))  # one program for all cases
        if per == "channel":
            found["rate_bits"] = found["code_entropy_bits"]
        elif coded:
            found["rate_bits"] = jnp.stack([quantizers.rate_bits(c) for c in codes])
        return {case: {name: v[i] for name, v in found.items()} for i, case in enumerate(cases)}

    return trial


def haar_reference(key: jax.Array, tensor: Tensor, bits: float) -> dict[str, jax.Array]:
    """Rate per channel and noise floor of `absmax` at `bits` after the Haar rotation of `key`."""
    x = tensor.x
    rotation = transforms.haar(key, x.shape[-1])
    quantizer = quantizers.absmax(int(bits))
    codes = quantizer.encode(rotation.apply(x))
    x_hat = rotation.inverse.apply(quantizer.decode(codes))
    return {
        "rate": jnp.maximum(metrics.code_entropy_bits(codes.values, "channel"), 0.01),
        "noise_floor": metrics.noise_floor_mse(x, x_hat, tensor.at.floor),
    }
