"""GGUF, the format of llama.cpp: configuration, weights and tokenizer in one file or its parts."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Kind
from tokenizers import Tokenizer

from isojax.models.assemble import assemble
from isojax.models.config import ModelConfig
from isojax.models.entry import Entry
from isojax.models.gguf_config import config_from_gguf
from isojax.models.gguf_file import GgufFile
from isojax.models.gguf_tokenizer import build_tokenizer
from isojax.models.language_model import LanguageModel, Sidecar
from isojax.models.names import GGUF

_INTEGERS = (Kind.I8, Kind.I16, Kind.I32, Kind.I64)
_ROLES = ("bos", "eos", "padding", "unknown")
_ENDS = ("eos", "eot", "eom")


def load_gguf(path: str | Path, dtype: str = "float32") -> LanguageModel:
    """Read a .gguf file; quantized weights are dequantized.

    Args:
        path: of the file, or of one part of a split one, with the others in the same folder.
        dtype: of the parameters, `float32` or `bfloat16`.

    Raises:
        FileNotFoundError: there is no such file, or a part of it is missing.
        ValueError: the file is damaged, or holds a model, a tensor type or a tokenizer that is
            not supported; the message names the file and the field or tensor.
    """
    file = GgufFile(path)
    config = config_from_gguf(file)
    tokenizer = build_tokenizer(file.get, file.source)
    entries = {name: _entry(file, name, config) for name in file.tensors}
    params = assemble(config, entries, GGUF, dtype, file.source)
    return LanguageModel(Path(path).name, config, params, tokenizer, _sidecar(file, tokenizer))


def _entry(file: GgufFile, name: str, config: ModelConfig) -> Entry:
    tensor, source = file.tensors[name]
    read: Callable[[], np.ndarray] = functools.partial(file.read, name)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    module = name.split(".")[-2] if "." in name else ""
    turned = config.architecture in ("llama", "mistral") and module in heads
    kind = tensor.tensor_type
    return Entry(
        source,
        file.shape(name),
        (lambda: _halves(read(), heads[module])) if turned else read,
        kind.name if kind in _INTEGERS else "F32",
    )


def _halves(x: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of rotary channels (adjacent pairs) for the llama family."""
    pairs = x.reshape(heads, -1, 2, *x.shape[1:])
    return pairs.swapaxes(1, 2).reshape(x.shape)


def _sidecar(file: GgufFile, tokenizer: Tokenizer) -> Sidecar:
    """Special tokens and chat template, in the form of Hugging Face's small files.

    The ends of a turn and of a message may end a text too, so `eos_token_id` lists them.
    """

    def known(role: str) -> tuple[int, str] | None:
        number = file.get(f"tokenizer.ggml.{role}_token_id")
        if not isinstance(number, int) or not 0 <= number < 2**32:
            return None
        token = tokenizer.id_to_token(number)
        return None if token is None else (number, token)

    fields: dict[str, int | list[int]] = {}
    tokens: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for role in _ROLES:
        name = {"padding": "pad", "unknown": "unk"}.get(role, role)
        found = known(role)
        if found is not None:
            fields[f"{name}_token_id"], tokens[f"{name}_token"] = found
    fields.pop("unk_token_id", None)  # no field of config.json
    ends = list(dict.fromkeys(end[0] for end in map(known, _ENDS) if end is not None))
    if ends:
        fields["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    files = {
        "generation_config.json": _json(fields),
        "tokenizer_config.json": _json(tokens),
    }
    template = file.text("tokenizer.chat_template")
    if template is not None:
        files["chat_template.jinja"] = template.encode()
    return Sidecar(fields, files)


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
