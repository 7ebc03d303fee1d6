"""The configuration of a decoder, read from the metadata of a GGUF file."""

from __future__ import annotations

import numpy as np

from isojax.models.config import ModelConfig
from isojax.models.fields import short
from isojax.models.gguf_file import GgufFile
from isojax.models.rope import rope_frequencies
from isojax.models.rope_scaling import (
    AnyScaling,
    LinearScaling,
    RopeScaling,
    YarnScaling,
    yarn_attention_factor,
)

ARCHITECTURES = ("qwen2", "qwen3", "llama")  # llama.cpp calls Mistral a llama
# fields that change the computation, with the values that agree with this decoder
_NEUTRAL = {
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
    "rope.scaling.yarn_log_multiplier": (0,),
}
_KINDS = ("none", "linear", "yarn")


def config_from_gguf(file: GgufFile) -> ModelConfig:
    """Read the configuration.

    Raises:
        ValueError: a field is missing, malformed or not supported; the message names it and the
            file.
    """
    source = file.source
    family = file.get("general.architecture")
    if not isinstance(family, str) or family not in ARCHITECTURES:
        raise ValueError(
            f"{source}: general.architecture must be one of {', '.join(ARCHITECTURES)}; "
            f"got {short(family)}."
        )
    for key, allowed in _NEUTRAL.items():
        file.require(f"{family}.{key}", allowed)
    if "token_embd.weight" not in file.tensors:
        raise ValueError(f"{source}: tensor token_embd.weight is missing.")
    shape = file.shape("token_embd.weight")
    if len(shape) != 2 or not all(shape):
        raise ValueError(
            f"{source}: tensor token_embd.weight must have shape [tokens, width], got {shape}."
        )

    hidden = file.number(f"{family}.embedding_length")
    heads = file.number(f"{family}.attention.head_count")
    dim = file.number(f"{family}.attention.key_length", hidden // heads)
    theta = file.number(f"{family}.rope.freq_base", 10000.0, float)
    file.require(f"{family}.attention.value_length", (dim,))
    file.require(f"{family}.rope.dimension_count", (dim,))
    context = file.get(f"{family}.context_length")
    if context is not None:
        context = file.number(f"{family}.context_length")
    window = None
    if file.get(f"{family}.attention.sliding_window"):
        window = file.number(f"{family}.attention.sliding_window")
    names = ("attn_q", "attn_output", "ffn_up")
    bias = {name: f"blk.0.{name}.bias" in file.tensors for name in names}
    try:
        return ModelConfig(
            architecture="mistral" if family == "llama" and window else family,
            vocab_size=shape[0],
            hidden_size=hidden,
            intermediate_size=file.number(f"{family}.feed_forward_length"),
            num_hidden_layers=file.number(f"{family}.block_count"),
            num_attention_heads=heads,
            num_key_value_heads=file.number(f"{family}.attention.head_count_kv", heads),
            head_dim=dim,
            rms_norm_eps=file.number(f"{family}.attention.layer_norm_rms_epsilon", kind=float),
            rope_theta=theta,
            rope_scaling=_rope_scaling(file, family, dim, theta, context),
            qkv_bias=family == "qwen2" or bias["attn_q"],
            o_bias=bias["attn_output"],
            mlp_bias=bias["ffn_up"],
            qk_norm=family == "qwen3",
            tie_word_embeddings="output.weight" not in file.tensors,
            max_position_embeddings=context,
            sliding_window=window,
        )
    except ValueError as error:
        message = str(error)
        raise ValueError(message if source in message else f"{source}: {message}") from None


def _rope_scaling(
    file: GgufFile, family: str, dim: int, theta: float, context: int | None
) -> AnyScaling | None:
    """The rescaling in the fields, or that of Llama 3, which is stored as a tensor."""
    llama3 = _llama3(file, dim, theta)
    prefix = f"{family}.rope.scaling"
    # llama.cpp takes a factor without a type as linear, and the oldest files use another name
    kind = file.get(f"{prefix}.type") or "linear"
    if kind not in _KINDS:
        raise ValueError(
            f"{file.source}: {prefix}.type must be one of {', '.join(_KINDS)}; got {short(kind)}."
        )
    key = f"{prefix}.factor"
    if file.get(key) is None and file.get(f"{family}.rope.scale_linear") is not None:
        key = f"{family}.rope.scale_linear"
    factor = file.number(key, kind=float) if file.get(key) else 1.0
    if kind != "yarn":
        file.require(f"{prefix}.attn_factor", (1,))
    if kind == "none" or (kind == "linear" and factor == 1):
        return llama3
    if llama3 is not None:
        raise ValueError(
            f"{file.source}: {prefix}.type={kind!r} and the divisors of rope_freqs.weight are two "
            "rescalings, of which only one is supported."
        )
    if kind == "linear":
        return LinearScaling(factor)
    file.require(f"{prefix}.yarn_ext_factor", (1, -1))
    attention_factor = yarn_attention_factor(factor)
    for name in ("attn_factor", "yarn_attn_factor"):  # multiply the attention factor
        attention_factor *= file.number(f"{prefix}.{name}", 1.0, float)
    return YarnScaling(
        factor,
        file.number(f"{prefix}.original_context_length", context),
        attention_factor,
        file.number(f"{prefix}.yarn_beta_fast", 32.0, float),
        file.number(f"{prefix}.yarn_beta_slow", 1.0, float),
    )


def _llama3(file: GgufFile, dim: int, theta: float) -> RopeScaling | None:
    """Llama 3's scaling, from the divisors of the frequencies that GGUF stores."""
    name = "rope_freqs.weight"
    if name not in file.tensors:
        return None
    divisors = file.read(name)
    if divisors.shape != (dim // 2,):
        raise ValueError(
            f"{file.source}: tensor {name} must have shape {(dim // 2,)}, got {divisors.shape}."
        )
    if np.all(divisors == 1):
        return None
    # the bands of every Llama 3; the slowest frequency is divided by the whole factor
    scaling = RopeScaling(round(float(divisors.max()), 3), 1.0, 4.0, 8192)
    want = rope_frequencies(dim, theta) / rope_frequencies(dim, theta, scaling)
    if not np.allclose(divisors, want, rtol=1e-3):
        raise ValueError(f"{file.source}: tensor {name} is not the rescaling of Llama 3.")
    return scaling
