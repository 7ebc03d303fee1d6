"""Kernels for GPUs, each beside the plain JAX that says what it computes.

| function | is | in one pass over memory |
|---|---|---|
| `roundtrip(codec, x)` | `codec.roundtrip(x)` | norm, rotation, levels and back |
| `pack(codec, x)` | `codec.quantizer.pack(codec.encode(x))` | codes without gaps, and scales |
| `store(codec, x)` | `codec.store(x)` | the same at scales rounded first |
| `load(codec, packed)` | `codec.load(packed)` | vectors from codes |
| `scores(codec, query, keys)` | `rotate_query(query) @ load_rotated(keys).T` | no key is written |
| `apply(transform, x)` | `transform.apply(x)` | Hadamard transforms |

All take `implementation=None | "xla" | "triton"`, see `choice.choose`: by default the kernel where
there is one for the arguments and the program runs on an NVIDIA GPU, and the plain JAX elsewhere.
Kernels take any batch, work under `vmap`, and have the gradients that their functions document,
whatever the implementation. Levels and rotations are leaves: new ones do not recompile.

There are kernels for quaternions, planar rotations and rotors, padded or not, Hadamard matrices of
2^k times 1, 12, 20, 28 and more, and dense matrices up to 128 (64 in fp32); with a `Codebook` of up
to 16 levels and one scale a vector or none; in fp32, bf16 and fp16.
"""

from isojax.kernels.choice import IMPLEMENTATIONS as IMPLEMENTATIONS
from isojax.kernels.hadamard import apply as apply
from isojax.kernels.packed import load as load
from isojax.kernels.packed import pack as pack
from isojax.kernels.packed import store as store
from isojax.kernels.roundtrip import roundtrip as roundtrip
from isojax.kernels.scores import scores as scores
