"""Explicit hooks: functions by which an experiment changes the decoder without patching it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxtyping import Array, Float, Int

from isojax._core.checks import check_choice

# Inputs that can be captured and changed. q, k and v share one input, as do gate and up.
INPUTS = {
    "q_proj": "q_proj", "k_proj": "q_proj", "v_proj": "q_proj",
    "o_proj": "o_proj",
    "gate_proj": "gate_proj", "up_proj": "gate_proj",
    "down_proj": "down_proj",
}  # fmt: skip
WEIGHTS = tuple(INPUTS)

Layer = Int[Array, ""]


class Hooks(NamedTuple):
    """Functions that the decoder applies to tensors; None leaves a tensor unchanged.

    The layer is a traced integer, since layers run in one `scan`: index a stack with it,
    `jax.tree.map(lambda a: a[layer], stack)`. Hooks may close over traced values.

    Attributes:
        activation: `(name, layer, x) -> x`, x [batch, tokens, width]. Names: `hidden` (residual
            stream entering a layer), `input:q_proj` (also read by k and v), `input:o_proj`,
            `input:gate_proj` (also read by up), `input:down_proj`.
        query: `(layer, q) -> q` after the rotary embedding, [batch, tokens, heads, head_dim];
            with YaRN already multiplied by the square of its attention factor.
        key: `(layer, k) -> k` after the rotary embedding, [batch, tokens, kv_heads, head_dim].
        value: `(layer, v) -> v`, [batch, tokens, kv_heads, head_dim].
        weight: `(name, layer, w) -> w` for `q_proj` ... `down_proj`; w is [in, out], so that a
            projection is `x @ w`.
    """

    activation: Callable[[str, Layer, Float[Array, "b t d"]], Float[Array, "b t d"]] | None = None
    query: Callable[[Layer, Float[Array, "b t h d"]], Float[Array, "b t h d"]] | None = None
    key: Callable[[Layer, Float[Array, "b t h d"]], Float[Array, "b t h d"]] | None = None
    value: Callable[[Layer, Float[Array, "b t h d"]], Float[Array, "b t h d"]] | None = None
    weight: Callable[[str, Layer, Float[Array, "i o"]], Float[Array, "i o"]] | None = None


class Site(NamedTuple):
    """One tensor of a forward pass: its kind and its layer."""

    kind: str
    layer: int


def parse_site(tensor: str, layers: int) -> Site:
    """Read a tensor's name from the vocabulary of rows.

    Args:
        tensor: `hidden:final`, `hidden:L` (after L layers; 0 is the embedding), `key:L`,
            `value:L`, `query:L` (after the rotary embedding) or `input:NAME:L`, L counted from 0.
        layers: number of layers of the model.

    Returns:
        The site; `hidden:final` (after the final norm) is `Site("final", layers)`.

    Raises:
        ValueError: the name is not of this form, or the layer is out of range.
    """
    kind, _, rest = tensor.partition(":")
    check_choice(f"tensor {tensor!r}: its kind", kind, ("hidden", "key", "value", "query", "input"))
    if (kind, rest) == ("hidden", "final"):
        return Site("final", layers)
    if kind == "input":
        name, _, rest = rest.partition(":")
        check_choice(f"tensor {tensor!r}: its projection", name, WEIGHTS)
        kind = f"input:{INPUTS[name]}"
    last = layers if kind == "hidden" else layers - 1
    if not rest.isdigit() or int(rest) > last:
        raise ValueError(f"tensor {tensor!r}: its layer must be a number from 0 to {last}.")
    return Site(kind, int(rest))


def slots(sites: Sequence[Site]) -> dict[str, list[int]]:
    """The requested layers of each kind, in ascending order without repeats."""
    wanted: dict[str, set[int]] = {}
    for site in sites:
        wanted.setdefault(site.kind, set()).add(site.layer)
    return {kind: sorted(layers) for kind, layers in wanted.items()}
