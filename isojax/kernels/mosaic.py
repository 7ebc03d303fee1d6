"""Experimental: a round trip and a Hadamard transform for Mosaic, as Triton's end is announced.

They lower for CUDA and have never run on a GPU: no speed and no number of them is known. Here
vectors are columns, [d, batch], so that a thread holds a few vectors whole: norms and rotations
then need neither exchange between threads nor slices across lanes, which Mosaic lacks. Nothing in
`isojax.kernels` calls this module. It is not differentiable, and `batch` is a multiple of `WIDTH`.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from isojax._core.checks import check_divides
from isojax.codec import Codec
from isojax.kernels._mosaic import over_columns, rows_in_shared_memory, zeros
from isojax.kernels.levels import divided, pick, read_levels, search
from isojax.kernels.roundtrip import book_of, unsupported
from isojax.transforms import Hadamard, Quaternion
from isojax.transforms.quaternion import sandwich

WIDTH = 256  # vectors a tile: two for each thread of a warpgroup
MOST_ROWS = 128  # of a Hadamard transform, kept in shared memory in fp32


def roundtrip_columns(codec: Codec, x: Float[Array, "d batch"]) -> Float[Array, "d batch"]:
    """`codec.roundtrip(x.T).T` for a `Quaternion` and a `Codebook` with one scale a vector.

    Computed in fp32. `x` is read twice: once for the norm.

    Raises:
        ValueError: `codec` is none of these, or `x` has not its shape.
    """
    t, book = codec.transform, book_of(codec)
    why = unsupported(codec, x)
    if why or not isinstance(t, Quaternion):
        raise ValueError(f"roundtrip_columns supports {why or 'a Quaternion as transform'}")
    size = _checked(x, t.dim)
    right = t.right
    if right is None:
        right = jnp.zeros_like(t.left).at[..., 0].set(1)

    def body(columns: Any, refs: Any, out_ref: Any) -> None:
        x_ref, matrix_ref, levels_ref = refs
        levels = read_levels(levels_ref)

        def read(i: Any) -> Array:
            return x_ref[i, columns].astype(jnp.float32)

        scale = None
        if book.normalize != "none":
            square = lax.fori_loop(0, size, lambda i, s: s + read(i) * read(i), zeros(WIDTH))
            square = square / size if book.normalize == "rms" else square
            scale = square * lax.rsqrt(jnp.where(square == 0, 1, square))  # Mosaic has no sqrt

        def block(b: Any, _: Any) -> None:
            m = [[matrix_ref[j, i, b] for i in range(4)] for j in range(4)]
            v = [read(4 * b + j) for j in range(4)]
            y: list[Any] = [sum(v[j] * m[j][i] for j in range(4)) for i in range(4)]
            q = [pick(search(divided(c, scale), levels), levels) for c in y]
            for j in range(4):
                out: Any = sum(q[i] * m[j][i] for i in range(4))
                out = out if scale is None else out * scale
                out_ref[4 * b + j, columns] = out.astype(out_ref.dtype)

        lax.fori_loop(0, size // 4, block, None)

    return over_columns(body, [x, sandwich(t.left, right), book.levels], x, WIDTH)


def hadamard_columns(t: Hadamard, x: Float[Array, "d batch"]) -> Float[Array, "d batch"]:
    """`t.apply(x.T).T` for a Sylvester matrix of at most `MOST_ROWS` numbers and its signs.

    Computed in fp32, in shared memory: each thread reads and writes its own columns of it alone.

    Raises:
        ValueError: `t` is none of these, or `x` has not its shape.
    """
    size = _checked(x, t.dim)
    if t.block != t.dim or t.dim & (t.dim - 1) or t.dim > MOST_ROWS:
        raise ValueError(
            f"hadamard_columns supports one block of 2^k up to {MOST_ROWS}, got {t.block}."
        )

    def body(columns: Any, refs: Any, out_ref: Any, tile: Any) -> None:
        x_ref, signs_ref = refs

        def fetch(i: Any, _: Any) -> None:
            v = x_ref[i, columns].astype(jnp.float32)
            tile[i, :] = v if t.transposed else v * signs_ref[i]

        def write(i: Any, _: Any) -> None:
            v = tile[i, :] * (1 / math.sqrt(size))
            v = v * signs_ref[i] if t.transposed else v
            out_ref[i, columns] = v.astype(out_ref.dtype)

        lax.fori_loop(0, size, fetch, None)
        for bit in range(size.bit_length() - 1):
            stride = 1 << bit

            def butterfly(k: Any, _: Any, stride: int = stride) -> None:
                i = k // stride * (2 * stride) + k % stride
                a, b = tile[i, :], tile[i + stride, :]
                tile[i, :], tile[i + stride, :] = a + b, a - b

            lax.fori_loop(0, size // 2, butterfly, None)
        lax.fori_loop(0, size, write, None)

    scratch = rows_in_shared_memory(size, WIDTH)
    return over_columns(body, [x, t.signs.astype(jnp.float32)], x, WIDTH, scratch)


def _checked(x: jax.Array, dim: int) -> int:
    """`dim`, if `x` is columns for a transform of that length."""
    if x.ndim != 2 or x.shape[0] != dim:
        raise ValueError(f"x must have shape [{dim}, batch], got {x.shape}.")
    check_divides("WIDTH", WIDTH, "batch", x.shape[1])
    return dim
