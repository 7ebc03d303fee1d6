"""The parameter tree from the tensors of a file, without a second copy of the model."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from isojax._core.checks import check_choice
from isojax.models.config import ModelConfig
from isojax.models.decoder import Params
from isojax.models.entry import FLOATS, Entry
from isojax.models.extras import leave_out, refuse_quantized
from isojax.models.names import leaves, unflatten

DTYPES = ("float32", "bfloat16")
_ALIGNMENT = 64  # bytes; JAX on CPU adopts host memory with this alignment, and copies any other


def assemble(
    config: ModelConfig, entries: Mapping[str, Entry], column: int, dtype: str, source: str
) -> Params:
    """Build the tree of `param_shapes(config)` from the tensors of a file.

    All names and shapes are checked before anything is read. Then one stacked host array per leaf
    is filled tensor by tensor and passed to JAX, so that memory beyond the parameters is at most
    one leaf (where JAX copies) and one tensor.

    Args:
        config: of the model.
        entries: tensors by name.
        column: `names.HF` or `names.GGUF`.
        dtype: of the parameters, `float32` or `bfloat16`.
        source: origin of the tensors, for messages about missing ones.

    Raises:
        ValueError: a tensor is missing, has another shape, holds integers or is unexpected; the
            message names it and the file.
    """
    check_choice("dtype", dtype, DTYPES)
    refuse_quantized(entries)
    wanted = leaves(config)
    used = set()
    for leaf in wanted:
        for layer in range(leaf.tensors):
            name = leaf.file_name(layer, column)
            entry = entries.get(name)
            if entry is None:
                raise ValueError(f"{source}: tensor {name} is missing.")
            if entry.shape != leaf.file_shape:
                raise ValueError(
                    f"{entry.file}: tensor {name} must have shape {leaf.file_shape}, "
                    f"got {entry.shape}."
                )
            if entry.dtype not in FLOATS:
                raise ValueError(
                    f"{entry.file}: tensor {name} must be of dtype {', '.join(FLOATS)}; "
                    f"got {entry.dtype}."
                )
            used.add(name)
    leave_out(config, entries, used, source)

    params = {}
    for leaf in wanted:
        array = _aligned(leaf.shape, jnp.dtype(dtype))
        for layer in range(leaf.tensors):
            tensor = entries[leaf.file_name(layer, column)].read()
            place = array[layer] if leaf.stacked else array
            place[...] = tensor.T if leaf.transposed else tensor
        params[leaf.path] = jax.device_put(array)
    return unflatten(params)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)
