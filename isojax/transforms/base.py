"""The interface of a transform; the identity, compositions and wrappers."""

from __future__ import annotations

import abc
import functools
import operator
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from jax.dtypes import canonicalize_dtype
from jaxtyping import Array, Float

from isojax._core.checks import check_last_axis, check_positive, compute_dtype
from isojax._core.implementation import run
from isojax._core.pytree import pytree, static


class Transform(abc.ABC):
    """A linear map of the last axis that has an inverse: `t.apply(x) == x @ t.matrix()`.

    Laws, tested for every member:

    - `t.T.matrix() == t.matrix().T` and `t.inverse.apply(t.apply(x)) == x`, both of the family;
    - `t.dual.apply(q) . t.apply(x) == q . x`, and `t.dual` is `t.inverse.T`;
    - `(a @ b).apply(x) == b.apply(a.apply(x))`: `a` acts first;
    - where `t.isometry`, norms are kept, and `inverse` is `T`.

    A member is a frozen dataclass and a pytree (`isojax.pytree`): parameters are leaves, fields
    that fix a shape are metadata (`isojax.static`). So `jax.vmap(make)(keys)` is a batch of
    transforms.

    A subclass defines `dim`, `T`, `params`, `fmas` and `forward`; also `isometry` and `inverse` if
    it is no isometry, and `out_dim` if it changes the length. Sizes are read off the last axes of
    the leaves, and `T` and `inverse` act on those axes, so that they work for batches too.
    `Diagonal` is a short example.
    """

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """Length of the last axis that `apply` takes."""

    @property
    def out_dim(self) -> int:
        """Length of the last axis that `apply` returns; `dim`, except for padded forms."""
        return self.dim

    @property
    @abc.abstractmethod
    def T(self) -> Transform:
        """The transpose, which is the adjoint: `t.T.matrix() == t.matrix().T`."""

    @property
    def isometry(self) -> bool:
        """Whether norms are kept for all values of the leaves, so that the inverse is `T`."""
        return True

    @property
    def inverse(self) -> Transform:
        """The inverse: `t.inverse.apply(t.apply(x)) == x`; the left inverse of padded forms.

        Raises:
            NotImplementedError: the class is no isometry and does not define its inverse.
        """
        if self.isometry:
            return self.T
        raise NotImplementedError(f"{type(self).__name__} must define inverse: it is no isometry.")

    @property
    def dual(self) -> Transform:
        """The transform of the other factor of inner products: `inverse.T`, `self` if isometric.

        `t.dual.apply(q) . t.apply(x) == q . x`.
        """
        return self if self.isometry else self.inverse.T

    @property
    @abc.abstractmethod
    def params(self) -> int:
        """Number of free parameters stored (see `isojax.transforms`)."""

    @property
    @abc.abstractmethod
    def fmas(self) -> int:
        """Fused multiply-adds to transform one vector (see `isojax.transforms`)."""

    @abc.abstractmethod
    def forward(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch e"]:
        """The computation of `apply`; subclasses define it, and nothing else calls it.

        Args:
            x: vectors of length `self.dim`, checked, in fp32 or fp64: compute and return this
                dtype.
        """

    def _resized(self, x: Array, size: int) -> Array:
        """The first `size` elements of `forward` of `x` padded with zeros to `dim`."""
        pads = [(0, 0)] * (x.ndim - 1) + [(0, self.dim - x.shape[-1])]
        return self.forward(jnp.pad(x, pads))[..., :size]

    def apply(
        self, x: Float[Array, "*batch d"], implementation: str | None = None
    ) -> Float[Array, "*batch e"]:
        """Transform the last axis of `x`: `x @ self.matrix()`.

        bf16 and fp16 are computed in fp32, fp64 in fp64 where x64 is enabled, and returned in the
        dtype of `x`.

        Args:
            x: vectors of length `self.dim`.
            implementation: None, or one of `isojax.IMPLEMENTATIONS`: `xla` is plain JAX, `triton` a
                kernel, which by default runs on GPUs where this transform has one.

        Raises:
            ValueError: the last axis of `x` is not `self.dim` long, its dtype not floating, or the
                implementation does not support the arguments or cannot run here.
        """
        check_last_axis("x", x, self.dim)
        dtype = compute_dtype(x.dtype)

        def plain(t: Transform, x: Array) -> Array:
            return t.forward(x.astype(dtype)).astype(canonicalize_dtype(x.dtype))

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
    """Leaves every vector unchanged; no parameters, no work."""

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

    def forward(self, x: Array) -> Array:  # noqa: D102
        return x


def identity(dim: int) -> Identity:
    """The identity on vectors of length `dim`.

    Raises:
        ValueError: `dim` is not a whole number of at least 1.
    """
    return Identity(check_positive("dim", dim))


@pytree
class Composed(Transform):
    """Several transforms in sequence, the first one acting first; made by `a @ b`."""

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
    def isometry(self) -> bool:  # noqa: D102
        return all(f.isometry for f in self.factors)

    @property
    def inverse(self) -> Composed:  # noqa: D102
        return Composed(tuple(f.inverse for f in reversed(self.factors)))

    @property
    def params(self) -> int:  # noqa: D102
        return sum(f.params for f in self.factors)

    @property
    def fmas(self) -> int:  # noqa: D102
        return sum(f.fmas for f in self.factors)

    def forward(self, x: Array) -> Array:  # noqa: D102
        for factor in self.factors:
            x = factor.apply(x)
        return x


class Wrapped(Transform):
    """A transform around another, `inner`, with the same costs."""

    inner: Any

    @property
    def isometry(self) -> bool:  # noqa: D102
        return self.inner.isometry

    @property
    def params(self) -> int:  # noqa: D102
        return self.inner.params

    @property
    def fmas(self) -> int:  # noqa: D102
        return self.inner.fmas


def chained(dim: int, factors: Iterable[Transform]) -> Transform:
    """The composition of transforms of vectors of length `dim`, without identities."""
    some = [factor for factor in factors if not isinstance(factor, Identity)]
    return functools.reduce(operator.matmul, some) if some else identity(dim)


def _factors(t: Transform) -> tuple[Transform, ...]:
    return t.factors if isinstance(t, Composed) else (t,)
