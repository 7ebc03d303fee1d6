"""Measurements of a point: losses of whole models, and statistics of down_proj's input."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax import Codec, metrics, quantizers
from isojax.quantize import Plan, Quantized, Scorer, calibrate, quantize
from isojax.recipes import Recipe, Samples
from isojax.report import Entry
from isojax.transforms import Composed, Permutation

from .points import DOWN, FORMATS, Point, own_plan, parts, shared_plan

LOOK = {
    "relative_error": "1", "rate_bits": "bits per element", "kurtosis": "1",
    "peak": "input units", "peak_before": "input units", "peak_bound": "input units",
    "peak_expected": "input units", "imbalance_of_mean": "1", "imbalance_of_tokens": "1",
    "persistent_share": "1",
}  # fmt: skip


class Reader(Scorer):
    """A model, texts to test on, and the plans of all points with texts to fit them on."""

    @functools.lru_cache(1)  # noqa: B019  # one at a time: it is a whole model
    def shared(self, plan: Plan, seed: int) -> Quantized:
        """The model of a plan that points share."""
        return self.quantized(plan, seed)

    def models(self, points: Sequence[Point], seed: int) -> dict[str, Quantized]:
        """The models of points that differ only in the inputs, by setting."""
        whole = max(points, key=lambda p: p.setting.endswith("A4"))
        base = self.shared(shared_plan(whole), seed)
        made = quantize(jax.random.key(seed), base, own_plan(whole), self.stats, progress=False)
        return {
            p.setting: made.weights_only() if p.setting.endswith("A16") else made for p in points
        }

    def losses(self, points: Sequence[Point], seed: int, todo: Sequence[Entry]) -> Iterator[Any]:
        """Values of entries: of one window, or with the tails of the divergence over several."""
        made = self.models(points, seed)
        scores = {name: self.scores(lambda _, one=one: one) for name, one in made.items()}
        for entry in todo:
            yield self.scored(entry, scores[entry.config["setting"]])

    @functools.cached_property
    def seen(self) -> list[Any]:
        """The input of down_proj on the first text, by layers."""
        plan = own_plan(Point("A4-down", "none", "int4", "mass_diff:1"))
        tokens = self.texts[:1].size
        layers = calibrate(self.model, self.texts[:1], plan, samples=tokens).layers
        return [layer[f"samples:{DOWN}"] for layer in layers]

    def look(self, coordinates: str, form: str, todo: Sequence[Entry]) -> Iterator[Any]:
        """Statistics of down_proj's input per layer, on the first text."""
        key = jax.random.key(0)
        for entry in todo:
            layer = entry.config["layer"]
            recipe = Recipe.parse(f"{coordinates}/{FORMATS[form][0]}")
            block = int(min(max(parts(coordinates)[0], 1), self.model.config.intermediate_size))
            samples = jnp.asarray(self.stats.layers[layer][f"samples:{DOWN}"])
            codec = _fit(key, samples, recipe)
            found = _look(codec, self.seen[layer], samples, block)
            yield {name: found[name] for name in entry.units}


@functools.partial(jax.jit, static_argnames="recipe")
def _fit(key: Array, samples: Float[Array, "w n d"], recipe: Recipe) -> Codec:
    return recipe.fit(key, Samples(samples.reshape(-1, samples.shape[-1])), 4)


@functools.partial(jax.jit, static_argnames="block")
def _look(
    codec: Codec, seen: Float[Array, "1 t d"], samples: Float[Array, "w n d"], block: int
) -> dict[str, Float[Array, ""]]:
    """Statistics of the input of down_proj in one layer; means are over tokens.

    `relative_error` and `rate_bits` of the codes, and `kurtosis` and `peak` (mean of max |y|) after
    the rotation; before it `peak_before`, the bound and the expectation of the rotated peak, the
    imbalance of the blocks in the calibration mean and per token, and `persistent_share`: of the
    largest 1% of all |x|, the share in the 1% of channels with the largest calibration mean.
    """
    x = seen[0]
    first = codec.transform.factors[0] if isinstance(codec.transform, Composed) else codec.transform
    mean = jnp.abs(samples).mean((0, 1))
    y = codec.rotate(x)
    if isinstance(first, Permutation):
        x, mean = first.apply(x), first.apply(mean)
    codes = codec.quantizer.encode(y)
    loud = jnp.abs(x) >= metrics.quantile_threshold(x, 0.99)
    steady = mean >= metrics.quantile_threshold(mean, 0.99)
    return {
        "relative_error": metrics.relative_error(y, codec.quantizer.decode(codes)),
        "rate_bits": jnp.asarray(quantizers.rate_bits(codes)),
        "kurtosis": metrics.kurtosis(y),
        "peak": jnp.abs(y).max(-1).mean(),
        "peak_before": jnp.abs(x).max(-1).mean(),
        "peak_bound": metrics.rotation_bound(x, block).mean(),
        "peak_expected": metrics.expected_peak(x, block).mean(),
        "imbalance_of_mean": metrics.mass_imbalance(mean, block),
        "imbalance_of_tokens": metrics.mass_imbalance(x, block).mean(),
        "persistent_share": jnp.sum(loud & steady) / jnp.sum(loud),
    }
