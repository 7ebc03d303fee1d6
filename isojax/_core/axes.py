"""Which numbers of an array share one statistic."""

from __future__ import annotations

from isojax._core.checks import check_choice

SHARED = ("tensor", "token", "channel")


def shared_axes(ndim: int, per: str) -> tuple[int, ...]:
    """The axes to reduce so that one number is left per tensor, per token or per channel.

    A token is one vector along the last axis, a channel one coordinate of the last axis.

    Raises:
        ValueError: `per` is not "tensor", "token" or "channel".
    """
    check_choice("per", per, SHARED)
    axes = {"tensor": range(ndim), "token": range(max(ndim - 1, 0), ndim)}
    return tuple(axes.get(per, range(ndim - 1)))
