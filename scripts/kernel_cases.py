"""The kernels of the scripts: one kernel at one shape, and its exact result."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from isojax import Codec, quantizers, transforms
from isojax.quantizers.packing import packed_bytes

SEARCHED = ("roundtrip", "store")  # in which ties may go to another level
FAR = 64  # multiple of the energy of rounding
KERNELS = ("roundtrip", "store", "load", "scores", "apply")


@dataclasses.dataclass(frozen=True)
class Case:
    """The verb `kernel` for vectors of length `dim`.

    Attributes:
        kernel: one of `KERNELS`.
        transform: name of the transform.
        dim: length of the vectors.
        dtype: of the vectors.
        bits: per code; unused by `apply`.
    """

    kernel: str
    transform: str
    dim: int
    dtype: str
    bits: int

    def arguments(self, key: Any, vectors: int) -> tuple[Any, ...]:
        """Random arguments for `vectors` vectors; may be traced."""
        of_codec, of_x = jax.random.split(key)
        t = transforms.from_name(of_codec, self.transform, self.dim)
        book = quantizers.lloyd_max_gaussian(self.bits, self.dim, normalize="norm")
        codec = Codec(t, book)
        x = jax.random.normal(of_x, (vectors, self.dim)).astype(self.dtype)
        if self.kernel == "apply":
            return t, x
        if self.kernel in ("roundtrip", "store"):
            return codec, x
        packed = codec.store(x)
        return (codec, packed) if self.kernel == "load" else (codec, x[0], packed)

    def call(self, implementation: str | None) -> Callable[..., Any]:
        """The kernel as a function of its arguments."""
        how = implementation
        return {
            "roundtrip": lambda codec, x: codec.roundtrip(x, how),
            "store": lambda codec, x: codec.store(x, implementation=how),
            "load": lambda codec, packed: codec.load(packed, self.dtype, how),
            "scores": lambda codec, q, packed: codec.scores(q, packed, how),
            "apply": lambda t, x: t.apply(x, how),
        }[self.kernel]

    def moved(self, vectors: int) -> int:
        """Minimum of bytes read and written, without parameters."""
        vector = self.dim * jnp.dtype(self.dtype).itemsize
        codes = packed_bytes(self.dim, self.bits) + 2
        each = {"store": vector + codes, "load": vector + codes, "scores": codes + 4}
        return vectors * each.get(self.kernel, 2 * vector)

    def deviation(self, args: tuple[Any, ...], result: Any, rows: Any) -> float:
        """Energy of the difference of `result` from the result in fp64, relative to the latter.

        Args:
            args: of the call.
            result: of the call.
            rows: the vectors to check; fp64 on the host has no room for all.
        """
        args = (*args[:-1], jax.tree.map(lambda a: a[rows], args[-1]))
        args, found = jax.device_get((args, jax.tree.map(lambda a: a[rows], result)))
        with jax.default_device(jax.devices("cpu")[0]):
            if self.kernel == "store":
                found = args[0].load_rotated(found)
            found, want = np.asarray(found, np.float64), self._exact(*args)
        return float(np.sum((found - want) ** 2) / np.sum(want**2))

    def disagreement(self, args: tuple[Any, ...], one: Any, other: Any) -> float:
        """Share of vectors in which two results differ by more than rounding.

        Computed on the device, over all vectors; for scores, share of elements.
        """

        @jax.jit
        def difference(codec: Any, a: Any, b: Any) -> jax.Array:
            if self.kernel == "store":
                a, b = codec.load_rotated(a), codec.load_rotated(b)
            a, b = (v.astype(jnp.float32).reshape(len(v), -1) for v in (a, b))
            size = jnp.square(b).sum(-1) if b.shape[1] > 1 else jnp.mean(jnp.square(b))
            near = jnp.square(a - b).sum(-1) <= FAR * self._rounding * size
            return jnp.where(jnp.isfinite(a).all(), jnp.mean(~near), jnp.inf)

        return float(difference(args[0], one, other))

    def _exact(self, *args: Any) -> np.ndarray:
        codec = args[0]
        t = codec if self.kernel == "apply" else codec.transform
        matrix = np.asarray(t.matrix(), np.float64)
        if self.kernel == "apply":
            return np.asarray(args[1], np.float64) @ matrix
        levels = np.asarray(codec.quantizer.levels, np.float64)
        if self.kernel in ("roundtrip", "store"):
            y = np.asarray(args[1], np.float64) @ matrix
            scale = np.linalg.norm(y, axis=-1, keepdims=True)
            if self.kernel == "store":
                scale = scale.astype(np.float16).astype(np.float64)
            index = np.searchsorted((levels[1:] + levels[:-1]) / 2, y / scale)
            y = levels[index] * scale
            return y if self.kernel == "store" else y @ matrix.T
        codes = codec.quantizer.unpack(args[-1])
        y = levels[np.asarray(codes.values)] * np.asarray(args[-1].scale, np.float64)
        x = y @ matrix.T
        return x if self.kernel == "load" else x @ np.asarray(args[1], np.float64)

    @property
    def tolerance(self) -> float:
        """The largest `deviation` from rounding and a few codes at ties."""
        if self.kernel not in SEARCHED:
            return self._rounding
        half = self.transform == "haar" and self.dtype != "float32"
        return 1e-2 if half else 1e-3 + self._rounding

    @property
    def least_loss(self) -> float:
        """The largest allowed `disagreement`: of vectors with ties."""
        if self.kernel not in SEARCHED:
            return 0.0
        return 1.0 if self.transform == "haar" else 0.01

    @property
    def _rounding(self) -> float:
        return 16 * float(jnp.finfo(self.dtype).eps) ** 2 + 1e-10

    @property
    def named(self) -> dict[str, Any]:
        """The configuration of its rows."""
        return dataclasses.asdict(self)

    def vectors_for(self, size: int) -> int:
        """The power of two of vectors that moves at least `size` bytes."""
        return 1 << math.ceil(math.log2(size / self.moved(1)))
