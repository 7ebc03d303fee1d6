"""One model read through a cache: what `kv_cache` fits and measures."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from isojax import Codec, learn, metrics
from isojax.data import (
    Needles,
    induction_tokens,
    needle_accuracy,
    needle_prompts,
    second_half,
)
from isojax.kvcache import Cache, PackedSide, Store
from isojax.kvcache.recipe import Recipe
from isojax.models import LanguageModel, ModelConfig, empty_cache, forward, logits, token_nll
from isojax.models.hooks import Site
from isojax.models.rope import rope_frequencies
from isojax.transforms import Dense

Stores = tuple[Store | None, Store | None]
UNITS = {
    "nll": "nats per token", "delta_nll": "nats per token", "induction_nll": "nats per token",
    "logit_error": "1", "logit_error_worst_layer": "1", "attention_kl": "nats",
    "attention_output_nmse": "1", "key_cosine": "1", "value_cosine": "1", "key_nmse": "1",
    "value_nmse": "1", "needle_accuracy": "1",
    "rate_bits": "bits per element", "bytes_per_token": "bytes per token",
    "compression_ratio": "1", "side_bytes": "bytes",
}  # fmt: skip


class Reading(NamedTuple):
    """One text to read through a cache.

    Attributes:
        own: how its rows name it.
        seed: of the rotations it is read with.
        metric: the first one that `read` finds.
        read: metrics of the text, given how keys and values are stored.
    """

    own: dict[str, Any]
    seed: int
    metric: str
    read: Callable[[Stores], dict[str, float]]


class Trial:
    """A model, its calibration keys and values, and the programs to score text through a cache."""

    def __init__(self, model: LanguageModel, calibration: np.ndarray, texts: np.ndarray) -> None:
        """Read the calibration windows [n, tokens]; `texts` [m, tokens] are those to test on."""
        self.model, self.texts, self.tokens = model, jnp.asarray(texts), texts.shape[1]
        config = model.config
        self.frequency = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)

        @functools.partial(jax.jit, static_argnames="kinds")
        def capture(params: Any, ids: Any, kinds: tuple[str, ...]) -> dict[str, Array]:
            sites = tuple(Site(k, i) for k in kinds for i in range(config.num_hidden_layers))
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

        self._score, self._predict = score, predict
        stored = ("key", "value")
        samples, moments = [], []
        for ids in calibration:
            seen = capture(model.params, jnp.asarray(ids), ("query", *stored))
            moments.append(_query_moment(seen.pop("query"), config.num_key_value_heads))
            samples.append(seen)
        # [layers, n, tokens, heads, dim]
        self.samples = {k: jnp.concatenate([s[k] for s in samples], axis=1) for k in stored}
        read = jnp.stack(moments).mean(0)
        self.metrics = {"key": read, "value": _output_moment(model.params, config)}
        self._tensors = functools.lru_cache(8)(  # in the memory of the host
            lambda i: jax.device_get(capture(model.params, self.texts[i], ("query", *stored)))
        )
        # those of targets K and V serve KV
        self._fitted = functools.lru_cache(4 * len(texts))(self._fit)

    def _fit(self, side: str, recipe: Recipe, bits: int, seed: int) -> Store:
        key = jax.random.fold_in(jax.random.key(0), seed)
        key = jax.random.split(key)[0 if side == "key" else 1]
        return _fit(recipe, bits, key, *self._calibration(side))

    def _calibration(self, side: str) -> tuple[Array, Array | None, Array]:
        frequency = self.frequency if side == "key" else None
        return self.samples[side], frequency, self.metrics[side]

    def fit(self, seed: int, bits: int, keys: Recipe | None, values: Recipe | None) -> Stores:
        """Stores for keys and values, of the rotations of one seed, in their plain form."""

        def side(name: str, recipe: Recipe | None) -> Store | None:
            # where nothing is drawn, all seeds share one store
            return recipe and self._fitted(name, recipe, bits, seed * recipe.random)

        return side("key", keys), side("value", values)

    def readings(self, lengths: Sequence[int], prompts: int, induction: int) -> list[Reading]:
        """The texts, then `prompts` needles of each of the `lengths`, and induction texts."""
        found = [
            Reading({"window": i}, i, "nll", functools.partial(self.window, i))
            for i in range(len(self.texts))
        ]
        for length in lengths:
            needles = needle_prompts(jax.random.key(length), self.model.tokenizer, length, prompts)
            own = {"probe": "needle", "probe_length": length, "prompts": prompts}
            for i in range(prompts):
                one = Needles(*(part[i : i + 1] for part in needles))
                read = functools.partial(self.needle, one)
                found.append(Reading(own | {"prompt": i}, i, "needle_accuracy", read))
        if induction:
            vocab, length = self.model.config.vocab_size, self.tokens // 2 * 2
            own = {"probe": "induction", "probe_length": length, "prompts": induction}
            for i, ids in enumerate(induction_tokens(jax.random.key(0), vocab, length, induction)):
                read = functools.partial(self.induction, ids)
                found.append(Reading(own | {"prompt": i}, i, "induction_nll", read))
        return found

    def nll(self, i: int, stores: Stores) -> float:
        """Mean nll of a window in nat a token."""
        return float(self._score(self.model.params, self.texts[i], *stores).mean())

    def window(self, i: int, stores: Stores) -> dict[str, float]:
        """Mean nll of a window in nat a token, and what codes do to its attention.

        For the latter the tensors are those of the exact model, and every token is read from its
        codes, sinks and recent ones too, but for a last page that is not full.
        """
        nll = {"nll": self.nll(i, stores)}
        if all(store is None for store in stores):
            return nll
        found = {}
        for name, values in _attention(self._tensors(i), *stores, self.frequency).items():
            values = np.asarray(values)
            if name == "logit_error":
                found[name] = float(np.sqrt(np.mean(values**2)))
                found["logit_error_worst_layer"] = float(values.max())
            else:
                found[name] = float(values.mean())
        return nll | found

    def needle(self, needle: Needles, stores: Stores) -> dict[str, float]:
        """Whether the answer of one prompt is found through the cache."""
        ids, last = jnp.asarray(needle.tokens[0]), needle.answer.shape[1]
        predicted = self._predict(self.model.params, ids, last, *stores)
        return {"needle_accuracy": needle_accuracy(np.asarray(predicted)[None], needle)}

    def induction(self, ids: Array, stores: Stores) -> dict[str, float]:
        """Mean nll of the second half of a text that says the same twice, nat a token."""
        nll = self._score(self.model.params, ids, *stores)
        return {"induction_nll": float(second_half(nll).mean())}

    def size(self, bits: int, keys: Recipe | None, values: Recipe | None) -> dict[str, float]:
        """Bytes of a cache of one window."""
        config, key = self.model.config, jax.random.key(0)

        def store(side: str, recipe: Recipe | None) -> Store | None:
            samples, frequency, metric = self._calibration(side)
            return recipe and recipe.fit(key, samples, bits, frequency, metric)

        def caches() -> tuple[Cache, Cache]:
            make = functools.partial(empty_cache, config, 1, self.tokens, "float16")
            return make(), make(keys=store("key", keys), values=store("value", values))

        plain, own = jax.eval_shape(caches)
        numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
        return {
            "rate_bits": 8 * own.nbytes / self.tokens / numbers,
            "bytes_per_token": own.nbytes / self.tokens,
            "compression_ratio": plain.nbytes / own.nbytes,
            "side_bytes": float(own.side_bytes),
        }


@functools.partial(jax.jit, static_argnames=("recipe", "bits"))
def _fit(
    recipe: Recipe, bits: int, key: Any, samples: Array, frequency: Any, metric: Array
) -> Store:
    store, zeros = (
        recipe.fit(key, samples, bits, frequency, metric),
        jnp.zeros_like(samples[:, 0, 0]),
    )
    if frequency is not None and store.mean is None:
        store = dataclasses.replace(store, mean=zeros)
    return dataclasses.replace(store, codec=_plain(store.codec, zeros))


def _plain(codec: Codec, zeros: Float[Array, "layers g d"]) -> Codec:
    """The same codes by dense matrices, nothing left out: most recipes then share one program."""
    transform = codec.transform
    if transform.dim == transform.out_dim and transform.isometry:
        each = jax.vmap(lambda t: t.matrix(), axis_size=zeros.shape[1])
        transform = Dense(jax.vmap(each, axis_size=zeros.shape[0])(transform))
    offset = zeros if codec.offset is None else codec.offset
    scale = zeros + 1 if codec.scale is None else codec.scale
    return Codec(transform, codec.quantizer, offset, scale)


@functools.partial(jax.jit, static_argnames="groups")
def _query_moment(
    query: Float[Array, "layers 1 t h d"], groups: int
) -> Float[Array, "layers g d d"]:
    """The second moment of the queries that read each key head."""
    layers, _, tokens, heads, dim = query.shape
    by_head = query.reshape(layers, tokens, groups, heads // groups, dim).transpose(0, 2, 1, 3, 4)
    return jax.vmap(jax.vmap(learn.second_moment))(by_head)


@functools.partial(jax.jit, static_argnames="config")
def _output_moment(params: Any, config: ModelConfig) -> Float[Array, "layers g d d"]:
    """How o_proj measures an error in the values of each head: W W^T over the heads that share."""
    groups, dim = config.num_key_value_heads, config.head_dim
    kernel = params["layers"]["o_proj"]["kernel"].astype(jnp.float32)
    by_head = kernel.reshape(len(kernel), groups, -1, dim, kernel.shape[-1]).swapaxes(-1, -2)
    return jax.vmap(jax.vmap(learn.second_moment))(by_head)


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
        coded = side.update(x[None], 0, frequency, rotated=False)[1].tokens(len(x) - 1)
        full = len(x) // store.page * store.page
        return jnp.concatenate([coded[:full], x[full:]])

    def layer(here: Any) -> dict[str, Array]:
        q, k, v, keys, values = here
        k_hat, v_hat = reread(keys, k, frequency), reread(values, v, None)
        found = metrics.attention_errors(q, k, v, k_hat, v_hat)._asdict()
        if keys is None:
            found = {"attention_output_nmse": found["attention_output_nmse"]}
        else:
            found["key_cosine"] = metrics.cosine(k, k_hat)
            found["key_nmse"] = metrics.nmse(k, k_hat)
        if values is not None:
            found["value_cosine"] = metrics.cosine(v, v_hat)
            found["value_nmse"] = metrics.nmse(v, v_hat)
        return found

    q, k, v = (tensors[name][:, 0] for name in ("query", "key", "value"))
    return jax.lax.map(layer, (q, k, v, keys, values))
