"""Random models of a few thousand parameters, in torch and in JAX, and a tokenizer for them."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from isojax.models import LanguageModel, ModelConfig, init_params, load_model, save_checkpoint

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
FAMILIES = {
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
}
TIED = {"tie_word_embeddings": True}
BIAS = {"attention_bias": True}
CASES = {
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", TIED),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3-tied-bias": ("qwen3", {"head_dim": 16} | TIED | BIAS),
    "llama": ("llama", {}),
    "llama-tied-bias": ("llama", {"mlp_bias": True} | TIED | BIAS),
    "llama3-rope": ("llama", {"head_dim": 16, "rope_parameters": LLAMA3_ROPE}),
}
TEXT = "In which the tokens of a small text are read twice: 12, 345 and 6789."


def torch_model(case: str, layers: int = 3) -> transformers.PreTrainedModel:
    """A torch model whose every parameter is random, norms and biases too."""
    family, fields = CASES[case]
    make_config, make_model = FAMILIES[family]
    torch.manual_seed(0)
    config = make_config(**{
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 16384, "tie_word_embeddings": False, **fields,
    })  # fmt: skip
    return randomised(make_model(config))


def randomised(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """`model` with noise on every parameter, norms and biases too."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


def saved(folder: Path, model: LanguageModel) -> Path:
    """`folder` with a checkpoint of `model` and the small tokenizer."""
    save_checkpoint(folder, model.config, model.params)
    tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; `...` takes one away."""
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not ...}))


def tokenizer() -> Tokenizer:
    """Bytes, four merges and an end-of-text token: 261 entries."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("\u0120", "t"), ("i", "n")]
    tokens = [*alphabet, *("".join(m) for m in merges)]
    made = Tokenizer(BPE({t: i for i, t in enumerate(tokens)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    return made


def small_config(**changes: object) -> ModelConfig:
    fields = {
        "architecture": "qwen2", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 8, "qkv_bias": True, "tie_word_embeddings": True,
    }  # fmt: skip
    return ModelConfig(**(fields | changes))  # pyright: ignore[reportArgumentType]


@functools.partial(jax.jit, static_argnums=0)
def _params(config: ModelConfig) -> Any:
    return jax.tree.map(lambda x: 10 * x, init_params(jax.random.key(0), config))


def small_model(**changes: object) -> LanguageModel:
    """A model in JAX whose attention is far from uniform."""
    config = small_config(**changes)
    return LanguageModel("small", config, _params(config), tokenizer())


def random_tokens(batch: int = 2, length: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 300, (batch, length), dtype=np.int32)


def error_of_loading(source, kind=ValueError):
    """The message of the error, which is one line."""
    with pytest.raises(kind) as caught:
        load_model(str(source))
    message = str(caught.value)
    assert "\n" not in message
    return message
