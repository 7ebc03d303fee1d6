"""What `compare` measures of one transform: on a tensor, in the KV cache, in the whole model."""

from __future__ import annotations

import functools
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments import alignment_trial, block_merge, block_trial, kv_trial
from experiments.block_points import DOWN, SITES, quantizer_of
from experiments.stage1_trial import clock
from isojax import learn, metrics, quantizers
from isojax._core.checks import check_last_axis
from isojax.kvcache import Recipe
from isojax.models import LanguageModel, capture_tensors
from isojax.models.hooks import INPUTS
from isojax.models.rotate import fold_norms
from isojax.transforms import Dense, Transform

ALIGNED = ("pca", "learned_alignment")
NMSE = 0.01  # at which rates are compared
BISECTIONS = 24
MOST = 4096  # vectors that something is fitted on
FLOOR = -20.0  # log2 of the finest step over the largest number


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
        self._rounded = functools.lru_cache(2)(self._round)
        self._exact = functools.cache(lambda i: self.exact(i)["nll"])
        self.controls = {"zero": jnp.zeros_like(self.x), "gaussian_noise": self.x + self._noise()}

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
            block_merge.capture(self.params, self.folded, ids, site)
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
        return _on_tensor(_square(transform), self.x, self.at)

    def control(self, name: str) -> dict[str, Array]:
        """Errors of one of the `controls`."""
        return _errors(self.x, self.controls[name], self.at)

    def _noise(self) -> Float[Array, "n d"]:
        """Gaussian, of the error that a random rotation has at 3 bits with a scale a vector."""
        y = self.make("haar", 0).apply(self.x)
        error = quantizers.absmax(3, "token").roundtrip(y) - y
        size = jnp.sqrt(jnp.mean(jnp.square(error)))
        return size * jax.random.normal(jax.random.key(0), self.x.shape)

    def cost(self, name: str) -> dict[str, float]:
        """Numbers to store and multiply-adds of one vector."""
        transform = self.make(name, 0)
        return {"params": float(transform.params), "fmas": float(transform.fmas)}

    def times(self, names: tuple[str, ...], repeats: int) -> dict[str, dict[str, float]]:
        """Of applying each to the tensor, called in turn, medians; beside a pass over it."""
        apply = jax.jit(lambda t, x: t.apply(x))
        copy = jax.jit(lambda x: x + 1).lower(self.x).compile()
        made = [self.make(name, 0) for name in names]
        calls = [apply.lower(t, self.x).compile() for t in made]
        taken = [[] for _ in range(len(names) + 1)]
        for i in range(repeats + 2):
            found = [clock(copy, self.x)]
            found += [clock(f, t, self.x) for f, t in zip(calls, made, strict=True)]
            for mine, seconds in zip(taken, found, strict=True):
                mine += [seconds] if i >= 2 else []
        base, *rest = [1e6 * statistics.median(mine) for mine in taken]
        return {
            name: {"time_us": us, "copy_ratio": us / base}
            for name, us in zip(names, rest, strict=True)
        }

    def losses(self, name: str) -> dict[str, Any]:
        """What can be measured in the model: of a method, a seed and a text."""
        # padded blocks do not merge, and a recipe of the cache has no learned axes
        losses = {} if name.startswith("learned") else {"kv_delta_nll": self.cached}
        return losses | ({} if name == "rotor" else {"w4a4_delta_nll": self.w4a4})

    def cached(self, name: str, seed: int, i: int) -> dict[str, float]:
        """Loss of text i, nat a token, with centred keys and values of 3 bits in the KV cache."""
        recipe = _recipe(name)
        nll = self.cache.nll(i, self.cache.fit(seed, 3, recipe, recipe))
        return {"kv_delta_nll": nll - self._exact(i)}

    def w4a4(self, name: str, seed: int, i: int) -> dict[str, float]:
        """Loss of text i with INT4 weights and activations, a scale a row and a token.

        The residual stream, the values and what down_proj reads are in the coordinates of the
        method; the first two are merged.
        """
        params, online = self._rounded(name, seed * self.drawn(name))
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
    """Keys and values in the coordinates of a method, centred, sinks exact."""
    base = Recipe(offset="channel_pre_rope", sinks=4)
    replace = functools.partial(Recipe, offset=base.offset, sinks=base.sinks)
    if name == "pca":
        return replace("pca", codebook="fitted_channel", allocation="greedy")
    permutation, _, transform = name.rpartition("@")
    return replace(transform, permutation="mass_diff" if permutation else "none")


@functools.partial(jax.jit, static_argnames="name")
def _axes(key: Array, x: Float[Array, "n d"], name: str) -> Transform:
    permutation, _, rest = name.rpartition("@")
    made = alignment_trial.axes(key, x, rest)
    if not permutation:
        return made
    block = int(rest.partition(":")[2] or 4)
    return learn.mass_diff(x, block) @ made


def _few(x: Float[Array, "n d"]) -> Float[Array, "m d"]:
    return x[:: -(-len(x) // MOST)]


def _square(transform: Transform) -> Any:
    """As a dense matrix, so that all methods share one program; padded ones stay what they are."""
    if transform.dim != transform.out_dim:
        return transform
    return Dense(transform.matrix())


@jax.jit
def _on_tensor(t: Transform, x: Float[Array, "n d"], at: Any) -> dict[str, Array]:
    check_last_axis("x", x, t.dim)
    y = t.apply(x)
    variance = jnp.mean(jnp.square(y), 0)
    share = variance / variance.sum()
    x_hat = t.T.apply(quantizers.absmax(3).roundtrip(y))
    y_hat = quantizers.absmax(3, "token").roundtrip(y)
    return (
        {
            "kurtosis": metrics.kurtosis(y),
            "peak_to_rms": metrics.peak_to_rms(y, "token"),
            "effective_dims": jnp.exp(-jnp.sum(jax.scipy.special.xlogy(share, share))),
            "top_tenth_energy": jnp.sum(jnp.sort(share)[-max(len(share) // 10, 1) :]),
            "rate_bits": _rate(y),
        }
        | _errors(x, x_hat, at)
        | {"nmse": metrics.nmse(y, y_hat)}
    )


@jax.jit
def _errors(x: Array, x_hat: Array, at: Any) -> dict[str, Array]:
    found = metrics.measure(x, x_hat, at)
    shown = ("outlier_mse", "noise_floor_mse", "false_firings", "missed_firings", "nmse")
    return {name: found[name] for name in shown}


def _rate(y: Float[Array, "n d"]) -> Float[Array, ""]:
    """Bits a number, a code for each coordinate, with the one step that gives the error NMSE."""
    top = jnp.log2(jnp.max(jnp.abs(y)))

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        error = metrics.nmse(y, quantizers.ecsq(jnp.exp2(middle)).roundtrip(y))
        return jnp.where(error > NMSE, low, middle), jnp.where(error > NMSE, middle, high)

    step = jnp.exp2(jax.lax.fori_loop(0, BISECTIONS, halve, (top + FLOOR, top))[0])
    return metrics.code_entropy_bits(quantizers.ecsq(step).encode(y).values, "channel")
