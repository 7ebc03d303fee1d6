"""Costs of a quantized model: bits, bytes, and online operations."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from isojax._core.checks import check_positive
from isojax.codec import Codec
from isojax.quantize.parts import TABLES
from isojax.quantize.quantized import Quantized
from isojax.quantizers import Codes, rate_bits
from isojax.quantizers.codes import nbytes
from isojax.quantizers.lattice import Lattice

EXACT = 16.0  # bits per element that is not quantized


@dataclasses.dataclass(frozen=True)
class Costs:
    """Costs of a quantized model; made by `costs`.

    Attributes:
        weight_bits: bits per element of the projections of all layers, scales counted; 16 for exact
            ones.
        weight_bytes: of all parameters: projections, embedding and head in their codes, scales and
            exact parameters (norms and biases too) at 16 bits.
        decoder_bytes: of coordinates and codebooks of weights.
        online_bytes: of transforms and quantizers of inputs, and of turns of queries and keys.
        store_bytes: of the codecs of keys and values.
        merged_bytes: of transforms merged into weights, kept for further quantization.
        cache_bits: bits per element of keys and values, scales and exact tokens counted, in a cache
            with room for `tokens`.
        cache_bytes: bytes per token of that cache, all layers.
        online_fmas: multiply-adds per token of the transforms that run online, all layers.
        tokens: see `cache_bits`.
    """

    weight_bits: float
    weight_bytes: float
    decoder_bytes: int
    online_bytes: int
    store_bytes: int
    merged_bytes: int
    cache_bits: float
    cache_bytes: float
    online_fmas: int
    tokens: int

    @property
    def side_bytes(self) -> int:
        """Bytes that a forward pass reads besides weights and tokens."""
        return self.online_bytes + self.store_bytes

    @property
    def model_bytes(self) -> float:
        """Bytes of everything except the tokens of the cache."""
        return self.weight_bytes + self.decoder_bytes + self.side_bytes + self.merged_bytes


def costs(
    quantized: Quantized, tokens: int, asked: Mapping[str, Sequence[int | float]] | None = None
) -> Costs:
    """Costs of a quantized model; see `Costs`.

    Works on shapes too, from `jax.eval_shape` of `quantize`.

    Args:
        quantized: the model.
        tokens: number of tokens in the cache.
        asked: requested bits per element of weights in unbounded codes, by name and layer, used in
            place of their entropy where only shapes are known.

    Raises:
        ValueError: `tokens` is not a whole number of at least 1.
    """
    check_positive("tokens", tokens)
    config = quantized.config
    layers = config.num_hidden_layers
    cache = jax.eval_shape(lambda q: q.cache(1, tokens, jnp.float16), quantized)
    elements = 2 * layers * config.num_key_value_heads * config.head_dim
    bits, weight_bytes = weight_costs(quantized, asked)
    return Costs(
        weight_bits=bits,
        weight_bytes=weight_bytes,
        decoder_bytes=nbytes(quantized.codecs),
        online_bytes=nbytes((quantized.inputs, quantized.turn)),
        store_bytes=cache.side_bytes,
        merged_bytes=nbytes(quantized.shared),
        cache_bits=8 * cache.nbytes / tokens / elements,
        cache_bytes=cache.nbytes / tokens,
        online_fmas=sum(sum(online_fmas(quantized, i).values()) for i in range(layers)),
        tokens=tokens,
    )


def weight_costs(
    quantized: Quantized, asked: Mapping[str, Sequence[int | float]] | None = None
) -> tuple[float, float]:
    """`weight_bits` and `weight_bytes` of `costs`, with the same arguments."""
    params = quantized.params

    def stored(name: str, array: Any) -> float:
        codes = quantized.codes.get(name, (None,))
        rates = (asked or {}).get(name, (math.nan,) * len(codes))
        codecs = quantized.codecs.get(name, (None,) * len(codes))
        return array.size * statistics.fmean(map(code_bits, codes, rates, codecs))

    kernels = {n: each["kernel"] for n, each in params["layers"].items() if "kernel" in each}
    tables = {n: params[n] for n in TABLES if n in params}
    weights, others = ([stored(*item) for item in d.items()] for d in (kernels, tables))
    number = sum(a.size for a in kernels.values())
    rest = sum(a.size for a in jax.tree.leaves(params)) - number
    rest -= sum(a.size for a in tables.values())
    return sum(weights) / number, (sum(weights) + sum(others) + EXACT * rest) / 8


def code_bits(
    codes: Codes | None, asked: int | float = math.nan, codec: Codec | None = None
) -> float:
    """Bits per element of one array, its scales included; the entropy for unbounded codes.

    The entropy is that of one entropy code per channel, without its table; for lattices that of
    `Lattice.entropy_bits`.

    Args:
        codes: of the array, or None where it is exact.
        asked: the rate of unbounded codes with only a known shape.
        codec: the codec of the codes.
    """
    if codes is None or jnp.issubdtype(codes.values.dtype, jnp.floating):
        return EXACT
    if codes.bits is not None:
        return float(rate_bits(codes))
    if isinstance(codes.values, jax.ShapeDtypeStruct):
        return asked
    if codec is not None and isinstance(codec.quantizer, Lattice):
        return float(codec.quantizer.entropy_bits(codes, "channel"))
    return float(rate_bits(codes, "entropy", per="channel"))


def online_fmas(quantized: Quantized, layer: int) -> dict[str, int]:
    """Multiply-adds per token of the transforms that run online in a layer, by place.

    A mean is subtracted in one operation per element; added back, it is a bias of the projections.
    Queries and keys are turned per head. A cache transforms stored vectors once per token, and
    queries and the output of attention once per token, as attention in the codec's coordinates.
    """
    config = quantized.config
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    found = {}
    for place, each in quantized.inputs.items():
        if each.group[layer] >= 0:
            codec = each.stacks[each.group[layer]]
            means = 0 if codec.offset is None else codec.offset.shape[-1]
            found[place] = codec.transform.fmas + means
    turn = quantized.turn
    if turn is not None and turn.group[layer] >= 0:
        found["queries_keys"] = _both(turn.stacks[turn.group[layer]], heads, groups)
    for side in ("keys", "values"):
        store = getattr(quantized, side)
        if store is not None:
            found[f"cache:{side}"] = _both(store.codec.transform, heads, groups)
    return found


def _both(transform: Any, heads: int, groups: int) -> int:
    """Multiply-adds of a transform on key heads, and of its dual or inverse on query heads."""
    dual = jax.eval_shape(lambda t: t.dual, transform)
    return groups * transform.fmas + heads * dual.fmas
