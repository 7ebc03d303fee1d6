"""Samples that coordinates and levels are fitted on."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax._core.axes import to_rank
from isojax._core.checks import check_not_empty, check_positive, compute_dtype
from isojax._core.pytree import pytree, static


@pytree
class Samples:
    """Calibration vectors of one place, and statistics of the weights or queries that read them.

    Attributes:
        x: vectors [n, d], or None where no fit needs them; leading axes are those of a batch, for
            `vmap`.
        metric: S [d, d], in which errors count as e S e^T, or None: the second moment of the
            queries that read keys; of values and inputs, W W^T over the weights that read them.
        weight: the weights that read the vectors as x @ weight, [d, o], or None.
        learned: the transform that was learned for the place, or None.
        learned_scale: scales that were learned for the place [d], or None; of the input of o_proj
            per channel of all values.
        moment: the second moment of the vectors [d, d], over more vectors than `x`, or None.
        mean: the mean of the vectors [d], over the same vectors as `moment`, or None.
        size: d, where there are no vectors; `dim` is d in any case.
        block: length of the blocks of the next stage, 0 where it has none.
        bits: bits per element of their codes, 0 where that is not known.
        heads: (key heads, query heads per key head), where the vectors are the input of o_proj:
            channels that come from one channel of a value share the scale that merges into it.
    """

    x: Float[Array, "*heads n d"] | None
    metric: Float[Array, "*heads d d"] | None = None
    weight: Float[Array, "*heads d o"] | None = None
    learned: Any = None
    moment: Float[Array, "*heads d d"] | None = None
    mean: Float[Array, "*heads d"] | None = None
    learned_scale: Float[Array, " c"] | None = None
    size: int = static(default=0)
    block: int = static(default=0)
    bits: int | float = static(default=0)
    heads: tuple[int, int] | None = static(default=None)

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return self.size or self.vectors.shape[-1]

    @property
    def vectors(self) -> Float[Array, "*heads n d"]:
        """`x`, in fp32.

        Raises:
            ValueError: `x` is None or empty.
        """
        if self.x is None:
            raise ValueError("samples must hold vectors for this fit, got none.")
        check_not_empty("samples", self.x)
        return self.x.astype(compute_dtype(self.x.dtype))

    @property
    def second_moment(self) -> Float[Array, "*heads d d"]:
        """`moment`, or that of `x`, not centred.

        Raises:
            ValueError: there is neither.
        """
        if self.moment is not None:
            return self.moment
        if self.x is None:
            raise ValueError("samples.moment must be given, or vectors to compute it from.")
        x = self.vectors
        return jnp.matmul(x.swapaxes(-1, -2), x, precision="highest") / x.shape[-2]

    def need(self, name: str, reader: str) -> Any:
        """The attribute `name`, which `reader` needs.

        Raises:
            ValueError: it is None.
        """
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"samples.{name} must be given for {reader}, got None.")
        return value

    def centred(self) -> tuple[Samples, Float[Array, " d"]]:
        """The samples without their mean, and the mean: `mean`, or that of `x`.

        A given `moment` is left as it is: rounded weights multiply an input with its mean.
        """
        mean = self.vectors.mean(0) if self.mean is None else self.mean
        x = None if self.x is None else self.vectors - to_rank(mean, self.x.ndim)
        return dataclasses.replace(self, x=x, mean=None), mean

    def through(self, transform: Any) -> Samples:
        """The samples after a transform, whose inverse is applied to the weights or queries."""
        if transform is None:
            return self
        turn, dual = transform.apply, transform.dual.apply
        metric, weight, moment = self.metric, self.weight, self.moment
        return dataclasses.replace(
            self,
            x=None if self.x is None else turn(self.vectors),
            metric=None if metric is None else conjugated(transform.dual, metric),
            weight=None if weight is None else dual(weight.T).T,
            learned=None,
            learned_scale=None,
            moment=None if moment is None else conjugated(transform, moment),
            mean=None if self.mean is None else turn(self.mean),
            size=transform.out_dim,
        )

    def by_value(self) -> Samples:
        """The samples of values, pooled over the query heads that read a key head: see `heads`."""
        if self.heads is None:
            return self
        groups, repeats = self.heads
        shape = (groups, repeats, self.dim // (groups * repeats))
        dim = groups * shape[2]
        x, metric, weight, moment = self.x, self.metric, self.weight, self.moment

        def pooled(s: Array) -> Array:
            return jnp.einsum("grdhre->gdhe", s.reshape(*shape, *shape)).reshape(dim, dim)

        if x is not None:
            x = self.vectors.reshape(-1, *shape).swapaxes(1, 2).reshape(-1, dim)
        if weight is not None:
            weight = weight.reshape(*shape, -1).swapaxes(1, 2).reshape(dim, -1)
        return dataclasses.replace(
            self,
            x=x,
            metric=None if metric is None else pooled(metric),
            weight=weight,
            learned=None,
            moment=None if moment is None else pooled(moment) / repeats,
            mean=None,
            size=dim,
            heads=None,
        )


def identity_samples(dim: int) -> Samples:
    """Samples that hold nothing but their length: enough for random transforms."""
    return Samples(None, size=check_positive("dim", dim))


def conjugated(transform: Any, moment: Float[Array, "*g d d"]) -> Float[Array, "*g e e"]:
    """M^T S M: the second moment of transformed vectors; of a metric, where the dual is given."""
    return transform.apply(transform.apply(moment).swapaxes(-1, -2))
