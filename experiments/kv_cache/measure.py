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

from isojax import metrics
from isojax.data import Needles, induction_tokens, needle_accuracy, needle_prompts, second_half
from isojax.kvcache import PackedSide, Store
from isojax.models import LanguageModel, Site, empty_cache, forward, logits
from isojax.models.rope import rope_frequencies
from isojax.quantize import Plan, Quantized, Scorer, costs
from isojax.quantize.costs import EXACT
from isojax.report import Entry

from ..dense import dense_cache

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
    """Metrics and units of the attention of a window with `target` quantized."""
    return OUTPUT | (OF_KEYS if "K" in target else {}) | (OF_VALUES if "V" in target else {})


class Reader(Scorer):
    """A model, texts to read through its cache, and texts to fit on."""

    def __init__(
        self, model: LanguageModel, texts: np.ndarray, fit_on: np.ndarray, plans: Sequence[Plan],
        induction: int,
    ) -> None:  # fmt: skip
        """Store texts [n, tokens], and make `induction` texts of the induction probe."""
        super().__init__(model, texts, fit_on, plans, samples=fit_on.size)
        length, vocab = texts.shape[1] // 2 * 2, model.config.vocab_size
        if induction:
            tokens = induction_tokens(jax.random.key(0), vocab, length, induction)
            self.repeated = Scorer(model, np.asarray(tokens))
        self.made = functools.lru_cache(len(texts))(super().quantized)
        self.quantized = functools.lru_cache(len(texts))(self._dense)
        self._tensors = functools.lru_cache(8)(self._captured)

    def _dense(self, plan: Plan, seed: int = 0) -> Quantized:
        return dense_cache(self.made(plan, seed))

    def windows(self, plan: Plan, random: bool, entries: Sequence[Entry]) -> Iterator[Any]:
        """Values of entries: of one window, or with the tails of the divergence over all."""
        scores = self.scores(lambda i: self.quantized(plan, i * random))
        for entry in entries:
            found = self.scored(entry, scores)
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

    @functools.lru_cache(1)  # noqa: B019
    def needles(self, length: int, prompts: int) -> list[Needles]:
        """Prompts of a length, one by one."""
        every = needle_prompts(jax.random.key(length), self.model.tokenizer, length, prompts)
        return [Needles(*(part[i : i + 1] for part in every)) for i in range(prompts)]

    def needle(self, length: int, prompts: int, i: int, made: Quantized | None) -> dict[str, float]:
        """Whether the answer of prompt i is found through the cache."""
        needle = self.needles(length, prompts)[i]
        ids, last = jnp.asarray(needle.tokens), needle.answer.shape[1]
        stores = (None, None) if made is None else (made.keys, made.values)
        predicted = _predict(self.model.params, self.model.config, ids, last, *stores)
        return {"needle_accuracy": needle_accuracy(np.asarray(predicted), needle)}

    def induction(self, i: int, made: Quantized | None) -> dict[str, float]:
        """Mean nll of the second half of an induction text, nats per token.

        Scored by the same program as a window.
        """
        nll = self.repeated.exact[i] if made is None else self.repeated.read(made, i).nll[0]
        return {"induction_nll": float(second_half(jnp.asarray(nll)).mean())}

    def size(self, plan: Plan) -> dict[str, float]:
        """Bytes of a cache of one window."""
        made = self.made(plan, 0)
        found = costs(made, self.texts.shape[1])
        return {
            "rate_bits": found.cache_bits, "bytes_per_token": found.cache_bytes,
            "compression_ratio": EXACT / found.cache_bits, "side_bytes": float(found.side_bytes),
        }  # fmt: skip


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
