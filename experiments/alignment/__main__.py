r"""Rotate or align: under which coding, and at which rate, does each win?

    isojax alignment
    isojax alignment --model Qwen/Qwen2.5-0.5B --text wikitext-2 \
        --calibration-text wikitext-2:validation --out results/alignment

Keys and values (per head), inputs of linear layers and weights are transformed, coded at 1 to 6
bits per element and compared on held-out vectors; of a weight, every second output channel is
held out. Rotations: identity, haar, hadamard, learned_rotation (least 3 bit absmax error, from
Hadamard).

Alignment: pca, local_pca (axes of 4 clusters), low_rank (leading axes and the rest, each rotated,
at the rank with the least error at 3 bit), learned_alignment (least rate + lambda distortion, from
pca).

Codings: `fixed`, the same levels for all coordinates and one norm per vector; `allocated`, whole
bits where they reduce the error most; `entropy`, one step and one entropy code per coordinate with
the frequencies of the calibration text; `lattice`, the same with eight neighbours rounded to the
lattice E8 (`lattice_d4`, four to D4, where 8 does not divide the vector). All are compared with
Shannon's bound for Gaussian vectors of the same covariance.

`--quick` takes 100 s of a CPU with SmolLM2-135M.

Sources: Goyal 2001, KurTail (2503.01483), SpinQuant (2405.16406), Balle et al. (1611.01704).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from isojax.report import Entry, Job, fill

from ..common import Calibrated, check_named, finish, run, say
from .measure import BOUND, CODED, LOOK, Reader, known, random
from .report import figure, text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Calibrated):
    """Settings."""

    tensors: tuple[str, ...] = ("key", "value", "input:q_proj", "weight:gate_proj")
    """key, value, input:NAME or weight:NAME, of linear layers such as q_proj, gate_proj,
    down_proj."""
    layers: int = 3
    """Number of layers to measure, evenly spaced from the first to the last."""
    coordinates: tuple[str, ...] = (
        "identity", "haar", "hadamard", "learned_rotation", "low_rank", "pca", "local_pca",
        "learned_alignment",
    )  # fmt: skip
    """The above, others of `isojax.recipes` such as mass_diff@block_hadamard:32, or your own,
    such as mypackage.mymodule:name."""
    bits: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    """Bits per element."""
    seeds: int = 5
    """Seeds of random and learned coordinates."""
    windows: int = 2
    """Windows of text, one after the other from its start."""
    calibration_windows: int = 4
    """Windows to fit on."""

    def quickened(self) -> dict[str, Any]:  # noqa: D102
        fewer = {"tensors": ("key", "input:q_proj"), "layers": 2, "bits": (2, 4), "seeds": 2}
        fewer |= {"coordinates": ("identity", "haar", "pca", "learned_alignment")}
        if self.model != "tiny":  # learning axes of length 576 takes minutes
            fewer |= {"coordinates": ("identity", "haar", "pca"), "layers": 1, "seeds": 1}
            fewer |= {"windows": 1, "calibration_windows": 2, "length": 512}
        return fewer


def main(config: Config) -> None:
    """Fit, code, and write missing rows."""
    check_named("bits", config.bits, range(1, 9))
    check_named("tensors", config.tensors)
    check_named("coordinates", config.coordinates)
    config.check_positive("seeds", "layers")
    names = list(dict.fromkeys(map(known, config.coordinates)))
    study = config.study("alignment", "seeds", "tensors", "coordinates", "bits")
    model, texts, base, fit_on = config.load()
    last = model.config.num_hidden_layers - 1
    layers = sorted({round(i) for i in np.linspace(0, last, config.layers)})
    places = list(itertools.product(config.tensors, layers))
    reader = Reader(model, fit_on, texts, [f"{tensor}:{layer}" for tensor, layer in places])
    coded = {}
    for tensor, name in itertools.product(config.tensors, names):
        found = reader.codings(f"{tensor}:{layers[0]}", name, config.bits)
        coded[tensor, name] = found
        if "lattice" not in found:
            instead = "`lattice_d4` for" if "lattice_d4" in found else "no"
            why = "whose blocks of 8 do not divide the vector"
            say(f"{tensor}, {name}: {instead} `lattice`, {why}")
    fill(study, jobs(config, reader, base, places, coded))
    finish(study, text(study, base), figure(study, base))


def jobs(
    config: Config, reader: Reader, base: dict[str, Any], places: Sequence[tuple[str, int]],
    coded: dict[tuple[str, str], tuple[str, ...]],
) -> Iterator[Job]:  # fmt: skip
    """Shannon's bound of each tensor, then all coordinates and seeds, at all bits."""
    bits = config.bits
    for tensor, layer in places:
        here, title = base | {"tensor": tensor, "layer": layer}, f"{tensor}:{layer}"
        least = [Entry(here | {"coding": "shannon", "bits": b}, None, BOUND) for b in bits]
        yield Job(f"{title} bound", least, functools.partial(reader.bound, title))
        for name in [name for of, name in coded if of == tensor]:
            own = here | {"coordinates": name}
            for seed in range(config.seeds) if random(name) else [None]:
                entries = [
                    Entry(own | {"coding": coding, "bits": b}, seed, CODED)
                    for b, coding in itertools.product(bits, coded[tensor, name])
                ]
                measure = functools.partial(reader.coded, title, name, seed or 0, bits)
                yield Job(f"{title} {name}", [*entries, Entry(own, seed, LOOK)], measure)


if __name__ == "__main__":
    run(main, Config, "alignment", __doc__)
