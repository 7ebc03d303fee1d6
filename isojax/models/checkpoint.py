"""Checkpoints in Hugging Face's form: a folder of `config.json` and safetensors."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from isojax._core.checks import check_choice
from isojax.models.assemble import DTYPES, assemble
from isojax.models.config import ModelConfig, config_from_hf, config_to_hf
from isojax.models.decoder import Params
from isojax.models.entry import FLOATS, Entry
from isojax.models.fields import printed, short
from isojax.models.json_file import read_json
from isojax.models.language_model import LanguageModel
from isojax.models.names import EMBEDDING, HEAD, HF, leaves

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def load_checkpoint(folder: str | Path, dtype: str = "float32") -> tuple[ModelConfig, Params]:
    """Read the configuration and the parameters of a checkpoint.

    Args:
        folder: holds `config.json` and `model.safetensors`, or the shards that
            `model.safetensors.index.json` names.
        dtype: of the parameters, `float32` or `bfloat16`, whatever the files hold.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or does not hold such a model; names file and field.
    """
    folder = Path(folder)
    path = folder / "config.json"
    config = config_from_hf(read_json(path), str(path))
    optional = (HEAD,) if config.tie_word_embeddings else ()
    entries = _with_prefix(_entries(folder, optional))
    config, entries = _resolve_tie(config, entries)
    return config, assemble(config, entries, HF, dtype, str(folder))


def save_checkpoint(
    folder: str | Path,
    config: ModelConfig,
    params: Params,
    dtype: str = "float32",
    like: LanguageModel | None = None,
) -> None:
    """Write a checkpoint that `load_checkpoint` and transformers read; makes the folder.

    Args:
        folder: receives `config.json` and `model.safetensors`; with `like` also `tokenizer.json`
            and the small files that came with that model.
        config: of the model.
        params: the tree of `init_params`.
        dtype: of the tensors in the file, `float32` or `bfloat16`.
        like: the original model; its tokenizer, special tokens, generation settings and chat
            template are written too.

    Raises:
        ValueError: `dtype` is not allowed, or the family has no `config.json` for this model.
    """
    check_choice("dtype", dtype, DTYPES)
    config_to_hf(config)  # before anything is written
    tensors = {}
    for leaf in leaves(config):
        value: Any = params
        for key in leaf.path:
            value = value[key]
        array = np.asarray(value).astype(jnp.dtype(dtype))
        for layer in range(leaf.tensors):
            tensor = array[layer] if leaf.stacked else array
            tensor = tensor.T if leaf.transposed else tensor
            tensors[leaf.file_name(layer, HF)] = tensor
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / WEIGHTS_FILE, tensors)
    save_description(folder, config, dtype, like)


def save_description(
    folder: Path, config: ModelConfig, dtype: str, like: LanguageModel | None = None
) -> list[str]:
    """Write a checkpoint without its tensors, `config.json` last; see `save_checkpoint`.

    Returns:
        The names of the files.
    """
    fields = config_to_hf(config) | {"dtype": dtype, "torch_dtype": dtype}
    files: dict[str, bytes] = {}
    if like is not None:
        fields |= like.sidecar.fields
        files |= like.sidecar.files
        files["tokenizer.json"] = like.tokenizer.to_str(pretty=True).encode()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    partial = folder / "config.json.partial"
    partial.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / "config.json")
    return [*files, "config.json"]


def save_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write arrays to a safetensors file."""
    path.write_bytes(b"")  # safetensors creates files only for the owner
    mode = path.stat().st_mode
    save_file(
        {name: np.asarray(a, order="C") for name, a in tensors.items()}, path, {"format": "pt"}
    )
    path.chmod(mode)


def _with_prefix(entries: dict[str, Entry]) -> dict[str, Entry]:
    """The names of a causal model, also for a file of the base model, without `model.`."""
    bare = EMBEDDING.removeprefix("model.")
    if EMBEDDING in entries or bare not in entries:
        return entries
    return {n if n.startswith("lm_head.") else f"model.{n}": entry for n, entry in entries.items()}


def _resolve_tie(
    config: ModelConfig, entries: dict[str, Entry]
) -> tuple[ModelConfig, dict[str, Entry]]:
    """The actual `tie_word_embeddings` of a tied model whose file holds a head.

    As in transformers: a copy of the embedding is dropped, a different head is used, and a head
    without an embedding is used for both.
    """
    head, embedding = entries.get(HEAD), entries.get(EMBEDDING)
    if not config.tie_word_embeddings or head is None:
        return config, entries
    rest = {name: entry for name, entry in entries.items() if name != HEAD}
    if embedding is None:
        return config, rest | {EMBEDDING: head}
    floats = head.dtype in FLOATS and embedding.dtype in FLOATS
    if floats and head.shape == embedding.shape and _same(head.read(), embedding.read()):
        return config, rest
    return dataclasses.replace(config, tie_word_embeddings=False), entries


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype == b.dtype:
        return np.array_equal(a.view(np.uint8), b.view(np.uint8))
    return np.array_equal(a.astype(np.float64), b.astype(np.float64))


def _entries(folder: Path, optional: tuple[str, ...]) -> dict[str, Entry]:
    """The tensors of all files of a checkpoint; the `optional` ones may be missing."""
    if (folder / WEIGHTS_FILE).is_file():
        return file_entries(folder / WEIGHTS_FILE)
    index = folder / INDEX_FILE
    if not index.is_file():
        if (folder / "quantized.json").is_file():
            raise FileNotFoundError(
                f"{folder}: holds a quantized model: use isojax.quantize.load_quantized."
            )
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in PICKLES)
        found = f"; {refuse_pickle(pickles[0])}" if pickles else "."
        raise FileNotFoundError(f"{folder}: holds no {WEIGHTS_FILE} and no {INDEX_FILE}{found}")
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index}: weight_map must be an object that names the shard of tensors.")
    entries: dict[str, Entry] = {}
    shards: dict[str, dict[str, Entry]] = {}
    for shard in sorted(set(map(str, places.values()))):
        shards[shard] = file_entries(_shard(folder, index, shard))
        entries |= shards[shard]
    for name, shard in places.items():
        if name in shards[str(shard)]:
            entries[name] = shards[str(shard)][name]  # another shard may hold a tensor of this name
        elif name in optional:
            entries.pop(name, None)
        else:
            raise ValueError(
                f"{folder / shard}: tensor {printed(name)} is missing, which the index names."
            )
    return entries


def _shard(folder: Path, index: Path, name: str) -> Path:
    """The file of a shard, which must lie in the folder."""
    if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
        raise ValueError(
            f"{index}: weight_map must name .safetensors files of this folder, got {short(name)}."
        )
    try:
        found = (folder / name).is_file()
    except OSError as error:  # an invalid file name
        raise ValueError(
            f"{index}: weight_map must name files, got {short(name)} ({error.strerror})."
        ) from None
    if not found:
        raise FileNotFoundError(f"{index}: weight_map names {printed(name)}, which does not exist.")
    return folder / name


def file_entries(path: Path) -> dict[str, Entry]:
    """The tensors of one file, mapped again for each tensor so that read pages are released."""

    def read(name: str) -> np.ndarray:
        with safe_open(path, framework="numpy") as file:
            return file.get_tensor(name)

    entries = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_slice(name)
                shape, dtype = tuple(tensor.get_shape()), tensor.get_dtype()
                entries[name] = Entry(str(path), shape, functools.partial(read, name), dtype)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error}).") from None
    return entries


def refuse_pickle(name: str) -> str:
    """The message that refuses a pickle."""
    return f"{name} is a pickle, which can run code: convert it to safetensors first."
