"""Measurements of coordinates: on a tensor, in the KV cache, in the whole model."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from isojax import metrics, quantizers
from isojax.models import LanguageModel, capture_tensors, fold_norms
from isojax.quantize import Plan, Quantized, Scorer, costs, quantize
from isojax.recipes import Coordinates, Samples
from isojax.report import Entry, times_in_turn
from isojax.transforms import Transform

from ..dense import dense, dense_cache

KV, W4A4 = "KV3", "W4A4"  # settings
BITS = 3  # on the tensor
NMSE = 0.01  # error at which rates are compared
BISECTIONS = 24
MOST = 4096  # vectors of the tensor for fits
FLOOR = -20.0  # log2 of the finest step over the largest magnitude
DOWN = "input:down_proj"
# principal axes have levels per coordinate and greedy bits; others, whose coordinates are alike,
# fixed levels
LEVELS = {"pca": "lloyd_max:fitted_channel:greedy"}
UNCACHED = ("learned_alignment",)  # learned for entropy coding, which the cache lacks

ERRORS = {
    name: metrics.MEASURE_UNITS[name]
    for name in ("outlier_mse", "noise_floor_mse", "false_firings", "missed_firings", "nmse")
}
TENSOR = ERRORS | {
    "kurtosis": "1", "peak_to_rms": "1", "effective_dims": "1", "top_tenth_energy": "1",
    "rate_bits": "bits per element",
}  # fmt: skip
COST = {"params": "count", "fmas": "count"}
TIMES = {"time_us": "us", "copy_ratio": "1"}
SIZE = {"rate_bits": "bits per element"}


@functools.cache
def shape(coordinates: Coordinates, dim: int) -> Any:
    """The transform for vectors of length `dim`, with shapes as leaves.

    Raises:
        ValueError: the coordinates have no form for this length.
    """
    square = jnp.zeros((dim, dim))
    samples = Samples(jnp.zeros((MOST, dim)), square, square)
    return jax.eval_shape(coordinates.fit, jax.random.key(0), samples)


def plans(coordinates: Coordinates, model: LanguageModel) -> dict[str, Plan]:
    """The plans with these coordinates, by setting, where they are possible.

    KV3: keys, before RoPE, and values are centred, in codes of 3 bits except 4 sinks. W4A4: the
    residual stream, values and the input of down_proj are transformed, weights and all inputs have
    4 bits, with one scale per row and token, norms folded into weights. Transforms are drawn or
    fitted per layer and key head, except for the residual stream. Transforms that change the length
    cannot merge, and only isometries can transform the residual stream.
    """
    names, found, config = [s.name for s in coordinates.stages], {}, model.config
    if not set(names) & set(UNCACHED) and _exists(coordinates, config.head_dim):
        levels = LEVELS.get(names[-1], "lloyd_max") if names else "lloyd_max"
        found[KV] = Plan.parse(f"cache: {coordinates}/{levels} bits=3 offset=pre_rope sinks=4")
    # the last one is online and must be fast, so it is not learned (SpinQuant)
    online = "hadamard" if any(name.startswith("learned") for name in names) else coordinates
    merged = [_exists(coordinates, d) for d in (config.hidden_size, config.head_dim)]
    merged.append(_exists(Coordinates.parse(str(online)), config.intermediate_size))
    if all(t and t.out_dim == t.dim for t in merged) and merged[0].isometry:
        found[W4A4] = Plan.parse(
            f"residual: {coordinates}; values: {coordinates}; input: absmax bits=4;"
            f"{DOWN}: {online}/absmax bits=4; weight: absmax:range=mse bits=4"
        )
    return found


def _exists(coordinates: Coordinates, dim: int) -> Any:
    try:
        return shape(coordinates, dim)
    except ValueError:
        return None


class Reader(Scorer):
    """A model, vectors of one of its tensors, and texts to test on and to fit on."""

    def __init__(
        self, model: LanguageModel, texts: np.ndarray, fit_on: np.ndarray, tensor: str
    ) -> None:
        """Read the tensor on windows [n, tokens]."""
        super().__init__(model, texts, fit_on)
        params, config = fold_norms(model.params, model.config)
        self.folded = dataclasses.replace(model, params=params, config=config)
        sample, self.x = (
            jnp.concatenate([capture_tensors(model, ids, [tensor])[tensor] for ids in windows])
            for windows in (fit_on, texts)
        )
        self.sample = jax.random.permutation(jax.random.key(0), sample)[:MOST]
        self.at = metrics.thresholds(self.x)
        self.quantized = functools.lru_cache(1)(self._quantized)

    def make(self, name: str, seed: int) -> Transform:
        """The transform for vectors of the tensor."""
        return _fit(jax.random.key(seed), self.sample, Coordinates.parse(name))

    def tensor(self, name: str, todo: Sequence[Entry]) -> Iterator[dict[str, Array]]:
        """Statistics of the coordinates, and quantization errors of the tensor, by seeds."""
        for entry in todo:
            transform = dense(self.make(name, entry.seed or 0))
            yield _on_tensor(transform, self.sample, self.x, self.at)

    def controls(self, todo: Sequence[Entry]) -> Iterator[dict[str, Array]]:
        """Errors of a zero predictor, and of noise with the error of haar."""
        for entry in todo:
            if entry.config["quantizer"] == "zero":
                yield _errors(self.x, jnp.zeros_like(self.x), self.at)
                continue
            noise = jax.random.normal(jax.random.key(0), self.x.shape)
            y = self.make("haar", 0).apply(self.x)
            # one scale for the tensor as in the columns of outliers, one per vector as in NMSE
            whole, each = (
                self.x + noise * jnp.sqrt(jnp.mean(jnp.square(q.roundtrip(y) - y)))
                for q in (quantizers.absmax(BITS), quantizers.absmax(BITS, "token"))
            )
            yield _errors(self.x, whole, self.at) | {"nmse": metrics.nmse(self.x, each)}

    def cost(self, name: str) -> dict[str, float]:
        """Parameters and multiply-adds per vector."""
        transform = shape(Coordinates.parse(name), self.x.shape[-1])
        return {"params": float(transform.params), "fmas": float(transform.fmas)}

    def times(
        self, names: Sequence[str], repeats: int, todo: Sequence[Entry]
    ) -> Iterator[dict[str, float]]:
        """Median times of each applied to the tensor, in alternating calls, and of a copy."""
        apply = jax.jit(lambda t, x: t.apply(x))
        copy = jax.jit(lambda x: x + 1).lower(self.x).compile()
        calls = {"": functools.partial(copy, self.x)}
        for name in names:
            transform = self.make(name, 0)
            program = apply.lower(transform, self.x).compile()
            calls[name] = functools.partial(program, transform, self.x)
        us = times_in_turn(calls, repeats)
        for name in (entry.config["coordinates"] for entry in todo):
            yield {"time_us": us[name], "copy_ratio": us[name] / us[""]}

    def _quantized(self, plan: Plan, seed: int = 0) -> Quantized:
        # transforms of the residual stream need folded norms, so all coordinates have these
        model = self.folded if "residual" in plan.places else self.model
        made = dense_cache(quantize(jax.random.key(seed), model, plan, self.stats, progress=False))
        return _dense_input(made) if DOWN in made.inputs else made

    def drawn(self, plan: Plan, random: bool, seed: int) -> Quantized:
        """The model of a plan, drawn with a seed if it is random."""
        return self.quantized(plan, seed * random)

    def size(self, plan: Plan) -> dict[str, float]:
        """Bits per element of the KV cache of one window, norms and exact tokens counted."""
        return {"rate_bits": costs(self.quantized(plan, 0), self.texts.shape[1]).cache_bits}


@functools.partial(jax.jit, static_argnames="coordinates")
def _fit(key: Array, x: Float[Array, "n d"], coordinates: Coordinates) -> Transform:
    return coordinates.fit(key, Samples(x))


@jax.jit
def _dense_input(made: Quantized) -> Quantized:
    """The same model, with matrices in place of the transforms before down_proj."""
    (stack,) = made.inputs[DOWN].stacks
    transform = dense(stack.transform, made.config.num_hidden_layers)
    stacks = (dataclasses.replace(stack, transform=transform),)
    inputs = made.inputs | {DOWN: dataclasses.replace(made.inputs[DOWN], stacks=stacks)}
    return dataclasses.replace(made, inputs=inputs, codes={}, shared={})


@jax.jit
def _on_tensor(
    t: Transform, sample: Float[Array, "m d"], x: Float[Array, "n d"], at: Any
) -> dict[str, Array]:
    y = t.apply(x)
    x_hat = t.inverse.apply(quantizers.absmax(BITS).roundtrip(y))

    def nmse(y_hat: Array) -> Array:  # isometries keep errors
        return metrics.nmse(y, y_hat) if t.isometry else metrics.nmse(x, t.inverse.apply(y_hat))

    return _errors(x, x_hat, at) | {
        "nmse": nmse(quantizers.absmax(BITS, "token").roundtrip(y)),
        "kurtosis": metrics.kurtosis(y),
        "peak_to_rms": metrics.peak_to_rms(y, "token"),
        "effective_dims": metrics.effective_coordinates(y),
        "top_tenth_energy": metrics.top_k_coordinates(y, max(y.shape[-1] // 10, 1)),
        "rate_bits": _rate(t.apply(sample), y, nmse) * t.out_dim / t.dim,
    }


@jax.jit
def _errors(x: Array, x_hat: Array, at: Any) -> dict[str, Array]:
    found = metrics.measure(x, x_hat, at)
    return {name: found[name] for name in ERRORS}


def _rate(
    sample: Float[Array, "m e"], y: Float[Array, "n e"], nmse: Callable[[Array], Array]
) -> Float[Array, ""]:
    """Bits per element with the single step that has the error NMSE.

    Each coordinate has a separate entropy code, with the frequencies of the sample.
    """
    top = jnp.log2(jnp.max(jnp.abs(y)))

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        above = nmse(quantizers.ecsq(jnp.exp2(middle)).roundtrip(y)) > NMSE
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    step = jnp.exp2(jax.lax.fori_loop(0, BISECTIONS, halve, (top + FLOOR, top))[0])
    codes, seen = (quantizers.ecsq(step).encode(a).values for a in (y, sample))
    return metrics.cross_entropy_bits(codes, seen)
