"""One model read through a cache: what `kv_cache` fits and measures."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from isojax import metrics
from isojax.data import (
    Needles,
    induction_tokens,
    needle_accuracy,
    needle_prompts,
    second_half,
)
from isojax.kvcache import Cache, PackedSide, Recipe, Store
from isojax.models import LanguageModel, empty_cache, forward, logits, token_nll
from isojax.models.hooks import Site
from isojax.models.rope import rope_frequencies

Stores = tuple[Store | None, Store | None]


class Trial:
    """A model, its calibration keys and values, and the programs to score text through a cache."""

    def __init__(self, model: LanguageModel, calibration: Array, window: Array) -> None:
        """Read the calibration windows [n, tokens], and the one to look at attention in."""
        self.model, self.tokens = model, len(window)
        config = model.config
        self.frequency = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        kinds = ("query", "key", "value")
        sites = tuple(Site(k, i) for k in kinds for i in range(config.num_hidden_layers))

        @jax.jit
        def capture(params: Any, ids: Any) -> dict[str, Array]:
            return forward(params, config, ids[None], capture=sites).captured

        def cache_for(ids: Array, keys: Store | None, values: Store | None) -> Cache | None:
            if keys is None and values is None:
                return None
            return empty_cache(config, 1, len(ids), keys=keys, values=values)

        @jax.jit
        def score(params: Any, ids: Any, *stores: Any) -> Float[Array, " t-1"]:
            return token_nll(params, config, ids[None], cache=cache_for(ids, *stores))[0]

        @functools.partial(jax.jit, static_argnames="last")
        def predict(params: Any, ids: Any, last: int, *stores: Any) -> Int[Array, " last"]:
            hidden = forward(params, config, ids[None], cache=cache_for(ids, *stores)).hidden
            return logits(params, hidden[0, -last - 1 : -1]).argmax(-1)

        self._capture, self._score, self._predict = capture, score, predict
        seen = [self._capture(model.params, ids) for ids in calibration]
        # [layers, n, tokens, heads, dim]
        self.samples = {k: jnp.concatenate([s[k] for s in seen], axis=1) for k in ("key", "value")}
        self._tensors = self._capture(model.params, window)

    def fit(self, seed: int, bits: int, keys: Recipe | None, values: Recipe | None) -> Stores:
        """Stores for keys and values, of the rotations of one seed."""
        of_keys, of_values = jax.random.split(jax.random.fold_in(jax.random.key(0), seed))
        k = keys and _fit(keys, bits, of_keys, self.samples["key"], self.frequency)
        v = values and _fit(values, bits, of_values, self.samples["value"], None)
        return k, v

    def nll(self, ids: np.ndarray, stores: Stores = (None, None)) -> float:
        """Mean nll of one window in nat a token, read through the cache."""
        return float(self._score(self.model.params, jnp.asarray(ids), *stores).mean())

    def needle_accuracy(self, needles: Needles, stores: Stores = (None, None)) -> float:
        """Share of prompts whose answer is found through the cache."""
        last = needles.answer.shape[1]
        predicted = [
            self._predict(self.model.params, jnp.asarray(ids), last, *stores)
            for ids in needles.tokens
        ]
        return needle_accuracy(np.stack(predicted), needles)

    def induction_nll(self, texts: Array, stores: Stores = (None, None)) -> float:
        """Mean nll of the second halves of texts that say the same twice, nat a token."""
        nll = [self._score(self.model.params, ids, *stores) for ids in texts]
        return float(second_half(jnp.stack(nll)).mean())

    def measure(self, stores: Stores) -> dict[str, float]:
        """Bytes, and what the codes make of the keys, values and attention of one window.

        The tensors are those of the exact model. Every token is read from its codes, sinks and
        recent ones too, but for a last page that is not full.
        """
        config = self.model.config
        cache = jax.eval_shape(
            lambda k, v: empty_cache(config, 1, self.tokens, "float16", keys=k, values=v), *stores
        )
        plain = jax.eval_shape(lambda: empty_cache(config, 1, self.tokens, "float16"))
        numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
        found = {
            "rate_bits": 8 * cache.nbytes / self.tokens / numbers,
            "bytes_per_token": cache.nbytes / self.tokens,
            "compression_ratio": plain.nbytes / cache.nbytes,
            "side_bytes": float(cache.side_bytes),
        }
        by_layer = _attention(self._tensors, *stores, self.frequency)
        for name, values in by_layer.items():
            values = np.asarray(values)
            if name == "logit_error":
                found[name] = float(np.sqrt(np.mean(values**2)))
                found["logit_error_worst_layer"] = float(values.max())
            else:
                found[name] = float(values.mean())
        return found


def make_probes(config: Any, model: LanguageModel) -> list[tuple[dict[str, Any], str, Any]]:
    """The recall probes asked for: how rows name each, its metric, and how to run it."""
    probes: list[tuple[dict[str, Any], str, Any]] = []
    for length in config.needles:
        key = jax.random.key(length)
        needles = needle_prompts(key, model.tokenizer, length, config.prompts)
        own = {"probe": "needle", "probe_length": length, "prompts": config.prompts}
        probes.append((own, "needle_accuracy", lambda t, s, n=needles: t.needle_accuracy(n, s)))
    texts = config.induction if config.induction >= 0 else 4 * (config.model == "tiny")
    if texts:
        key, length = jax.random.key(0), config.tokens // 2 * 2
        said = induction_tokens(key, model.config.vocab_size, length, texts)
        own = {"probe": "induction", "probe_length": length, "prompts": texts}
        probes.append((own, "induction_nll", lambda t, s: t.induction_nll(said, s)))
    return probes


@functools.partial(jax.jit, static_argnames=("recipe", "bits"))
def _fit(recipe: Recipe, bits: int, key: Any, samples: Array, frequency: Any) -> Store:
    return recipe.fit(key, samples, bits, frequency)


@jax.jit
def _attention(
    tensors: dict[str, Float[Array, "layers 1 t h d"]],
    keys: Store | None,
    values: Store | None,
    frequency: Array,
) -> dict[str, Float[Array, " layers"]]:
    """The metrics of each layer."""

    def reread(store: Store | None, x: Array, frequency: Array | None) -> Array:
        if store is None:
            return x
        side = PackedSide.empty(dataclasses.replace(store, sinks=0, recent=0), 1, *x.shape)
        coded = side.update(x[None], 0, frequency, rotated=False)[1].stored[0]
        full = len(x) // store.page * store.page
        return jnp.concatenate([coded[:full], x[full:]])

    def layer(here: Any) -> dict[str, Array]:
        q, k, v, keys, values = here
        k_hat, v_hat = reread(keys, k, frequency), reread(values, v, None)
        found = {"attention_output_nmse": metrics.attention_output_nmse(q, k, v, k_hat, v_hat)}
        if keys is not None:
            found["logit_error"] = metrics.logit_error(q, k, k_hat)
            found["attention_kl"] = metrics.attention_kl(q, k, k_hat)
            found["key_cosine"] = metrics.cosine(k, k_hat)
            found["key_nmse"] = metrics.nmse(k, k_hat)
        if values is not None:
            found["value_cosine"] = metrics.cosine(v, v_hat)
            found["value_nmse"] = metrics.nmse(v, v_hat)
        return found

    q, k, v = (tensors[name][:, 0] for name in ("query", "key", "value"))
    return jax.lax.map(layer, (q, k, v, keys, values))
