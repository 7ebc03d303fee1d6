"""Language models: one decoder for the Qwen2, Qwen3, Llama and Mistral families, and its loaders.

A decoder is a configuration (`ModelConfig`) and a tree of arrays; `forward` is a pure function of
that tree. Experiments change its tensors by `Hooks`, functions on activations, queries, keys,
values and weights, and read tensors by name: `hidden:12`, `key:3`, `weight:q_proj:0`. `load_model`
reads safetensors and GGUF, from a folder, a file or the hub.
"""

from isojax.models.checkpoint import load_checkpoint, save_checkpoint
from isojax.models.config import ModelConfig, config_from_hf, config_to_hf
from isojax.models.decoder import (
    Decoder,
    Output,
    Params,
    empty_cache,
    forward,
    init_params,
    logits,
    param_shapes,
    unstack,
)
from isojax.models.generate import generate
from isojax.models.hooks import WEIGHTS, Hooks, Site, parse_site
from isojax.models.language_model import LanguageModel, Sidecar
from isojax.models.likelihood import (
    SUMMARY_UNITS,
    Reference,
    Scores,
    reference,
    reference_nll,
    summary,
    token_kl,
    token_nll,
    token_scores,
)
from isojax.models.load import load_model
from isojax.models.rope_scaling import LinearScaling, RopeScaling, YarnScaling
from isojax.models.rotate import fold_norms, rotate_residual
from isojax.models.tensors import capture_tensors, weight
from isojax.models.tokenizer import encode, load_tokenizer

__all__ = [
    "Decoder",
    "Hooks",
    "LanguageModel",
    "LinearScaling",
    "ModelConfig",
    "Output",
    "Params",
    "Reference",
    "RopeScaling",
    "SUMMARY_UNITS",
    "Scores",
    "Sidecar",
    "Site",
    "WEIGHTS",
    "YarnScaling",
    "capture_tensors",
    "config_from_hf",
    "config_to_hf",
    "empty_cache",
    "encode",
    "fold_norms",
    "forward",
    "generate",
    "init_params",
    "load_checkpoint",
    "load_model",
    "load_tokenizer",
    "logits",
    "param_shapes",
    "parse_site",
    "reference",
    "reference_nll",
    "rotate_residual",
    "save_checkpoint",
    "summary",
    "token_kl",
    "token_nll",
    "token_scores",
    "unstack",
    "weight",
]
