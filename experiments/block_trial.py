"""A model with block rotations before down_proj: what `block_rotation` merges and measures."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments import block_merge
from experiments.block_points import DOWN, PERMUTATIONS, SETTINGS, SITES, Point, quantizer_of
from isojax import metrics, quantizers, transforms
from isojax.models import Hooks, LanguageModel, ModelConfig, token_nll
from isojax.models.hooks import INPUTS
from isojax.models.rotate import chain, fold_norms, rotate_down_online

UNITS = {"nll": "nats per token", "delta_nll": "nats per token"}
LAYER_UNITS = {
    "relative_error": "1", "rate_bits": "bits per element", "kurtosis": "1", "peak": "input units",
    "peak_before": "input units", "peak_bound": "input units", "peak_expected": "input units",
    "imbalance_of_mean": "1", "imbalance_of_tokens": "1", "persistent_share": "1",
}  # fmt: skip


class Trial:
    """A model with folded norms, text to calibrate on, and texts to test on."""

    def __init__(
        self, model: LanguageModel, calibration: np.ndarray, texts: np.ndarray, fitted: int
    ) -> None:
        """Take the calibration windows [n, tokens] and the texts [m, tokens] to test on.

        The first `fitted` of the windows are for permutations and for SmoothQuant, all for GPTQ.
        """
        self.params, self.config = fold_norms(model.params, model.config)
        self.calibration, self.texts = jnp.asarray(calibration), jnp.asarray(texts)
        self.fitted = fitted
        self.plain = transforms.identity(self.config.intermediate_size)
        self._permutation = functools.cache(self._permute)
        self._base = functools.lru_cache(1)(self._rounded)  # one at a time: it is a whole model

    @functools.cached_property
    def samples(self) -> Float[Array, "layers t d"]:
        """What down_proj reads on the text that permutations are fitted on."""
        return self._read(self.params, DOWN)

    @functools.cached_property
    def hessian(self) -> Float[Array, "layers d d"]:
        """For GPTQ, of what down_proj reads on all of the calibration text."""
        return self._hessians(self.params, (DOWN,))[DOWN]

    @functools.cached_property
    def seen(self) -> Float[Array, "layers t d"]:
        """What down_proj reads on the first text."""
        return block_merge.capture(self.params, self.config, self.texts[0], (DOWN,))[DOWN]

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
        if name in ("none", "smooth"):
            return None
        if name == "random":
            key = jax.random.fold_in(jax.random.key(seed), 1)
            keys = jax.random.split(key, self.config.num_hidden_layers)
            draw = functools.partial(transforms.permutation, dim=self.config.intermediate_size)
            return jax.vmap(draw)(keys)
        return _fit(name, block, self.samples)

    def quantized(self, point: Point, seed: int) -> tuple[Any, transforms.Transform]:
        """Parameters merged and, where weights are quantized, rounded; and the rotation left."""
        smooth, form = point.permutation == "smooth", point.format
        params, hessian = self._base(point.setting, form, smooth, 0 if smooth else seed)
        permutation, online = self.turns(point, seed)
        params = block_merge.merge_down(params, self.config, permutation, online)
        if SETTINGS[point.setting][1]:
            layers = self.config.num_hidden_layers
            each = jax.tree.map(lambda a: jnp.broadcast_to(a, (layers, *a.shape)), online)
            params = block_merge.round_weights(
                params, quantizer_of(form, True), ("down_proj",), hessian, (permutation, each)
            )
        return params, online

    def _rounded(self, setting: str, form: str, smooth: bool, seed: int) -> tuple[Any, Any]:
        """What all blocks and permutations share: the model with weights but down_proj's rounded.

        The residual stream and the values of each head are rotated by full Hadamard matrices with
        random signs, save where down_proj alone is quantized, which it makes no difference to, and
        in place of SmoothQuant. For GPTQ, the Hessian of what down_proj reads too.
        """
        (sites, rounding), params, config = SETTINGS[setting], self.params, self.config
        if smooth:
            absmax = {site: jnp.abs(self._read(params, site)).max(1) for site in sites}
            params = block_merge.smooth(params, absmax, sites)
        elif setting != "D4":
            key, sizes = jax.random.key(seed), (config.hidden_size, config.head_dim)
            fused = [
                transforms.hadamard(jax.random.fold_in(key, 2 + i), n) for i, n in enumerate(sizes)
            ]
            params = block_merge.merge_fused(params, config, *fused)
        found: dict[str, Any] = {}
        if rounding == "gptq":
            found = self._hessians(params, SITES if smooth else SITES[:-1])
            found = found if smooth else found | {DOWN: self.hessian}
        for site in SITES[:-1] if rounding else ():
            names = tuple(name for name, source in INPUTS.items() if f"input:{source}" == site)
            params = block_merge.round_weights(
                params, quantizer_of(form, True), names, found.get(site)
            )
        return params, found.get(DOWN)

    def _read(self, params: Any, site: str) -> Float[Array, "layers t d"]:
        """What the layers at this site read on the text that permutations are fitted on."""
        texts = self.calibration[: self.fitted]
        seen = [block_merge.capture(params, self.config, ids, (site,))[site] for ids in texts]
        return jnp.concatenate(seen, axis=1)

    def _hessians(self, params: Any, sites: tuple[str, ...]) -> dict[str, Array]:
        """Sums over all of the calibration text, no means: GPTQ takes any multiple."""
        total: dict[str, Array] = {}
        for ids in self.calibration:
            seen = block_merge.capture(params, self.config, ids, sites)
            for site in sites:
                layers, _, d = seen[site].shape
                before = total.pop(site) if site in total else jnp.zeros((layers, d, d))
                total[site] = block_merge.add_grams(before, seen.pop(site))
        return total

    def nll_of(self, point: Point, params: Any, online: transforms.Transform, i: int) -> float:
        """Mean nll of text i in nat a token, with parameters of `quantized`."""
        sites, _ = SETTINGS[point.setting]
        quantizer = quantizer_of(point.format, False)
        return float(score(params, self.config, online, self.texts[i], sites, quantizer))

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
def score(
    params: Any, config: ModelConfig, online: Any, ids: Array, sites: tuple[str, ...],
    quantizer: quantizers.Quantizer,
) -> Float[Array, ""]:  # fmt: skip
    """Mean nll of a text in nat a token, the inputs at `sites` quantized after `online`."""

    def quantize(name: str, layer: Array, x: Array) -> Array:
        return quantizer.roundtrip(x) if name in sites else x

    hooks = chain(rotate_down_online(config, online), Hooks(activation=quantize))
    return token_nll(params, config, ids[None], hooks).mean()


@functools.partial(jax.jit, static_argnames=("name", "block"))
def _fit(name: str, block: int, samples: Float[Array, "layers t d"]) -> transforms.Permutation:
    return jax.lax.map(lambda x: PERMUTATIONS[name](x, block), samples)


@functools.partial(jax.jit, static_argnames="block")
def _look(
    permutation: Any, online: Any, quantizer: Any, seen: Array, samples: Array, block: int
) -> dict[str, Float[Array, " layers"]]:
    """Of the input of down_proj, by layers; means are over tokens.

    `relative_error` of the codes, `rate_bits` that they take a number, and `kurtosis` and `peak`
    (mean of max |y|) after the rotation; before it `peak_before`, the bound and the expectation of
    what rotation leaves of it, the imbalance of the blocks in the calibration mean and in each
    token, and `persistent_share`: of the largest 1% of all |x|, the share in the 1% of channels
    with the largest calibration mean.
    """

    def layer(here: Any) -> dict[str, Array]:
        permutation, x, sample = here
        mean = jnp.abs(sample).mean(0)
        if permutation is not None:
            x, mean = permutation.apply(x), permutation.apply(mean)
        y = online.apply(x)
        codes = quantizer.encode(y)
        loud = jnp.abs(x) >= metrics.quantile_threshold(x, 0.99)
        steady = mean >= metrics.quantile_threshold(mean, 0.99)
        return {
            "relative_error": metrics.relative_error(y, quantizer.decode(codes)),
            "rate_bits": quantizers.rate_bits(codes),
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
