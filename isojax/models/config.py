"""The configuration of a decoder, read from Hugging Face's `config.json` or a GGUF header."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from math import inf
from typing import Any

ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
}
# fields that change what a model computes, with the values that say "as this decoder does"
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "use_sliding_window": (False, None),
    "is_causal": (True, None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "quantization_config": (None,),
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3's rescaling of the rotary frequencies (factor and the two bands it blends)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that shapes a Qwen2, Qwen3 or Llama decoder; names are Hugging Face's."""

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
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads must divide num_attention_heads="
                f"{self.num_attention_heads}, got {self.num_key_value_heads}."
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, got {self.head_dim}.")


def config_from_hf(fields: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
    """Read the fields of a Hugging Face `config.json`, of transformers 4 or 5.

    Args:
        fields: the parsed JSON.
        source: name of the file, for messages.

    Raises:
        ValueError: naming the file and the field that is missing, malformed or not supported.
    """
    family = fields.get("model_type")
    if family not in ARCHITECTURES:
        raise ValueError(
            f"{source}: model_type must be one of {', '.join(ARCHITECTURES)}; got {family!r}."
        )

    def number(name: str, default: Any = None, kind: type = int) -> Any:
        value = fields.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < inf:
            raise ValueError(f"{source}: {name} must be a positive number, got {value!r}.")
        if kind is int and value != int(value):
            raise ValueError(f"{source}: {name} must be a whole number, got {value!r}.")
        return kind(value)

    def flag(name: str) -> bool:
        value = fields.get(name) or False
        if not isinstance(value, bool):
            raise ValueError(f"{source}: {name} must be true or false, got {value!r}.")
        return value

    for name, allowed in _NEUTRAL.items():
        require(source, name, fields.get(name, allowed[0]), allowed)
    for kind in fields.get("layer_types") or ():
        require(source, "layer_types", kind, ("full_attention",))
    heads = number("num_attention_heads")
    hidden = number("hidden_size")
    rope = _rope(fields, source)
    bias = flag("attention_bias")
    try:
        return ModelConfig(
            architecture=family,
            vocab_size=number("vocab_size"),
            hidden_size=hidden,
            intermediate_size=number("intermediate_size"),
            num_hidden_layers=number("num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=number("num_key_value_heads", heads),
            head_dim=number("head_dim", 128 if family == "qwen3" else hidden // heads),
            rms_norm_eps=number("rms_norm_eps", 1e-6, float),
            rope_theta=float(rope["rope_theta"]),
            rope_scaling=_rope_scaling(rope, source),
            qkv_bias=family == "qwen2" or bias,
            o_bias=family != "qwen2" and bias,
            mlp_bias=flag("mlp_bias") and family == "llama",
            qk_norm=family == "qwen3",
            tie_word_embeddings=flag("tie_word_embeddings"),
        )
    except ValueError as error:
        message = str(error)
        raise ValueError(message if source in message else f"{source}: {message}") from None


def require(source: str, name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Refuse a field whose value changes the model in a way that is not there."""
    if value not in allowed:
        raise ValueError(f"{source}: {name}={value!r} is not supported, only {allowed[0]!r}.")


def _rope(fields: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The rotary settings, which transformers 5 gathers in one object and 4 keeps apart."""
    scaling, parameters = (fields.get(name) or {} for name in ("rope_scaling", "rope_parameters"))
    for rope in (scaling, parameters):
        if not isinstance(rope, Mapping):
            raise ValueError(f"{source}: rope_parameters must be an object, got {rope!r}.")
        for name, value in rope.items():
            if isinstance(value, Mapping):
                raise ValueError(f"{source}: rope_parameters of {name} alone are not supported.")
    if scaling and parameters and scaling != parameters:
        raise ValueError(f"{source}: rope_scaling and rope_parameters differ.")
    outer = {n: fields[n] for n in ("rope_theta", "partial_rotary_factor") if n in fields}
    rope = {"rope_theta": 10000.0, **outer, **scaling, **parameters}
    context = "original_max_position_embeddings"
    if context in rope:  # the outer one of these counts in some versions of transformers
        require(source, context, fields.get(context), (rope[context], None))
    require(source, "partial_rotary_factor", rope.get("partial_rotary_factor"), (1, None))
    theta = rope["rope_theta"]
    if isinstance(theta, bool) or not isinstance(theta, (int, float)) or not 0 < theta < inf:
        raise ValueError(f"{source}: rope_theta must be a positive number, got {theta!r}.")
    return rope


def _rope_scaling(rope: Mapping[str, Any], source: str) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise ValueError(f"{source}: rope_type must be default or llama3; got {kind!r}.")
    numbers: dict[str, Any] = {f.name: rope.get(f.name) for f in dataclasses.fields(RopeScaling)}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < inf:
            raise ValueError(
                f"{source}: {name} of rope scaling llama3 must be a positive number, got {value!r}."
            )
    scaling = RopeScaling(**numbers)
    if scaling.low_freq_factor >= scaling.high_freq_factor:
        raise ValueError(
            f"{source}: low_freq_factor must be below high_freq_factor="
            f"{scaling.high_freq_factor}, got {scaling.low_freq_factor}."
        )
    return scaling


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` that transformers reads back as the same model.

    Raises:
        ValueError: the biases are a combination that the family has no field for.
    """
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    for name in ("architecture", "rope_scaling", "qkv_bias", "o_bias", "mlp_bias", "qk_norm"):
        del fields[name]
    fields |= {
        "architectures": [ARCHITECTURES[config.architecture]],
        "model_type": config.architecture,
        "hidden_act": "silu",
    }
    if config.architecture != "qwen2":
        fields["attention_bias"] = config.qkv_bias
    if config.architecture == "llama":
        fields["mlp_bias"] = config.mlp_bias
    if config.rope_scaling is not None:
        fields["rope_scaling"] = {"rope_type": "llama3"} | dataclasses.asdict(config.rope_scaling)
    if config_from_hf(fields) != config:
        raise ValueError(f"{config.architecture} has no config.json for {config}.")
    return fields
