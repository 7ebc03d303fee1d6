"""A model with block rotations before down_proj: what `block_rotation` merges and measures."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.block_points import DOWN, PERMUTATIONS, SETTINGS, SITES, Point, quantizer_of
from isojax import learn, metrics, quantizers, transforms
from isojax.models import WEIGHTS, Hooks, LanguageModel, ModelConfig, Site, forward, token_nll
from isojax.models.hooks import INPUTS
from isojax.models.rotate import (
    chain,
    fold_norms,
    permute_ffn,
    rotate_down,
    rotate_down_online,
    rotate_residual,
    rotate_values,
)


class Trial:
    """A model with folded norms, what down_proj reads on calibration text, and texts to test on."""

    def __init__(self, model: LanguageModel, calibration: np.ndarray, texts: np.ndarray) -> None:
        """Read the calibration windows [n, tokens]; `texts` [m, tokens] are those to test on."""
        self.params, self.config = fold_norms(model.params, model.config)
        self.calibration, self.texts = jnp.asarray(calibration), jnp.asarray(texts)
        self.plain = transforms.identity(self.config.intermediate_size)
        read = functools.partial(_capture, self.params, self.config, self.plain)
        samples = jnp.concatenate([read(ids, (DOWN,))[DOWN] for ids in self.calibration], axis=1)
        self.samples = samples  # [layers, tokens, channels]
        self.seen = read(self.texts[0], (DOWN,))[DOWN]
        self._permutation = functools.cache(self._permute)

    def nll(self, i: int) -> float:
        """Mean nll of text i in nat a token, nothing quantized."""
        point = Point("exact", "int4", 0, "none")
        return self.nll_of(point, self.params, self.plain, i)

    def turns(self, point: Point, seed: int) -> tuple[Any, transforms.Transform]:
        """The permutation (None for none) and the rotation in front of down_proj."""
        width, key = self.config.intermediate_size, jax.random.key(seed)
        drawn = seed if point.permutation == "random" else 0
        permutation = self._permutation(point.permutation, point.block or 1, drawn)
        if not point.block:
            return permutation, self.plain
        key = jax.random.fold_in(key, 0)
        return permutation, transforms.block_hadamard(key, width, point.block)

    def _permute(self, name: str, block: int, seed: int) -> transforms.Permutation | None:
        layers, _, width = self.samples.shape
        if name == "none":
            return None
        if name == "random":
            keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), layers)
            return jax.vmap(lambda key: transforms.permutation(key, width))(keys)
        return _fit(name, block, self.samples)

    def quantized(self, point: Point, seed: int) -> tuple[Any, transforms.Transform]:
        """Parameters merged and, where weights are quantized, rounded; and the rotation left.

        The residual stream and the values of each head are rotated by full Hadamard matrices with
        random signs, save where down_proj alone is quantized: there it makes no difference.
        """
        permutation, online = self.turns(point, seed)
        key = jax.random.key(seed)
        fused = ()
        if point.setting != "D4":
            sizes = self.config.hidden_size, self.config.head_dim
            fused = tuple(
                transforms.hadamard(jax.random.fold_in(key, 2 + i), size)
                for i, size in enumerate(sizes)
            )
        params = _merge(self.params, self.config, permutation, online, fused)
        rounding = SETTINGS[point.setting][1]
        if rounding:
            grams = self._grams(params, online) if rounding == "gptq" else None
            params = _round(params, quantizer_of(point.format, True), grams)
        return params, online

    def _grams(self, params: Any, online: transforms.Transform) -> dict[str, learn.Gram]:
        """Of all inputs of linear layers, as the merged model has them."""
        total = None
        for ids in self.calibration:
            seen = _capture(params, self.config, online, ids, SITES)
            new = {site: _gram(x) for site, x in seen.items()}
            total = new if total is None else {k: total[k] + new[k] for k in new}
        assert total is not None
        return total

    def nll_of(self, point: Point, params: Any, online: transforms.Transform, i: int) -> float:
        """Mean nll of text i in nat a token, with parameters of `quantized`."""
        sites, _ = SETTINGS[point.setting]
        quantizer = quantizer_of(point.format, False)
        return float(_score(params, self.config, online, self.texts[i], sites, quantizer))

    def layers(self, point: Point, seed: int) -> list[dict[str, float]]:
        """What down_proj reads in each layer, on the first text."""
        permutation, online = self.turns(point, seed)
        quantizer = quantizer_of(point.format, False)
        found = _look(permutation, online, quantizer, self.seen, self.samples, point.block or 1)
        return [
            {name: float(values[layer]) for name, values in found.items()}
            for layer in range(len(self.seen))
        ]


@functools.partial(jax.jit, static_argnames=("config", "sites"))
def _capture(
    params: Any, config: ModelConfig, online: Any, ids: Int[Array, " t"], sites: tuple[str, ...]
) -> dict[str, Float[Array, "layers t d"]]:
    wanted = tuple(Site(site, layer) for site in sites for layer in range(config.num_hidden_layers))
    hooks = rotate_down_online(config, online)
    seen = forward(params, config, ids[None], hooks=hooks, capture=wanted).captured
    return {kind: x[:, 0] for kind, x in seen.items()}


@functools.partial(jax.jit, static_argnames=("config", "sites"))
def _score(
    params: Any, config: ModelConfig, online: Any, ids: Array, sites: tuple[str, ...],
    quantizer: quantizers.Quantizer,
) -> Float[Array, ""]:  # fmt: skip
    def quantize(name: str, layer: Array, x: Array) -> Array:
        return quantizer.roundtrip(x) if name in sites else x

    hooks = chain(rotate_down_online(config, online), Hooks(activation=quantize))
    return token_nll(params, config, ids[None], hooks).mean()


@functools.partial(jax.jit, static_argnames=("name", "block"))
def _fit(name: str, block: int, samples: Float[Array, "layers t d"]) -> transforms.Permutation:
    return jax.lax.map(lambda x: PERMUTATIONS[name](x, block), samples)


@functools.partial(jax.jit, static_argnames="config")
def _merge(params: Any, config: ModelConfig, permutation: Any, online: Any, fused: Any) -> Any:
    if permutation is not None:
        params = permute_ffn(params, config, permutation)
    params = rotate_down(params, config, online)
    if fused:
        params = rotate_values(rotate_residual(params, config, fused[0]), config, fused[1])
    return params


_gram = jax.jit(jax.vmap(learn.gram))


@jax.jit
def _round(params: Any, quantizer: quantizers.Quantizer, grams: Any) -> Any:
    """Weights as their codes have them: to nearest, or by GPTQ where there are Gram matrices."""

    def nearest(w: Array) -> Array:
        return quantizer.roundtrip(w.T).T

    def gptq(w_and_hessian: tuple[Array, Array]) -> Array:
        return quantizer.decode(learn.gptq(*w_and_hessian, quantizer)).T

    layers = dict(params["layers"])
    for name in WEIGHTS:
        kernel = layers[name]["kernel"]
        if grams is None:
            kernel = jax.lax.map(nearest, kernel)
        else:
            kernel = jax.lax.map(gptq, (kernel, grams[f"input:{INPUTS[name]}"].hessian))
        layers[name] = layers[name] | {"kernel": kernel}
    return params | {"layers": layers}


@functools.partial(jax.jit, static_argnames="block")
def _look(
    permutation: Any, online: Any, quantizer: Any, seen: Array, samples: Array, block: int
) -> dict[str, Float[Array, " layers"]]:
    """Of the input of down_proj, by layers; means are over tokens.

    `relative_error` of the codes, and `kurtosis` and `peak` (mean of max |y|) after the rotation;
    before it `peak_before`, the bound and the expectation of what rotation leaves of it, the
    imbalance of the blocks in the calibration mean and in each token, and `persistent_share`: of
    the largest 1% of all |x|, the share in the 1% of channels with the largest calibration mean.
    """

    def layer(here: Any) -> dict[str, Array]:
        permutation, x, sample = here
        mean = jnp.abs(sample).mean(0)
        if permutation is not None:
            x, mean = permutation.apply(x), permutation.apply(mean)
        y = online.apply(x)
        loud = jnp.abs(x) >= metrics.quantile_threshold(x, 0.99)
        steady = mean >= metrics.quantile_threshold(mean, 0.99)
        return {
            "relative_error": metrics.relative_error(y, quantizer.roundtrip(y)),
            "kurtosis": metrics.kurtosis(y),
            "peak": jnp.abs(y).max(-1).mean(),
            "peak_before": jnp.abs(x).max(-1).mean(),
            "peak_bound": metrics.rotation_bound(x, block).mean(),
            "peak_expected": metrics.expected_peak(x, block).mean(),
            "imbalance_of_mean": metrics.mass_imbalance(mean, block),
            "imbalance_of_tokens": metrics.mass_imbalance(x, block).mean(),
            "persistent_share": jnp.sum(loud & steady) / jnp.sum(loud),
        }

    return jax.lax.map(layer, (permutation, seen, samples))
