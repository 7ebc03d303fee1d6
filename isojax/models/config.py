"""The configuration of a decoder, read from Hugging Face's `config.json` or a GGUF header."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from isojax.models.fields import LARGEST, is_positive, require, short
from isojax.models.rope_scaling import AnyScaling, read_rope, rope_scaling, scaling_to_hf

ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
}
# fields that change the computation, with the values that agree with this decoder
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "is_causal": (True, None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
}
# defaults of transformers for a missing field, where families differ
_KV_HEADS = {"qwen2": 32, "qwen3": 32, "mistral": 8}
_WINDOW = 4096


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The configuration of a Qwen, Llama or Mistral decoder; names are Hugging Face's.

    `max_position_embeddings` is kept for other programs and has no effect here. Attention is over
    the whole text, so texts longer than a `sliding_window` are refused.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: AnyScaling | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tie_word_embeddings: bool = False
    max_position_embeddings: int | None = None
    sliding_window: int | None = None

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads must divide num_attention_heads="
                f"{self.num_attention_heads}, got {self.num_key_value_heads}."
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, got {self.head_dim}.")

    @property
    def head_groups(self) -> tuple[int, int]:
        """The number of key heads, and of query heads per key head."""
        groups = self.num_key_value_heads
        return groups, self.num_attention_heads // groups

    @property
    def widths(self) -> dict[str, int]:
        """Lengths of the inputs of linear layers, by the first projection that reads them."""
        return {
            "q_proj": self.hidden_size,
            "o_proj": self.num_attention_heads * self.head_dim,
            "gate_proj": self.hidden_size,
            "down_proj": self.intermediate_size,
        }


def config_from_hf(fields: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
    """Read the fields of a Hugging Face `config.json`, of transformers 4 or 5.

    Args:
        fields: the parsed JSON.
        source: name of the file, for messages.

    Raises:
        ValueError: a field is missing, malformed or not supported; the message names it and the
            file.
    """
    family = fields.get("model_type")
    if not isinstance(family, str) or family not in ARCHITECTURES:
        raise ValueError(
            f"{source}: model_type must be one of {', '.join(ARCHITECTURES)}; got {short(family)}."
        )

    def number(name: str, default: Any = None, kind: type = int) -> Any:
        value = fields.get(name)
        value = default if value is None else value
        if not is_positive(value):
            raise ValueError(f"{source}: {name} must be a positive number, got {short(value)}.")
        if kind is int and value != int(value):
            raise ValueError(f"{source}: {name} must be a whole number, got {value!r}.")
        if kind is int and value > LARGEST:
            raise ValueError(f"{source}: {name} must be at most {LARGEST}, got {value!r}.")
        return kind(value)

    def flag(name: str) -> bool:
        value = fields.get(name)
        value = False if value is None else value
        if not isinstance(value, bool):
            raise ValueError(f"{source}: {name} must be true or false, got {short(value)}.")
        return value

    _refuse_quantized(fields.get("quantization_config"), source)
    for name, allowed in _NEUTRAL.items():
        require(source, name, fields.get(name, allowed[0]), allowed)
    heads = number("num_attention_heads")
    hidden = number("hidden_size")
    layers = number("num_hidden_layers")
    rope = read_rope(fields, source)
    bias = flag("attention_bias")
    window = None
    if family == "mistral" and fields.get("sliding_window", _WINDOW) is not None:
        window = number("sliding_window", _WINDOW)
    if family in ("qwen2", "qwen3"):
        _check_windows(fields, flag("use_sliding_window"), layers, source)
    context = fields.get("max_position_embeddings")
    kv_heads = heads if "num_key_value_heads" in fields else _KV_HEADS.get(family, heads)
    try:
        return ModelConfig(
            architecture=family,
            vocab_size=number("vocab_size"),
            hidden_size=hidden,
            intermediate_size=number("intermediate_size"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=number("num_key_value_heads", kv_heads),
            head_dim=number("head_dim", 128 if family == "qwen3" else hidden // heads),
            rms_norm_eps=number("rms_norm_eps", 1e-6, float),
            rope_theta=float(rope["rope_theta"]),
            rope_scaling=rope_scaling(rope, source),
            qkv_bias=family == "qwen2" or bias and family != "mistral",
            o_bias=family in ("qwen3", "llama") and bias,
            mlp_bias=flag("mlp_bias") and family == "llama",
            qk_norm=family == "qwen3",
            tie_word_embeddings=flag("tie_word_embeddings"),
            max_position_embeddings=None if context is None else number("max_position_embeddings"),
            sliding_window=window,
        )
    except ValueError as error:
        message = str(error)
        raise ValueError(message if source in message else f"{source}: {message}") from None


def _refuse_quantized(value: Any, source: str) -> None:
    """Refuse a checkpoint with a `quantization_config`: it holds codes, not weights."""
    if value is None:
        return
    method = value.get("quant_method") if isinstance(value, Mapping) else None
    raise ValueError(
        f"{source}: quantization_config: a checkpoint quantized as {short(method)} is not read; "
        "use the one in floating point, or a GGUF file."
    )


def _check_windows(
    fields: Mapping[str, Any], use_sliding_window: bool, layers: int, source: str
) -> None:
    """Refuse a Qwen with layers that attend only to a window, which is configured in two ways."""
    types = fields.get("layer_types")
    if types is None:
        first = fields.get("max_window_layers", 28)
        if not isinstance(first, int) or isinstance(first, bool) or first < 0:
            raise ValueError(
                f"{source}: max_window_layers must be a whole number, got {short(first)}."
            )
        if use_sliding_window and fields.get("sliding_window", _WINDOW) and first < layers:
            raise ValueError(
                f"{source}: use_sliding_window=True with max_window_layers={first} is not "
                f"supported, only {layers} or more: all {layers} layers must see the whole text."
            )
        return
    if not isinstance(types, list) or len(types) != layers:
        raise ValueError(
            f"{source}: layer_types must be a list of {layers} strings, got {short(types)}."
        )
    for kind in types:
        require(source, "layer_types", kind, ("full_attention",))


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` from which transformers builds the same model.

    Raises:
        ValueError: the family has no fields for this combination of biases.
    """
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    for name in ("architecture", "rope_scaling", "qkv_bias", "o_bias", "mlp_bias", "qk_norm"):
        del fields[name]
    if config.architecture != "mistral":
        del fields["sliding_window"]
    if config.max_position_embeddings is None:
        del fields["max_position_embeddings"]
    fields |= {
        "architectures": [ARCHITECTURES[config.architecture]],
        "model_type": config.architecture,
        "hidden_act": "silu",
    }
    if config.architecture in ("qwen3", "llama"):
        fields["attention_bias"] = config.qkv_bias
    if config.architecture == "llama":
        fields["mlp_bias"] = config.mlp_bias
    if config.rope_scaling is not None:
        fields["rope_scaling"] = scaling_to_hf(config.rope_scaling)
    if config_from_hf(fields) != config:
        raise ValueError(f"{config.architecture} has no config.json for {config}.")
    return fields
