"""The names of the leaves of the parameter tree in Hugging Face and GGUF files."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax

from isojax.models.config import ModelConfig
from isojax.models.decoder import Params, param_shapes

Path = tuple[str, ...]

HF, GGUF = 0, 1  # columns of the table
_LAYER = ("model.layers.{}.", "blk.{}.")
EMBEDDING, HEAD = ("model.embed_tokens.weight", "lm_head.weight")  # of Hugging Face
_MODULES = {
    "embedding": ("model.embed_tokens", "token_embd"),
    "norm": ("model.norm", "output_norm"),
    "head": ("lm_head", "output"),
    "input_norm": ("input_layernorm", "attn_norm"),
    "post_norm": ("post_attention_layernorm", "ffn_norm"),
    "q_norm": ("self_attn.q_norm", "attn_q_norm"),
    "k_norm": ("self_attn.k_norm", "attn_k_norm"),
    "q_proj": ("self_attn.q_proj", "attn_q"),
    "k_proj": ("self_attn.k_proj", "attn_k"),
    "v_proj": ("self_attn.v_proj", "attn_v"),
    "o_proj": ("self_attn.o_proj", "attn_output"),
    "gate_proj": ("mlp.gate_proj", "ffn_gate"),
    "up_proj": ("mlp.up_proj", "ffn_up"),
    "down_proj": ("mlp.down_proj", "ffn_down"),
}


class Leaf(NamedTuple):
    """One array of the parameter tree.

    Attributes:
        path: keys from the root of the tree.
        shape: with the leading axis of layers, for stacked leaves.
    """

    path: Path
    shape: tuple[int, ...]

    @property
    def stacked(self) -> bool:
        """Whether the first axis is that of layers."""
        return self.path[0] == "layers"

    @property
    def transposed(self) -> bool:
        """Whether files hold [out, in] where the tree holds [in, out]."""
        return self.path[-1] in ("kernel", "head")

    @property
    def file_shape(self) -> tuple[int, ...]:
        """Shape in a file of one tensor of this leaf."""
        shape = self.shape[1:] if self.stacked else self.shape
        return shape[::-1] if self.transposed else shape

    @property
    def tensors(self) -> int:
        """Number of tensors in a file that make up this leaf."""
        return self.shape[0] if self.stacked else 1

    def file_name(self, layer: int, column: int) -> str:
        """The name of the tensor of `layer` (0 if not stacked) in column `HF` or `GGUF`."""
        module = self.path[1] if self.stacked else self.path[0]
        prefix = _LAYER[column].format(layer) if self.stacked else ""
        suffix = ".bias" if self.path[-1] == "bias" else ".weight"
        return prefix + _MODULES[module][column] + suffix


@functools.lru_cache(maxsize=16)
def leaves(config: ModelConfig) -> tuple[Leaf, ...]:
    """Every leaf of `param_shapes(config)`; traces the decoder once per configuration."""
    found = jax.tree_util.tree_leaves_with_path(param_shapes(config))
    return tuple(Leaf(tuple(key.key for key in path), leaf.shape) for path, leaf in found)


def unflatten(values: dict[Path, jax.Array]) -> Params:
    """The tree of the leaves with these paths."""
    tree: Params = {}
    for path, value in values.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return tree
