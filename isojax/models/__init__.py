"""Language models: one decoder for the Qwen2, Qwen3, Llama and Mistral families, and its loaders.

A decoder is a configuration (`ModelConfig`) and a tree of arrays; `forward` is a pure function of
that tree. Experiments reach into it by `Hooks`, functions on activations, queries, keys, values
and weights, and look into it by naming tensors: `hidden:12`, `key:3`, `weight:q_proj:0`.
`load_model` reads safetensors and GGUF, from a folder, a file or the hub.
"""

from isojax.models.checkpoint import load_checkpoint as load_checkpoint
from isojax.models.checkpoint import save_checkpoint as save_checkpoint
from isojax.models.config import ModelConfig as ModelConfig
from isojax.models.config import config_from_hf as config_from_hf
from isojax.models.config import config_to_hf as config_to_hf
from isojax.models.decoder import Decoder as Decoder
from isojax.models.decoder import Output as Output
from isojax.models.decoder import Params as Params
from isojax.models.decoder import empty_cache as empty_cache
from isojax.models.decoder import forward as forward
from isojax.models.decoder import init_params as init_params
from isojax.models.decoder import logits as logits
from isojax.models.decoder import param_shapes as param_shapes
from isojax.models.decoder import unstack as unstack
from isojax.models.generate import generate as generate
from isojax.models.hooks import WEIGHTS as WEIGHTS
from isojax.models.hooks import Hooks as Hooks
from isojax.models.hooks import Site as Site
from isojax.models.hooks import parse_site as parse_site
from isojax.models.language_model import LanguageModel as LanguageModel
from isojax.models.language_model import Sidecar as Sidecar
from isojax.models.likelihood import SUMMARY_UNITS as SUMMARY_UNITS
from isojax.models.likelihood import Reference as Reference
from isojax.models.likelihood import Scores as Scores
from isojax.models.likelihood import reference as reference
from isojax.models.likelihood import reference_nll as reference_nll
from isojax.models.likelihood import summary as summary
from isojax.models.likelihood import token_kl as token_kl
from isojax.models.likelihood import token_nll as token_nll
from isojax.models.likelihood import token_scores as token_scores
from isojax.models.load import load_model as load_model
from isojax.models.rope_scaling import LinearScaling as LinearScaling
from isojax.models.rope_scaling import RopeScaling as RopeScaling
from isojax.models.rope_scaling import YarnScaling as YarnScaling
from isojax.models.rotate import fold_norms as fold_norms
from isojax.models.rotate import rotate_residual as rotate_residual
from isojax.models.tensors import capture_tensors as capture_tensors
from isojax.models.tensors import weight as weight
from isojax.models.tokenizer import encode as encode
from isojax.models.tokenizer import load_tokenizer as load_tokenizer
