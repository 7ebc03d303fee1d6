"""The contract of a transform, the two members that make the family closed, and wrappers."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import jax.numpy as jnp
from jax.dtypes import canonicalize_dtype
from jaxtyping import Array, Float

from isojax._core.checks import check_last_axis, check_positive, compute_dtype
from isojax._core.implementation import run
from isojax._core.pytree import pytree, static


class Transform(abc.ABC):
    """A linear isometry that acts on the last axis: `t.apply(x) == x @ t.matrix()`.

    Laws, tested for every member: `t.T.apply(t.apply(x)) == x` with `t.T` in the same family;
    `(a @ b).apply(x) == b.apply(a.apply(x))`, so `a` acts first; norms are kept (save by
    `Oblique`), and so is `q . x == t.dual.apply(q) . t.apply(x)`. A member is a frozen dataclass
    and a pytree: its numbers are leaves, what fixes a shape is metadata. So
    `jax.vmap(make)(keys)` is a batch of transforms.

    A subclass gives `dim`, `T`, `params`, `fmas` and `_apply`.
    """

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """Length of the last axis that `apply` takes."""

    @property
    def out_dim(self) -> int:
        """Length of the last axis that `apply` returns; `dim`, save for padded forms."""
        return self.dim

    @property
    @abc.abstractmethod
    def T(self) -> Transform:
        """The inverse, which is the adjoint, in the same family."""

    @property
    def dual(self) -> Transform:
        """What turns a vector that meets `x` in inner products; an isometry is its own."""
        return self

    @property
    @abc.abstractmethod
    def params(self) -> int:
        """Stored numbers that the transform is free to choose (see `isojax.transforms`)."""

    @property
    @abc.abstractmethod
    def fmas(self) -> int:
        """Fused multiply-adds to transform one vector (see `isojax.transforms`)."""

    @abc.abstractmethod
    def _apply(self, x: Array) -> Array:
        """`apply` on an array of the right length in the compute dtype."""

    def _resized(self, x: Array, size: int) -> Array:
        """The first `size` numbers that `_apply` makes of `x`, which zeros follow up to `dim`."""
        pads = [(0, 0)] * (x.ndim - 1) + [(0, self.dim - x.shape[-1])]
        return self._apply(jnp.pad(x, pads))[..., :size]

    def apply(
        self, x: Float[Array, "*batch d"], implementation: str | None = None
    ) -> Float[Array, "*batch e"]:
        """Transform the last axis of `x`: `x @ self.matrix()`.

        bf16 and fp16 are computed in fp32 and returned in the dtype of `x`.

        Args:
            x: vectors of `self.dim` numbers.
            implementation: None, or one of `isojax.IMPLEMENTATIONS`: `xla` is plain JAX, `triton` a
                kernel, which by default runs on GPUs where this transform has one.

        Raises:
            ValueError: the last axis of `x` is not `self.dim` long, its dtype not floating, or the
                implementation does not support the arguments or cannot run here.
        """
        check_last_axis("x", x, self.dim)
        dtype = compute_dtype(x.dtype)

        def plain(t: Transform, x: Array) -> Array:
            return t._apply(x.astype(dtype)).astype(canonicalize_dtype(x.dtype))

        return run("apply", implementation, plain, self, x)

    def matrix(self) -> Float[Array, "d e"]:
        """The matrix M with `apply(x) == x @ M`, in fp32."""
        return self.apply(jnp.eye(self.dim, dtype=jnp.float32))

    def __matmul__(self, other: Transform) -> Transform:
        """`a @ b` applies `a` first, as in `x @ A @ B`."""
        if not isinstance(other, Transform):
            return NotImplemented
        if self.out_dim != other.dim:
            raise ValueError(f"a @ b needs a.out_dim == b.dim, got {self.out_dim} and {other.dim}.")
        return Composed((*_factors(self), *_factors(other)))


@pytree
class Identity(Transform):
    """Leaves every vector as it is; no parameters, no work."""

    size: int = static()

    @property
    def dim(self) -> int:  # noqa: D102
        return self.size

    @property
    def T(self) -> Identity:  # noqa: D102
        return self

    @property
    def params(self) -> int:  # noqa: D102
        return 0

    @property
    def fmas(self) -> int:  # noqa: D102
        return 0

    def _apply(self, x: Array) -> Array:
        return x


def identity(dim: int) -> Identity:
    """The identity on vectors of length `dim`.

    Raises:
        ValueError: `dim` is not a whole number of at least 1.
    """
    return Identity(check_positive("dim", dim))


@pytree
class Composed(Transform):
    """Several transforms in a row, the first one acting first; made by `a @ b`."""

    factors: tuple[Transform, ...]

    @property
    def dim(self) -> int:  # noqa: D102
        return self.factors[0].dim

    @property
    def out_dim(self) -> int:  # noqa: D102
        return self.factors[-1].out_dim

    @property
    def T(self) -> Composed:  # noqa: D102
        return Composed(tuple(f.T for f in reversed(self.factors)))

    @property
    def dual(self) -> Composed:  # noqa: D102
        return Composed(tuple(f.dual for f in self.factors))

    @property
    def params(self) -> int:  # noqa: D102
        return sum(f.params for f in self.factors)

    @property
    def fmas(self) -> int:  # noqa: D102
        return sum(f.fmas for f in self.factors)

    def _apply(self, x: Array) -> Array:
        for factor in self.factors:
            x = factor.apply(x)
        return x


class Wrapped(Transform):
    """A transform that gives its numbers to another, `inner`, and costs what that does."""

    inner: Any

    @property
    def dual(self) -> Transform:  # noqa: D102
        wrapped: Any = self
        return dataclasses.replace(wrapped, inner=self.inner.dual)

    @property
    def params(self) -> int:  # noqa: D102
        return self.inner.params

    @property
    def fmas(self) -> int:  # noqa: D102
        return self.inner.fmas


def _factors(t: Transform) -> tuple[Transform, ...]:
    return t.factors if isinstance(t, Composed) else (t,)
