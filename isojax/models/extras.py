"""Tensors of a file that the model does not use: which are ignored and which are refused."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from isojax.models.config import ModelConfig
from isojax.models.entry import FLOATS, Entry
from isojax.models.fields import printed
from isojax.models.rope import rope_frequencies

_LOG = logging.getLogger("isojax")
_SHOWN = 4  # most names in a message, which gives the number of the others

# endings of tensor names that belong to formats of quantized weights
_QUANTIZED = {
    r"\.(qweight|qzeros|g_idx)|_proj\.scales": "GPTQ or AWQ",
    r"\.weight_scale_inv": "FP8 with scales of blocks",
    r"\.(absmax|quant_map|nested_absmax|nested_quant_map|SCB|weight_format)|\.quant_state\..*":
        "bitsandbytes",
    r"\.weight_(scale(_2)?|zero_point|packed|shape|g_idx|global_scale)|\.input_(global_)?scale"
    r"|\.input_zero_point": "compressed-tensors or ModelOpt",
    r"\.W_q": "HQQ",
    r"\.(codebooks|codes)": "AQLM",
    r"_proj_(blocks|scales)": "MXFP4",
}  # fmt: skip
# heads of other tasks, scales of a quantized KV cache, tables made from the configuration
_HARMLESS = re.compile(
    r"(score|classifier|v_head|value_head)\.(.*\.)?(weight|bias)"
    r"|(.*\.)?([qkv]_scale|[kv]_proj\.(output_scale|[kv]_scale)|cos_cached|sin_cached)"
)
_FREQUENCIES = re.compile(r".*rotary_emb\.inv_freq|blk\.\d+\.attn_rot_embd(\.weight)?")
_GGUF_DIVISORS = "rope_freqs.weight"  # compared where the configuration is read


class _Kinds(NamedTuple):
    harmless: list[str]
    frequencies: list[str]


def refuse_quantized(entries: Mapping[str, Entry]) -> None:
    """Refuse files with codes and scales in place of weights.

    Raises:
        ValueError: there are such tensors; the message names one, its file and the format.
    """
    for name, entry in entries.items():
        for ending, form in _QUANTIZED.items():
            if re.fullmatch(rf".*({ending})", name):
                raise ValueError(
                    f"{entry.file}: tensor {printed(name)} belongs to a checkpoint quantized as "
                    f"{form}, which is not read; use the one in floating point, or a GGUF file."
                )


def leave_out(
    config: ModelConfig, entries: Mapping[str, Entry], used: set[str], source: str
) -> None:
    """Account for the tensors that are not `used`; one line of warning names them.

    Left out are heads of other tasks, scales of a KV cache, tables of positions, integers, and
    biases that are zero. Rotary frequencies equal to the model's are left out without a warning.

    Raises:
        ValueError: a tensor is none of these, so it would change the computation.
    """
    kinds = _Kinds([], [])
    for name, entry in entries.items():
        if name in used or name == _GGUF_DIVISORS:
            continue
        if _FREQUENCIES.fullmatch(name):
            if not _are_frequencies(config, entry):
                kinds.frequencies.append(name)
        elif _HARMLESS.fullmatch(name) or not entry.floating or _is_zero_bias(name, entry):
            kinds.harmless.append(name)
        else:
            raise ValueError(f"{entry.file}: tensor {printed(name)} has no place in this model.")
    if kinds.harmless:
        _LOG.warning("%s: left out, not used by this model: %s", source, _list(kinds.harmless))
    if kinds.frequencies:
        _LOG.warning(
            "%s: left out, other rotary frequencies than those of the configuration, which count: "
            "%s",
            source,
            _list(kinds.frequencies),
        )


def _are_frequencies(config: ModelConfig, entry: Entry) -> bool:
    """Whether a buffer holds the frequencies of the model, before or after rescaling."""
    if entry.dtype not in FLOATS:
        return False
    stored = entry.read().astype(np.float32)
    for scaling in (config.rope_scaling, None):
        want = np.asarray(rope_frequencies(config.head_dim, config.rope_theta, scaling))
        # within the precision of bf16 and of fp16, in which the slowest are subnormal
        if stored.shape == want.shape and np.allclose(stored, want, rtol=1e-2, atol=6e-8):
            return True
    return False


def _is_zero_bias(name: str, entry: Entry) -> bool:
    return name.endswith(".bias") and entry.dtype in FLOATS and not np.any(entry.read())


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(printed, sorted(names)[:_SHOWN])) + more
