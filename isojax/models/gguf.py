"""GGUF, the one-file form of llama.cpp: configuration, weights and tokenizer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize
from tokenizers import Tokenizer

from isojax.models.assemble import Entry, assemble
from isojax.models.config import ARCHITECTURES, ModelConfig, RopeScaling, require
from isojax.models.decoder import Params
from isojax.models.gguf_tokenizer import build_tokenizer
from isojax.models.names import GGUF
from isojax.models.rope import rope_frequencies

# fields that change what a model computes, with the values that say "as this decoder does"
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.sliding_window": (0,),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.scale": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "embedding_scale": (1, 0),
    "residual_scale": (1, 0),
    "logit_scale": (1, 0),
    "use_parallel_residual": (False,),
    "expert_count": (0,),
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (1, 0),
    "rope.scaling.attn_factor": (1,),
    "rope.scale_linear": (1, 0),
}


def load_gguf(path: str | Path, dtype: str = "float32") -> tuple[ModelConfig, Params, Tokenizer]:
    """Read a .gguf file; quantized weights come out as the numbers they stand for.

    Args:
        path: of the file.
        dtype: of the parameters, `float32` or `bfloat16`.

    Raises:
        ValueError: the file is damaged, or holds a model, a tensor type or a tokenizer that is
            not supported; names the file and the field or tensor.
    """
    source = str(path)
    try:
        reader = _Reader(source)
    except FileNotFoundError:
        raise FileNotFoundError(f"{source}: no such file.") from None
    except (ArithmeticError, LookupError, RecursionError, ValueError, OSError) as error:
        raise ValueError(f"{source}: not a readable GGUF file ({error}).") from None
    if reader.byte_order != "I":
        raise ValueError(f"{source}: GGUF of the other byte order is not supported.")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    fields = _Fields(reader, source)
    config = _config(fields, tensors)
    tokenizer = build_tokenizer(fields.get, source)
    entries = {name: _entry(tensor, config, source) for name, tensor in tensors.items()}
    return config, assemble(config, entries, GGUF, dtype, source), tokenizer


class _Reader(GGUFReader):
    """Refuses to read behind the end of the file, where its base goes on in empty slices."""

    def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
        order = self.byte_order if override_order is None else override_order
        kind = np.dtype(dtype).newbyteorder(order)
        if offset + kind.itemsize * int(count) > self.data.nbytes:
            raise ValueError("it is cut off")
        return np.frombuffer(self.data, kind, int(count), offset)


class _Fields:
    """The metadata of a file, checked as it is read."""

    def __init__(self, reader: GGUFReader, source: str) -> None:
        self.reader, self.source = reader, source

    def get(self, key: str) -> Any:
        field = self.reader.get_field(key)
        try:
            return None if field is None else field.contents()
        except (ValueError, LookupError) as error:
            raise ValueError(f"{self.source}: {key} is not readable ({error}).") from None

    def number(self, key: str, default: Any = None, kind: type = int) -> Any:
        value = self.get(key)
        value = default if value is None else value
        allowed = (int, float) if kind is float else (int,)
        if isinstance(value, bool) or not isinstance(value, allowed) or not 0 < value < math.inf:
            raise ValueError(
                f"{self.source}: {key} must be a positive {kind.__name__}, got {value!r}."
            )
        return kind(value)

    def require(self, key: str, allowed: tuple[Any, ...]) -> None:
        require(self.source, key, self.get(key), (*allowed, None))


def _config(fields: _Fields, tensors: dict[str, ReaderTensor]) -> ModelConfig:
    source = fields.source
    family = fields.get("general.architecture")
    if family not in ARCHITECTURES:
        raise ValueError(
            f"{source}: general.architecture must be one of {', '.join(ARCHITECTURES)}; "
            f"got {family!r}."
        )

    for key, allowed in _NEUTRAL.items():
        fields.require(f"{family}.{key}", allowed)

    embedding = tensors.get("token_embd.weight")
    if embedding is None:
        raise ValueError(f"{source}: tensor token_embd.weight is missing.")
    hidden = fields.number(f"{family}.embedding_length")
    heads = fields.number(f"{family}.attention.head_count")
    dim = fields.number(f"{family}.attention.key_length", hidden // heads)
    theta = fields.number(f"{family}.rope.freq_base", 10000.0, float)
    fields.require(f"{family}.attention.value_length", (dim,))
    fields.require(f"{family}.rope.dimension_count", (dim,))
    bias = {name: f"blk.0.{name}.bias" in tensors for name in ("attn_q", "attn_output", "ffn_up")}
    try:
        return ModelConfig(
            architecture=family,
            vocab_size=int(embedding.shape[-1]),
            hidden_size=hidden,
            intermediate_size=fields.number(f"{family}.feed_forward_length"),
            num_hidden_layers=fields.number(f"{family}.block_count"),
            num_attention_heads=heads,
            num_key_value_heads=fields.number(f"{family}.attention.head_count_kv", heads),
            head_dim=dim,
            rms_norm_eps=fields.number(f"{family}.attention.layer_norm_rms_epsilon", kind=float),
            rope_theta=theta,
            rope_scaling=_rope_scaling(tensors, dim, theta, source),
            qkv_bias=family == "qwen2" or bias["attn_q"],
            o_bias=bias["attn_output"],
            mlp_bias=bias["ffn_up"],
            qk_norm=family == "qwen3",
            tie_word_embeddings="output.weight" not in tensors,
        )
    except ValueError as error:
        message = str(error)
        raise ValueError(message if source in message else f"{source}: {message}") from None


def _rope_scaling(
    tensors: dict[str, ReaderTensor], dim: int, theta: float, source: str
) -> RopeScaling | None:
    """Llama 3's scaling, from the divisors of the frequencies that GGUF stores instead."""
    if "rope_freqs.weight" not in tensors:
        return None
    divisors = _read(tensors["rope_freqs.weight"], source)
    if np.all(divisors == 1):
        return None
    # the bands of every Llama 3; the slowest frequency is divided by the whole factor
    scaling = RopeScaling(round(float(divisors.max()), 3), 1.0, 4.0, 8192)
    want = rope_frequencies(dim, theta) / rope_frequencies(dim, theta, scaling)
    if divisors.shape != want.shape or not np.allclose(divisors, want, rtol=1e-3):
        raise ValueError(f"{source}: tensor rope_freqs.weight is not the rescaling of Llama 3.")
    return scaling


def _entry(tensor: ReaderTensor, config: ModelConfig, source: str) -> Entry:
    def read() -> np.ndarray:
        return _read(tensor, source)

    shape = tuple(int(n) for n in reversed(tensor.shape))
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    module = tensor.name.split(".")[-2] if "." in tensor.name else ""
    if config.architecture == "llama" and module in heads:
        return Entry(source, shape, lambda: _halves(read(), heads[module]))
    return Entry(source, shape, read)


def _halves(x: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of rotary channels (pairs side by side) for the llama family."""
    pairs = x.reshape(heads, -1, 2, *x.shape[1:])
    return pairs.swapaxes(1, 2).reshape(x.shape)


def _read(tensor: ReaderTensor, source: str) -> np.ndarray:
    try:
        return dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
        raise ValueError(
            f"{source}: tensor {tensor.name} has type {tensor.tensor_type.name}, which is not "
            "supported."
        ) from None
