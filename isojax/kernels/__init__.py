"""Kernels of the verbs of `Codec` and `Transform` for NVIDIA GPUs, in Pallas with Triton.

| verb | in one pass over memory |
|---|---|
| `codec.roundtrip(x)` | norm, rotation, nearest levels, and back |
| `codec.store(x)` | packed codes and scales from vectors |
| `codec.load(packed)` | vectors from packed codes |
| `codec.load_rotated(packed)` | the same without the inverse rotation |
| `codec.scores(query, packed)` | inner products of queries with packed keys; no key is written |
| `transform.apply(x)` | the rotation of vectors |

There is no separate API: the verbs take `implementation=None | "xla" | "triton"` and use a kernel
by default where it supports the arguments and the program is compiled for such a GPU. Nothing here
is imported before. Kernels take any batch and work under `vmap` and derivatives; levels and
rotations are leaves, so new ones do not recompile.

There are kernels for quaternions, planar rotations and rotors, padded or not, Hadamard matrices of
2^k times 1, 12, 20, 28 and more, and dense matrices up to 128 (64 in fp32); with a `Codebook` of up
to 16 levels and one scale per vector or none; in fp32, bf16 and fp16. `rotations.register` adds one
for another transform.
"""

import functools
import importlib

from isojax._core.implementation import register

__all__ = ["OPERATIONS"]

OPERATIONS = ("roundtrip", "store", "load", "scores", "apply")

for _name in OPERATIONS:
    register(_name, functools.partial(importlib.import_module, f"isojax.kernels.{_name}"))
