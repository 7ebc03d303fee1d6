"""What `compare` measures of one transform: on a tensor, in the KV cache, in the whole model."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments import alignment_trial, block_merge, block_trial, kv_trial
from experiments.block_points import DOWN, SITES, quantizer_of
from experiments.timing import times_in_turn
from isojax import learn, metrics, quantizers
from isojax.kvcache.recipe import Recipe, block_of
from isojax.models import LanguageModel, capture_tensors
from isojax.models.hooks import INPUTS
from isojax.models.rotate import fold_norms
from isojax.transforms import Dense, Transform

BITS = 3
NMSE = 0.01  # at which rates are compared
BISECTIONS = 24
MOST = 4096  # vectors that something is fitted on
FLOOR = -20.0  # log2 of the finest step over the largest number
UNITS = metrics.MEASURE_UNITS | {
    "nll": "nats per token", "kv_delta_nll": "nats per token", "w4a4_delta_nll": "nats per token",
    "kv_bits": "bits per element", "rate_bits": "bits per element", "effective_dims": "1",
    "kurtosis": "1", "peak_to_rms": "1", "top_tenth_energy": "1", "params": "count",
    "fmas": "count", "time_us": "us", "copy_ratio": "1",
}  # fmt: skip


class Trial:
    """A model, its calibration text and texts to test on; and what each method makes of them."""

    def __init__(
        self, model: LanguageModel, calibration: np.ndarray, texts: np.ndarray, tensor: str
    ) -> None:
        """Read the calibration windows [n, tokens]; `texts` [m, tokens] are those to test on."""
        self.config = model.config
        self.cache = kv_trial.Trial(model, calibration, texts)
        self.params, self.folded = fold_norms(model.params, model.config)
        self.fit_on, self.x = (
            jnp.concatenate([capture_tensors(model, ids, [tensor])[tensor] for ids in windows])
            for windows in (calibration, texts)
        )
        self.texts, self.calibration = jnp.asarray(texts), jnp.asarray(calibration)
        self.at = metrics.thresholds(self.x)
        self._make = functools.lru_cache(8)(self._made)
        self._samples = functools.cache(self._read)
        self._rounded = functools.lru_cache(1)(self._round)  # a whole model
        self._exact = functools.cache(lambda i: self.exact(i)["nll"])
        self.controls = ("zero", "gaussian_noise")

    def drawn(self, name: str) -> bool:
        """Whether a seed changes the method."""
        return name not in ("identity", "pca")

    def make(self, name: str, seed: int, place: str = "tensor") -> Transform:
        """The transform of a method for the vectors that pass at one place."""
        return self._make(name, seed * self.drawn(name), place)

    def _made(self, name: str, seed: int, place: str) -> Transform:
        x, key = self._samples(place), jax.random.key(seed)
        if place == DOWN and name.startswith("learned"):
            name = "hadamard"  # online, so it has to be fast: as SpinQuant has it
        return _axes(key, x, name)

    def _read(self, place: str) -> Float[Array, "n d"]:
        """Calibration vectors: of the tensor, the residual stream, values or the MLP."""
        if place == "tensor":
            return _few(self.fit_on)
        if place == "value":
            return _few(self.cache.samples["value"].reshape(-1, self.config.head_dim))
        sites = ("input:q_proj", "input:gate_proj") if place == "residual" else (place,)
        seen = [
            block_merge.capture(self.params, self.folded, ids, (site,))[site]
            for ids in self.calibration
            for site in sites
        ]
        return _few(jnp.concatenate(seen, 1).reshape(-1, seen[0].shape[-1]))

    def exact(self, i: int) -> dict[str, float]:
        """Mean nll of text i in nat a token, nothing quantized."""
        return {"nll": self.cache.nll(i, (None, None))}

    def tensor(self, name: str, seed: int) -> dict[str, Array]:
        """How the coordinates lie, and what quantizing them does to the tensor."""
        transform = self.make(name, seed)
        return _on_tensor(_square(transform), self._samples("tensor"), self.x, self.at)

    def check(self, name: str) -> None:
        """Raise `ValueError` where a method has no form for the tensor."""
        _exists(name, self.x.shape[-1])

    def control(self, name: str) -> dict[str, Array]:
        """Errors of one of the `controls`: a zero predictor, or noise like the error of haar."""
        if name == "zero":
            return _errors(self.x, jnp.zeros_like(self.x), self.at)
        shape = jax.random.normal(jax.random.key(0), self.x.shape)
        y = self.make("haar", 0).apply(self.x)
        # one scale for the tensor as in the columns of outliers, one a vector as in that of NMSE
        whole, each = (
            self.x + shape * jnp.sqrt(jnp.mean(jnp.square(q.roundtrip(y) - y)))
            for q in (quantizers.absmax(BITS), quantizers.absmax(BITS, "token"))
        )
        return _errors(self.x, whole, self.at) | {"nmse": metrics.nmse(self.x, each)}

    def cost(self, name: str) -> dict[str, float]:
        """Numbers to store and multiply-adds of one vector; bits of a number in the KV cache."""
        transform, found = self.make(name, 0), {}
        if "kv_delta_nll" in self.losses(name):
            recipe = _recipe(name)
            found["kv_bits"] = self.cache.size(BITS, recipe, recipe)["rate_bits"]
        return found | {"params": float(transform.params), "fmas": float(transform.fmas)}

    def times(self, names: tuple[str, ...], repeats: int) -> dict[str, dict[str, float]]:
        """Of applying each to the tensor, called in turn, medians; beside a pass over it."""
        apply = jax.jit(lambda t, x: t.apply(x))
        copy = jax.jit(lambda x: x + 1).lower(self.x).compile()
        made = [self.make(name, 0) for name in names]
        programs = [functools.partial(apply.lower(t, self.x).compile(), t, self.x) for t in made]
        calls = {"": functools.partial(copy, self.x)} | dict(zip(names, programs, strict=True))
        us = times_in_turn(calls, repeats)
        return {name: {"time_us": us[name], "copy_ratio": us[name] / us[""]} for name in names}

    def losses(self, name: str) -> dict[str, Any]:
        """What can be measured in the model: of a method and a text, drawn with its number."""
        losses, config = {}, self.config
        # what is learned for the rate is no recipe of the cache; padded blocks do not merge
        if name != "learned_alignment" and _exists_at(name, (config.head_dim,)):
            losses["kv_delta_nll"] = self.cached
        sizes = config.hidden_size, config.head_dim, config.intermediate_size
        if _exists_at(name, sizes, square=True):
            losses["w4a4_delta_nll"] = self.w4a4
        return losses

    def cached(self, name: str, i: int) -> dict[str, float]:
        """Loss of text i, nat a token, with centred keys and values of 3 bits in the KV cache."""
        recipe = _recipe(name)
        nll = self.cache.nll(i, self.cache.fit(i, BITS, recipe, recipe))
        return {"kv_delta_nll": nll - self._exact(i)}

    def w4a4(self, name: str, i: int) -> dict[str, float]:
        """Loss of text i with INT4 weights and activations, a scale a row and a token.

        The residual stream, the values and what down_proj reads are in the coordinates of the
        method, one for all layers and heads; the first two are merged.
        """
        params, online = self._rounded(name, i * self.drawn(name))
        quantizer = quantizer_of("int4", of_weights=False)
        nll = block_trial.score(params, self.folded, online, self.texts[i], SITES, quantizer)
        return {"w4a4_delta_nll": float(nll) - self._exact(i)}

    def _round(self, name: str, seed: int) -> tuple[Any, Dense]:
        residual, values, down = (
            _square(self.make(name, seed, place)) for place in ("residual", "value", DOWN)
        )
        params = block_merge.merge_fused(self.params, self.folded, residual, values)
        params = block_merge.merge_down(params, self.folded, None, down)
        return block_merge.round_weights(params, quantizer_of("int4", True), tuple(INPUTS)), down


def _recipe(name: str) -> Recipe:
    """Keys and values in the coordinates of a method, centred, sinks exact.

    Principal axes have levels for each coordinate and bits where they matter; others, whose
    coordinates are alike, fixed levels.
    """
    words: dict[str, Any] = {"offset": "channel_pre_rope", "sinks": 4}
    if name == "pca":
        return Recipe("pca", codebook="fitted_channel", allocation="greedy", **words)
    permutation, _, transform = name.rpartition("@")
    return Recipe(transform, "mass_diff" if permutation else "none", **words)


@functools.cache
def _exists(name: str, dim: int) -> Transform:
    """The shapes of a method for vectors of this length.

    Raises:
        ValueError: there is no such transform.
    """
    if name.startswith("learned"):
        name = "hadamard"  # where it starts, or what stands for it before down_proj
    like = jax.eval_shape(lambda: (jax.random.key(0), jnp.zeros((8, dim))))
    return jax.eval_shape(functools.partial(_axes, name=name), *like)


def _exists_at(name: str, sizes: tuple[int, ...], square: bool = False) -> bool:
    try:
        made = [_exists(name, dim) for dim in sizes]
    except ValueError:
        return False
    return not square or all(t.dim == t.out_dim for t in made)


@functools.partial(jax.jit, static_argnames="name")
def _axes(key: Array, x: Float[Array, "n d"], name: str) -> Transform:
    permutation, _, rest = name.rpartition("@")
    made = alignment_trial.axes(key, x, rest)
    return learn.mass_diff(x, block_of(rest)) @ made if permutation else made


def _few(x: Float[Array, "n d"]) -> Float[Array, "m d"]:
    return jax.random.permutation(jax.random.key(0), x)[:MOST]


def _square(transform: Transform) -> Any:
    """As a dense matrix, so that all methods share one program; padded ones stay what they are."""
    if transform.dim != transform.out_dim:
        return transform
    return Dense(transform.matrix())


@jax.jit
def _on_tensor(
    t: Transform, sample: Float[Array, "m d"], x: Float[Array, "n d"], at: Any
) -> dict[str, Array]:
    y = t.apply(x)
    x_hat = t.inverse.apply(quantizers.absmax(BITS).roundtrip(y))
    y_hat = quantizers.absmax(BITS, "token").roundtrip(y)
    return _errors(x, x_hat, at) | {
        "nmse": metrics.nmse(y, y_hat),
        "kurtosis": metrics.kurtosis(y),
        "peak_to_rms": metrics.peak_to_rms(y, "token"),
        "effective_dims": metrics.effective_coordinates(y),
        "top_tenth_energy": metrics.top_k_coordinates(y, max(y.shape[-1] // 10, 1)),
        "rate_bits": _rate(t.apply(sample), y) * t.out_dim / t.dim,
    }


@jax.jit
def _errors(x: Array, x_hat: Array, at: Any) -> dict[str, Array]:
    found = metrics.measure(x, x_hat, at)
    shown = ("outlier_mse", "noise_floor_mse", "false_firings", "missed_firings", "nmse")
    return {name: found[name] for name in shown}


def _rate(sample: Float[Array, "m e"], y: Float[Array, "n e"]) -> Float[Array, ""]:
    """Bits a number with the one step that gives the error NMSE.

    Each coordinate has an entropy code of its own, with the frequencies of the sample.
    """
    top = jnp.log2(jnp.max(jnp.abs(y)))

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        error = metrics.nmse(y, quantizers.ecsq(jnp.exp2(middle)).roundtrip(y))
        return jnp.where(error > NMSE, low, middle), jnp.where(error > NMSE, middle, high)

    step = jnp.exp2(jax.lax.fori_loop(0, BISECTIONS, halve, (top + FLOOR, top))[0])
    seen, codes = (quantizers.ecsq(step).encode(a).values for a in (sample, y))
    return alignment_trial.coded_bits(seen, codes)
