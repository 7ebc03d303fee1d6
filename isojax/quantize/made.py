"""A layer before and after a plan is applied."""

from __future__ import annotations

import dataclasses
from typing import Any

from isojax._core.pytree import pytree
from isojax.codec import Codec
from isojax.quantizers import Codes
from isojax.transforms import Transform


@pytree
class Past:
    """The transforms and codes of a layer before a plan is applied.

    Attributes:
        residual: the transform of the residual stream.
        values: the transforms of values, leaves lead with [kv_heads].
        through: by input, all transforms after the norm, or after the projection that writes it.
        codes: of rounded weights, by name.
        turn: of queries and keys.
    """

    residual: Transform | None
    values: Any
    through: dict[str, Transform]
    codes: dict[str, Codes]
    turn: Transform | None


@pytree
class Made:
    """A layer with a plan applied.

    Attributes:
        params: changed parameters, by name.
        inputs: by input, its codec.
        merged: by input, its transforms that merged into the projection that writes it, without
            those in a norm or in `turned`; the identity for none.
        codes: of weights, by name.
        codecs: of weights, to decode `codes`.
        turned: the merged transforms of values, per key head.
        turn: of queries and keys.
        keys: the store of keys.
        values: the store of values.
    """

    params: dict[str, Any] = dataclasses.field(default_factory=dict)
    inputs: dict[str, Codec] = dataclasses.field(default_factory=dict)
    merged: dict[str, Transform] = dataclasses.field(default_factory=dict)
    codes: dict[str, Codes] = dataclasses.field(default_factory=dict)
    codecs: dict[str, Codec] = dataclasses.field(default_factory=dict)
    turned: Any = None
    turn: Transform | None = None
    keys: Any = None
    values: Any = None
