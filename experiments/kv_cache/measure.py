"""Measurements of a method: texts read through the cache, its size, probes of recall."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from isojax import Codec, metrics
from isojax.data import Needles, induction_tokens, needle_accuracy, needle_prompts, second_half
from isojax.kvcache import PackedSide, Store
from isojax.models import LanguageModel, Site, empty_cache, forward, logits
from isojax.models.rope import rope_frequencies
from isojax.quantize import Plan, Quantized, Stats, costs, quantize, reference, score
from isojax.quantize.costs import EXACT
from isojax.report import Entry

from ..scoring import SCORED, Texts, dense, exact_nll

OUTPUT = {"attention_output_nmse": "1"}
OF_KEYS = {
    "logit_error": "1", "logit_error_worst_layer": "1", "attention_kl": "nats",
    "key_cosine": "1", "key_nmse": "1",
}  # fmt: skip
OF_VALUES = {"value_cosine": "1", "value_nmse": "1"}
SIZE = {
    "rate_bits": "bits per element", "bytes_per_token": "bytes per token",
    "compression_ratio": "1", "side_bytes": "bytes",
}  # fmt: skip
NEEDLE = {"needle_accuracy": "1"}
INDUCTION = {"induction_nll": "nats per token"}


def units_of(target: str) -> dict[str, str]:
    """Metrics and units of a window with `target` in codes."""
    return (
        SCORED | OUTPUT | (OF_KEYS if "K" in target else {}) | (OF_VALUES if "V" in target else {})
    )


class Reader(Texts):
    """A model, statistics to fit on, and texts to read through its cache."""

    def __init__(
        self, model: LanguageModel, texts: np.ndarray, stats: Stats, induction: int
    ) -> None:
        """Store texts [n, tokens] to test on, and the number of texts of the induction probe."""
        super().__init__(model, texts)
        self.stats = stats
        self.induction_count = induction
        self.made = functools.lru_cache(len(texts))(self._made)
        self.quantized = functools.lru_cache(len(texts))(self._shared)
        self._tensors = functools.lru_cache(8)(self._captured)

    def _made(self, plan: Plan, seed: int) -> Quantized:
        return quantize(jax.random.key(seed), self.model, plan, self.stats, progress=False)

    def _shared(self, plan: Plan, seed: int) -> Quantized:
        made = self.made(plan, seed)
        return dataclasses.replace(made, keys=_plain(made.keys), values=_plain(made.values, False))

    def windows(self, plan: Plan, random: bool, entries: Sequence[Entry]) -> Iterator[Any]:
        """Values of entries: of one window, or with the tails of the divergence over all."""
        scores = functools.cache(lambda i: self.read(self.quantized(plan, i * random), i))
        for entry in entries:
            found = self.scored(entry, scores, range(len(self.texts)))
            i = entry.config.get("window")
            if i is not None:
                found |= self.attention(i, self.quantized(plan, i * random))
            yield found

    def attention(self, i: int, made: Quantized) -> dict[str, float]:
        """Errors of the attention of a window with codes.

        The tensors are those of the exact model, and every token is read from its codes, sinks and
        recent ones too, except in a last page that is not full.
        """
        config, found = self.model.config, {}
        frequency = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        each = _attention(self._tensors(i), made.keys, made.values, frequency)
        for name, values in each.items():
            values = np.asarray(values)
            if name == "logit_error":
                found[name] = float(np.sqrt(np.mean(values**2)))
                found["logit_error_worst_layer"] = float(values.max())
            else:
                found[name] = float(values.mean())
        return found

    def _captured(self, i: int) -> Any:
        """Queries, keys and values of a window, in the memory of the host."""
        given = self.model.params, self.model.config, self.texts[i]
        return jax.device_get(_capture(*given))

    def needles(self, length: int, prompts: int) -> list[Needles]:
        """Prompts of a length, one by one."""
        every = needle_prompts(jax.random.key(length), self.model.tokenizer, length, prompts)
        return [Needles(*(part[i : i + 1] for part in every)) for i in range(prompts)]

    def needle(self, needle: Needles, made: Quantized | None) -> dict[str, float]:
        """Whether the answer of one prompt is found through the cache."""
        ids, last = jnp.asarray(needle.tokens), needle.answer.shape[1]
        predicted = _predict(self.model.params, self.model.config, ids, last, *_stores(made))
        return {"needle_accuracy": needle_accuracy(np.asarray(predicted), needle)}

    @functools.cached_property
    def induction_texts(self) -> Any:
        """Random tokens, repeated once."""
        length, vocab = self.texts.shape[1] // 2 * 2, self.model.config.vocab_size
        return np.asarray(induction_tokens(jax.random.key(0), vocab, length, self.induction_count))

    @functools.cached_property
    def _induction_reference(self) -> Any:
        return reference(self.model, self.induction_texts)

    def induction(self, i: int, made: Quantized | None) -> dict[str, float]:
        """Mean nll of the second half of an induction text, nats per token.

        Scored by the same program as a window.
        """
        exact, texts = self._induction_reference, self.induction_texts[i : i + 1]
        exact = exact._replace(hidden=exact.hidden[i : i + 1])
        nll = next(exact_nll(exact, texts)) if made is None else score(made, texts, exact).nll[0]
        nll = jnp.asarray(nll)
        return {"induction_nll": float(second_half(nll).mean())}

    def size(self, plan: Plan) -> dict[str, float]:
        """Bytes of a cache of one window."""
        made = self.made(plan, 0)
        found = costs(made, self.texts.shape[1])
        return {
            "rate_bits": found.cache_bits, "bytes_per_token": found.cache_bytes,
            "compression_ratio": EXACT / found.cache_bits, "side_bytes": float(found.side_bytes),
        }  # fmt: skip


def _stores(made: Quantized | None) -> tuple[Store | None, Store | None]:
    return (None, None) if made is None else (made.keys, made.values)


@functools.partial(jax.jit, static_argnames=("config", "last"))
def _predict(
    params: Any, config: Any, ids: Array, last: int, keys: Any, values: Any
) -> Int[Array, "1 last"]:
    stored = keys is not None or values is not None
    cache = empty_cache(config, 1, ids.shape[1], keys=keys, values=values) if stored else None
    hidden = forward(params, config, ids, cache=cache).hidden
    return logits(params, hidden[:, -last - 1 : -1]).argmax(-1)


@functools.partial(jax.jit, static_argnames="config")
def _capture(params: Any, config: Any, ids: Array) -> dict[str, Float[Array, "layers 1 t h d"]]:
    kinds = ("query", "key", "value")
    sites = tuple(Site(k, i) for k in kinds for i in range(config.num_hidden_layers))
    return forward(params, config, ids[None], capture=sites).captured


@functools.partial(jax.jit, static_argnames="of_keys")
def _plain(store: Store | None, of_keys: bool = True) -> Store | None:
    """The same codes with dense matrices, no exact tokens: most methods then share a program."""
    if store is None:
        return None
    codec = store.codec
    layers, heads = jax.tree.leaves(store)[0].shape[:2]
    zeros = jnp.zeros((layers, heads, codec.transform.dim))
    transform = dense(codec.transform, layers, heads)
    offset = zeros if codec.offset is None else codec.offset
    mean = zeros if store.mean is None and of_keys else store.mean
    return dataclasses.replace(store, mean=mean, codec=Codec(transform, codec.quantizer, offset))


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
