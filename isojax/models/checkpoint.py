"""Checkpoints in Hugging Face's form: a folder of `config.json` and safetensors."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from isojax._core.checks import check_choice
from isojax.models.assemble import DTYPES, Entry, assemble
from isojax.models.config import ModelConfig, config_from_hf, config_to_hf
from isojax.models.decoder import Params
from isojax.models.names import HF, leaves

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_FLOATS = ("F64", "F32", "F16", "BF16")


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
    return config, assemble(config, _entries(folder), HF, dtype, str(folder))


def save_checkpoint(
    folder: str | Path, config: ModelConfig, params: Params, dtype: str = "float32"
) -> None:
    """Write a checkpoint that `load_checkpoint` and transformers read; makes the folder.

    Args:
        folder: receives `config.json` and `model.safetensors`.
        config: of the model.
        params: the tree of `init_params`.
        dtype: of the tensors in the file, `float32` or `bfloat16`.

    Raises:
        ValueError: `dtype` is another, or the family has no `config.json` for this model.
    """
    check_choice("dtype", dtype, DTYPES)
    fields = config_to_hf(config) | {"dtype": dtype, "torch_dtype": dtype}
    tensors = {}
    for leaf in leaves(config):
        value: Any = params
        for key in leaf.path:
            value = value[key]
        array = np.asarray(value).astype(jnp.dtype(dtype))
        for layer in range(leaf.tensors):
            tensor = array[layer] if leaf.stacked else array
            tensor = tensor.T if leaf.transposed else tensor
            tensors[leaf.file_name(layer, HF)] = np.ascontiguousarray(tensor)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no JSON object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}).") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must hold a JSON object, got {type(value).__name__}.")
    return value


def _entries(folder: Path) -> dict[str, Entry]:
    """The tensors of all files of a checkpoint."""
    if (folder / WEIGHTS_FILE).is_file():
        return _file_entries(folder / WEIGHTS_FILE)
    index = folder / INDEX_FILE
    if not index.is_file():
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
        found = f"; {refuse_pickle(pickles[0])}" if pickles else "."
        raise FileNotFoundError(f"{folder}: holds no {WEIGHTS_FILE} and no {INDEX_FILE}{found}")
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index}: weight_map must be an object that names the shard of tensors.")
    entries: dict[str, Entry] = {}
    for shard in sorted(set(map(str, places.values()))):
        if Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise ValueError(
                f"{index}: weight_map must name .safetensors files of this folder, got {shard!r}."
            )
        if not (folder / shard).is_file():
            raise FileNotFoundError(f"{index}: weight_map names {shard}, which does not exist.")
        entries |= _file_entries(folder / shard)
    for name, shard in places.items():
        if name not in entries:
            raise ValueError(f"{folder / shard}: tensor {name} is missing, which the index names.")
    return entries


def _file_entries(path: Path) -> dict[str, Entry]:
    """The tensors of one file, which is mapped anew for each so that read pages are given back."""

    def read(name: str) -> np.ndarray:
        with safe_open(path, framework="numpy") as file:
            return file.get_tensor(name)

    entries = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_slice(name)
                shape, dtype = tuple(tensor.get_shape()), tensor.get_dtype()
                if dtype not in _FLOATS:
                    raise ValueError(
                        f"{path}: tensor {name} must be of dtype {', '.join(_FLOATS)}; got {dtype}."
                    )
                entries[name] = Entry(str(path), shape, functools.partial(read, name))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error}).") from None
    return entries


def refuse_pickle(name: str) -> str:
    """The sentence that says why a pickle is not read."""
    return f"{name} is a pickle, which can run code: convert it to safetensors first."
