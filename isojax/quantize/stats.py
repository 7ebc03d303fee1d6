"""Statistics that a plan is fitted on, layer by layer, in memory or on disk."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from isojax._core.pytree import pytree
from isojax.models.hooks import INPUTS
from isojax.quantize.parts import NORMS, Cached, Input, Part, Turn, Weight

WHOLE = "whole"
VECTORS = frozenset({"x", "moment", "mean"})
"""Attributes of `Samples` that are computed from vectors."""


@dataclasses.dataclass(frozen=True)
class Files(Mapping[str, Any]):
    """Arrays in files by name, mapped again at every access and never kept."""

    paths: Mapping[str, Path]

    def __getitem__(self, name: str) -> np.ndarray:
        return np.load(self.paths[name], mmap_mode="r")

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)


jax.tree_util.register_pytree_node(
    Files,
    lambda files: (tuple(files[name] for name in sorted(files)), tuple(sorted(files))),
    lambda names, leaves: dict(zip(names, leaves, strict=True)),  # pyright: ignore[reportArgumentType]
)


@pytree
class Stats:
    """Statistics of calibration texts; made by `calibrate`.

    Attributes:
        layers: for each layer by name: `samples:input:SITE` [windows, t, d], `samples:key` and
            `samples:value` [windows, t, kv_heads, head_dim]; `moment:input:SITE` [d, d], the mean
            of x^T x, and `moment:query` [kv_heads, head_dim, head_dim]; `mean:input:SITE` [d].
            Inputs of q and gate are taken before the scale of the norm. NumPy or JAX arrays; arrays
            in a folder are read when used. A learned transform is `learned:PLACE`, learned
            scales of an input are `learned_scale:PLACE`.
        whole: the same for places shared by all layers.
    """

    layers: tuple[Mapping[str, Any], ...]
    whole: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def needed(parts: Mapping[str, Part]) -> set[str]:
    """Names of the statistics that the parts of a layer are fitted on."""
    found: set[str] = set()
    for place, part in parts.items():
        kind, _, name = place.partition(":")
        if isinstance(part, Input):
            needs = part.recipe.needs & VECTORS
            found |= {f"{'samples' if n == 'x' else n}:input:{name}" for n in needs}
        elif isinstance(part, Weight):
            site = f"input:{INPUTS[name]}"
            fitted = part.rounding.member.facts.get("fitted", ("moment",))
            if "moment" in fitted or "metric" in part.recipe.needs:
                found |= {f"moment:{site}"}
        elif isinstance(part, Turn) and place == "residual":
            if part.coordinates.needs & VECTORS:
                found |= {f"samples:input:{site}" for site in NORMS}
        else:
            side = "value" if name == "values" or kind == "values" else "key"
            needs = (part.coordinates if isinstance(part, Turn) else part.recipe.recipe).needs
            offset = isinstance(part, Cached) and part.recipe.offset != "none"
            if needs & VECTORS or offset:
                found |= {f"samples:{side}"}
            if "metric" in needs and side == "key":
                found |= {"moment:query"}
    return found


def write_layer(folder: Path, name: str, layer: Mapping[str, Any]) -> None:
    """Write the arrays of one layer, or of all."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    for kind, value in layer.items():
        value = np.asarray(value)
        # NumPy's files lack bfloat16
        value = value if value.dtype.isbuiltin == 1 else value.astype(np.float32)
        np.save(place / (kind.replace(":", "-") + ".npy"), value)


def finish(partial: Path, folder: Path, layers: int) -> None:
    """Give a completely written folder its final name, unless another process has written it."""
    (partial / "stats.json").write_text(json.dumps({"layers": layers}))
    if not folder.exists():
        partial.rename(folder)


def load_stats(folder: Path) -> Stats:
    """The statistics in a folder, read from disk when used.

    Raises:
        ValueError: it does not hold any.
    """
    try:
        about = json.loads((folder / "stats.json").read_text())
    except (OSError, ValueError):
        raise ValueError(f"{folder} must be a folder of statistics, found no stats.json.") from None

    def read(name: Any) -> Files:
        files = sorted((folder / str(name)).glob("*.npy"))
        return Files({f.stem.replace("-", ":"): f for f in files})

    return Stats(tuple(map(read, range(about["layers"]))), read(WHOLE))
