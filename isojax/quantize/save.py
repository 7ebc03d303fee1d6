"""Quantized models on disk: in codes, bit for bit, or dequantized for other programs.

A packed folder holds

- `quantized.safetensors`: packed codes of weights, scales in fp32, and everything that is not in
  codes: other parameters, transforms and quantizers of inputs, stores of the cache;
- `structure.json`: the tree of these arrays, see `isojax.quantize.tree_json`;
- `config.json`, the tokenizer and the other files of a checkpoint, and `plan.txt`;
- `quantized.json`: format, version, and a checksum of each of these files.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from isojax._core.checks import check_choice
from isojax.models import (
    LanguageModel,
    Params,
    config_from_hf,
    load_tokenizer,
    save_checkpoint,
)
from isojax.models.assemble import DTYPES
from isojax.models.checkpoint import (
    INDEX_FILE,
    WEIGHTS_FILE,
    file_entries,
    save_description,
    save_tensors,
)
from isojax.models.hooks import INPUTS
from isojax.models.json_file import read_json
from isojax.models.load import load_sidecar
from isojax.quantize.costs import weight_costs
from isojax.quantize.fitting import decoded
from isojax.quantize.merging import read_through
from isojax.quantize.parts import TABLES
from isojax.quantize.plan import Plan
from isojax.quantize.quantized import Origin, Quantized
from isojax.quantize.sealed import MANIFEST, check_sealed, seal, unseal
from isojax.quantize.stored import StoredWeight, kernel_of, store_weight
from isojax.quantize.tree_json import from_json, to_json
from isojax.transforms import Identity

TENSORS = "quantized.safetensors"
STRUCTURE = "structure.json"
PLAN = "plan.txt"
FORMS = ("packed", "dequantized")
LARGE = 1.1  # warn above this multiple of the bytes of weight codes
KINDS = {
    "data": "codes and scales of weights", "codec": "coordinates and codebooks of weights",
    "params": "parameters that are not in codes", "weights": "parameters that are not in codes",
    "inputs": "online transforms of inputs", "turn": "online turns of queries and keys",
    "keys": "stores of keys", "values": "stores of values", "shared": "merged transforms",
}  # fmt: skip
"""Kinds of arrays, by their path in the tree of a folder."""


def save(
    quantized: Quantized,
    folder: str | Path,
    *,
    form: str = "packed",
    plan: Plan | None = None,
) -> None:
    """Write a quantized model; creates the folder.

    Transforms are stored by their parameters, in fp32: random Hadamards as signs, dense ones as
    matrices. Warns if a packed folder exceeds the bytes of the weights (exact ones in their dtype)
    by more than a tenth, with the contents that take the space.

    Args:
        quantized: the model.
        folder: an earlier model of the same form is overwritten.
        form: `packed`, for `load_quantized`; or `dequantized`, a checkpoint that transformers and
            `load_model` read: decoded weights, times the inverse of the online transforms of
            inputs. It is equivalent to `quantized.weights_only()`, without quantizers of inputs
            and of the cache.
        plan: written as `plan.txt`; by default the plan of the model, if known.

    Raises:
        ValueError: `form` is not allowed, or the folder holds a model in another form; `plan` is
            missing where numbers of it were traced; a weight differs from its decoded codes, as
            when `quantize` was compiled into a larger program; or a node is neither an array nor a
            dataclass.
    """
    check_choice("form", form, FORMS)
    folder, plan = Path(folder), quantized.origin.plan if plan is None else plan
    if plan is None:
        raise ValueError("plan must be given for a model that was quantized under jit or vmap.")
    like = _like(quantized)
    dtype = str(jnp.result_type(quantized.params["embedding"]))
    if form == "dequantized":
        params = _without_online(quantized)
        dtype = dtype if dtype in DTYPES else "float32"
        _refuse_other_form(folder, MANIFEST)
        save_checkpoint(folder, quantized.config, params, dtype, like)
        (folder / PLAN).write_text(f"{plan}\n", encoding="utf-8")
        return
    structure, arrays = to_json(_packed(quantized))
    _refuse_other_form(folder, WEIGHTS_FILE, INDEX_FILE)
    folder.mkdir(parents=True, exist_ok=True)
    unseal(folder)
    files = save_description(folder, quantized.config, dtype, like)
    save_tensors(folder / TENSORS, arrays)
    _warn_of_size(folder, quantized, arrays)
    (folder / STRUCTURE).write_text(json.dumps(structure) + "\n", encoding="utf-8")
    (folder / PLAN).write_text(f"{plan}\n", encoding="utf-8")
    seal(folder, [*files, TENSORS, STRUCTURE, PLAN])


def load_quantized(folder: str | Path) -> Quantized:
    """The model packed by `save`, bit for bit on the kind of device that saved it.

    On other devices, weights in dense coordinates differ by the rounding of matrix products.
    Classes from outside must be imported before. `origin` has the plan and the tokenizer.

    Raises:
        ValueError: a file is missing, truncated, altered or of another version; the message names
            it.
    """
    folder = Path(folder)
    check_sealed(folder, ("config.json", TENSORS, STRUCTURE, PLAN))
    path = folder / "config.json"
    config = config_from_hf(read_json(path), str(path))
    entries = file_entries(folder / TENSORS)
    try:
        tree = from_json(read_json(folder / STRUCTURE), lambda name: entries[name].read())
    except ValueError as error:
        raise ValueError(f"{folder / STRUCTURE}: {error}") from None
    except KeyError as error:
        raise ValueError(f"{folder / TENSORS}: must hold {error}, got none such.") from None
    params = tree["params"] | {"layers": dict(tree["params"]["layers"])}
    codes, codecs = {}, {}
    for name, weights in tree["weights"].items():
        packed = [w if isinstance(w, StoredWeight) else None for w in weights]
        codecs[name] = tuple(None if w is None else w.codec for w in packed)
        codes[name] = tuple(None if w is None else w.codes for w in packed)
        each = [
            kernel if codec is None else _kernel(name, codec, found, tree["dtype"])
            for kernel, codec, found in zip(weights, codecs[name], codes[name], strict=True)
        ]
        if name in TABLES:
            (params[name],) = each
        else:
            params["layers"][name] |= {"kernel": jnp.stack(each)}
    parts = {name: tree[name] for name in ("inputs", "turn", "keys", "values", "shared")}
    tokenizer = load_tokenizer(folder) if (folder / "tokenizer.json").is_file() else None
    origin = Origin(Plan.load(folder / PLAN), tokenizer, load_sidecar(folder))
    return Quantized(params, codes=codes, codecs=codecs, config=config, origin=origin, **parts)


def _refuse_other_form(folder: Path, *names: str) -> None:
    """Raise `ValueError` if the folder holds an older model in another form."""
    for name in names:
        if (folder / name).exists():
            raise ValueError(
                f"folder must hold no model in another form, got {folder / name}: choose another "
                "folder, or delete that one."
            )


def _warn_of_size(folder: Path, quantized: Quantized, arrays: Mapping[str, np.ndarray]) -> None:
    """Warn of the contents that take the space, if the folder is larger than expected."""
    taken: dict[str, int] = {}
    counted = weight_costs(quantized)[1]
    for name, array in arrays.items():
        first, *rest = name.split("/")
        kind = KINDS[next((part for part in rest[2:3] if part in KINDS), first)]
        taken[kind] = taken.get(kind, 0) + array.nbytes
        if kind == KINDS["params"]:  # in the dtype of the model, not at 16 bits
            counted += array.nbytes - 2 * array.size
    total = sum(taken.values())
    if total <= LARGE * counted:
        return
    most = sorted(taken.items(), key=lambda item: -item[1])
    told = ", ".join(f"{size / 1e6:.3g} MB {kind}" for kind, size in most if size > total / 20)
    warnings.warn(
        f"{folder}: {total / 1e6:.3g} MB, {total / counted:.2f} times the bits of its weights: "
        f"{told}.",
        stacklevel=3,
    )


def _like(quantized: Quantized) -> LanguageModel | None:
    """The original model, for the files besides the tensors."""
    origin = quantized.origin
    if origin.tokenizer is None:
        return None
    return LanguageModel("", quantized.config, {}, origin.tokenizer, origin.sidecar)


def _packed(quantized: Quantized) -> dict[str, Any]:
    """The tree of a folder: `quantized`, with bytes in place of codes and weights."""
    q = quantized
    params = q.params | {"layers": dict(q.params["layers"])}
    dtype = str(jnp.result_type(q.params["embedding"]))
    weights: dict[str, tuple[Any, ...]] = {}
    for name, codes in q.codes.items():
        each = []
        for i, (codec, found) in enumerate(zip(q.codecs[name], codes, strict=True)):
            kernel = weight = kernel_of(q, name, i)
            if codec is not None and found is not None:
                weight = store_weight(codec, found)
                again = _kernel(name, codec, weight.codes, dtype)
                if not np.array_equal(_bits(again), _bits(kernel)):
                    raise ValueError(
                        f"weight {name} of layer {i} must equal its decoded codes, got other "
                        "values: quantize outside of jit."
                    )
            each.append(weight)
        weights[name] = tuple(each)
        if name in TABLES:
            del params[name]
        else:
            rest = dict(params["layers"][name])
            del rest["kernel"]
            params["layers"][name] = rest
    parts = {name: getattr(q, name) for name in ("inputs", "turn", "keys", "values", "shared")}
    return {"params": params, "weights": weights, "dtype": dtype, **parts}


def _kernel(name: str, codec: Any, codes: Any, dtype: str) -> jax.Array:
    """A weight in the form of the model."""
    rows = decoded(codec, codes)
    return (rows if name == "embedding" else rows.T).astype(dtype)


def _bits(x: Any) -> np.ndarray:
    return np.ascontiguousarray(x).view(np.uint8)


def _without_online(quantized: Quantized) -> Params:
    """Parameters for untransformed inputs: online transforms multiplied back."""
    layers = dict(quantized.params["layers"])
    for place, inputs in quantized.inputs.items():
        for name in (n for n, site in INPUTS.items() if f"input:{site}" == place):
            kernels = list(layers[name]["kernel"])
            for i, kernel in enumerate(kernels):
                codec = inputs.of(i)
                if codec is not None and not isinstance(codec.transform, Identity):
                    kernels[i] = read_through(codec.transform.inverse, kernel)
            layers[name] = layers[name] | {"kernel": jnp.stack(kernels)}
    return quantized.params | {"layers": layers}
