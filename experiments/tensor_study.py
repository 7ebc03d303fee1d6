"""A matrix of a language model, quantized in several coordinates over seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from isojax import metrics, quantizers, transforms
from isojax._core.checks import check_choice
from isojax.report import Study
from isojax.sweep import sweep


class Case(NamedTuple):
    """What is done to the coordinates: a quantizer, its bits, and what shares a scale.

    `ecsq` is fitted to the rate `bits`, a channel's codes sharing an entropy code; the mean square
    of `gaussian_noise` is given by `bits`.
    """

    quantizer: str
    bits: float
    granularity: str = "tensor"  # or token, channel, group:N

    def config(self) -> dict[str, Any]:
        """The names and values of this case in the configuration of a row."""
        granularity, _, group = self.granularity.partition(":")
        coding = "entropy" if self.quantizer == "ecsq" else "fixed"
        return {
            "quantizer": self.quantizer, "bits": self.bits, "coding": coding,
            "granularity": granularity, "group": int(group or 0),
        }  # fmt: skip

    def make(self, key: jax.Array, y: jax.Array) -> quantizers.Quantizer:
        """The quantizer, fitted to `y` where it is one that needs fitting."""
        if self.quantizer == "ecsq":
            return quantizers.ecsq_for_rate(y, float(self.bits), per="channel")
        if self.quantizer == "gaussian_noise":
            noise_key = jax.random.fold_in(key, 1)  # the key itself draws the transform
            return quantizers.gaussian_noise(noise_key, y.shape, float(self.bits))
        config = self.config()
        by, group = config["granularity"], config["group"]
        return quantizers.from_name(self.quantizer, int(self.bits), by, group)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """The matrix under study.

    Attributes:
        x: [tokens, width], or a weight [out, in].
        samples: what PCA axes are fitted on, [n, width].
        at: thresholds of the metrics.
        inputs: for a weight, activations [n, in] to measure the error of the layer's output.
        block: of `block_hadamard`.
    """

    x: jax.Array
    samples: jax.Array
    at: metrics.Thresholds
    inputs: jax.Array | None = None
    block: int = 0


def check_transforms(names: Sequence[str]) -> None:
    """Raise `ValueError` unless each is `pca` or a name that `transforms.from_name` reads."""
    for name in names:
        for part in [name] if name == "pca" else name.split("@"):
            check_choice("transforms", part, ("pca", *transforms.NAMES))


def study_tensor(
    study: Study,
    base: Mapping[str, Any],
    tensor: Tensor,
    names: Sequence[str],
    cases: Sequence[Case],
    seeds: int,
    replace: Mapping[str, Any] | None = None,
) -> None:
    """Quantize `tensor` in the coordinates of each transform and record the metrics.

    `identity` and `pca` have no randomness: they run once, with no seed, unless a case is random.
    All cases of one transform and seed see the same rotation.

    Args:
        study: gets the rows.
        base: configuration that all rows share.
        tensor: the matrix.
        names: transforms: `pca` or names of `isojax.transforms`.
        cases: all fixed-rate, or all `ecsq`, or all `gaussian_noise`.
        seeds: of everything random.
        replace: configuration values to record in place of the cases' own.
    """
    trial = make_trial(tensor, cases)
    noisy = cases[0].quantizer == "gaussian_noise"
    fixed = [n for n in names if n in ("identity", "pca") and not noisy]

    def config(point: dict[str, Any]) -> dict[str, Any]:
        own = point["case"].config() | {"transform": point["transform"], "block": tensor.block}
        return {**base, **own, **(replace or {})}

    for group, count in ((fixed, 1), ([n for n in names if n not in fixed], seeds)):

        def number(seed: int, group: Sequence[str] = group) -> int | None:
            return None if group is fixed else seed

        results = sweep(
            jax.random.key(0), trial, seeds=count, static={"transform": group},
            inner={"case": cases},
            done=lambda point, seed, metrics: study.has(config(point), number(seed), metrics),
        )  # fmt: skip
        for result in results if group else ():
            study.add(config(result.config), number(result.seed), result.metrics)


def make_trial(tensor: Tensor, cases: Sequence[Case]) -> Callable[..., Any]:
    """`trial(key, *, transform)`: the metrics of every case in one set of coordinates."""
    x, inputs = tensor.x, tensor.inputs
    per = "channel" if cases[0].quantizer == "ecsq" else "tensor"

    def trial(key: jax.Array, *, transform: str) -> dict[Case, dict[str, jax.Array]]:
        if transform == "pca":
            t = transforms.pca(tensor.samples)
        else:
            t = transforms.from_name(key, transform, x.shape[-1], block=tensor.block)
        y = t.apply(x)
        made = [case.make(key, y) for case in cases]
        codes = [quantizer.encode(y) for quantizer in made]
        y_hat = jnp.stack([q.decode(c) for q, c in zip(made, codes, strict=True)])
        values = jnp.stack([c.values for c in codes])

        def look(case: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
            x_hat = t.T.apply(case[0])
            found = metrics.measure(x, x_hat, tensor.at)
            if jnp.issubdtype(values.dtype, jnp.integer):
                found["code_entropy_bits"] = metrics.code_entropy_bits(case[1], per)
            if inputs is not None:
                error, output = inputs @ (x_hat - x).T, inputs @ x.T
                found["output_nmse"] = jnp.sum(error**2) / jnp.sum(output**2)
            return found

        found = jax.lax.map(look, (y_hat, values))  # one program for all cases
        shape = {"kurtosis": metrics.kurtosis(y), "peak_to_rms": metrics.peak_to_rms(y)}
        return {
            case: {name: v[i] for name, v in found.items()} | shape for i, case in enumerate(cases)
        }

    return trial
