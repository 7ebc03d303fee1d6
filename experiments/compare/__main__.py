"""One table: all transforms by all measures of the four works.

    isojax compare
    isojax compare --model Qwen/Qwen2.5-0.5B --text wikitext-2 \
        --calibration-text valid.txt --out results/compare

One line per coordinates: rotations (haar, hadamard, block_hadamard:32, planar, rotor,
quaternion_fast, quaternion_full, butterfly_planar), two of them after a MassDiff permutation, a
learned rotation, and axes: pca and learned_alignment. On the vectors of one tensor: flatness and
concentration of the coordinates, their error at 3 bits, the bits of an entropy coder at one error
for all, and errors of outliers and of the noise floor. In the model: the loss and the divergence
from the unquantized model, with a KV cache of 3 bits and with weights and activations of 4 bits, in
separate coordinates per layer and key head (except the residual stream). And the costs. All fits,
including the frequencies of the entropy coder, use the calibration text. Controls: a zero
predictor, and Gaussian noise with the error of haar. `--quick` takes two minutes on 2 CPU cores.
Sources: The Isotropic Tradeoff, IsoQuant (2603.28430), MixQuant (2601.22347), Goyal 2001.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from isojax._core.checks import check_positive
from isojax.recipes import Coordinates
from isojax.report import Entry, Job, fill

from ..common import Calibrated, finish, run
from ..scoring import SCORED, TAILS
from .measure import (
    COST,
    ERRORS,
    KV,
    SIZE,
    TENSOR,
    TIMES,
    Reader,
    plans,
    shape,
)  # fmt: skip
from .report import figure, text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Calibrated):
    """Settings."""

    coordinates: tuple[str, ...] = (
        "identity", "haar", "hadamard", "block_hadamard:32", "mass_diff@block_hadamard:32",
        "planar", "rotor", "quaternion_fast", "quaternion_full", "mass_diff@quaternion_full",
        "butterfly_planar", "learned_rotation", "pca", "learned_alignment",
    )  # fmt: skip
    """The above, others of `isojax.recipes`, or your own, such as mypackage.mymodule:name;
    identity and haar are always among them. Default blocks that do not divide the widths of the
    model become the longest shorter ones that do."""
    tensor: str = "hidden:final"
    """The tensor to measure on: hidden:final, hidden:L, key:L, value:L, query:L, input:NAME:L."""
    seeds: int = 5
    """Seeds of random and learned coordinates on the tensor; in the model window i has seed i."""
    repeats: int = 21
    """Timed calls of each transform, alternating with all others."""
    windows: int = 5
    """Windows of text, one after the other from its start."""
    calibration_windows: int = 4
    """Windows to fit on."""

    def quickened(self) -> dict[str, Any]:  # noqa: D102
        fewer = ("identity", "haar", "hadamard", "block_hadamard:32",
                 "mass_diff@block_hadamard:32", "quaternion_full", "pca")  # fmt: skip
        return {"coordinates": fewer, "seeds": 2, "windows": 2, "repeats": 11}


def main(config: Config) -> None:
    """Measure, and write missing rows."""
    for name in ("seeds", "repeats"):
        check_positive(name, getattr(config, name))
    for name in config.coordinates:
        Coordinates.parse(name)  # or ValueError
    if config.tensor.startswith("weight"):
        raise ValueError(f"tensor must be of activations, which texts change, got {config.tensor}.")
    study = config.study("compare", "coordinates", "seeds")
    model, texts, fit_on, base = config.load()
    reader = Reader(model, fit_on, texts, config.tensor)
    sizes = model.config
    widths = reader.x.shape[-1], sizes.hidden_size, sizes.intermediate_size, sizes.head_dim
    every = "identity", "haar", *config.dividing("coordinates", *widths)
    names = list(dict.fromkeys(str(Coordinates.parse(name)) for name in every))
    for name in names:
        shape(Coordinates.parse(name), reader.x.shape[-1])  # or ValueError
        reader.plans[name] = plans(Coordinates.parse(name), model)
    base |= {"tensor": config.tensor}
    fill(study, jobs(config, reader, base, names))
    finish(study, text(study, base), figure(study, base))


def jobs(
    config: Config, reader: Reader, base: dict[str, Any], names: Sequence[str]
) -> Iterator[Job]:
    """The exact model, all coordinates on the tensor and in the model, controls and times."""
    windows = range(config.windows)
    yield reader.exact_job(base | {"setting": "exact"})
    for name in names:
        own, random = base | {"coordinates": name}, Coordinates.parse(name).random
        seeds = range(config.seeds) if random else [None]
        entries = [Entry(own, seed, TENSOR) for seed in seeds]
        yield Job(name, entries, functools.partial(reader.tensor, name))
        yield Job.one(name, own, COST, functools.partial(reader.cost, name))
        for setting, plan in reader.plans[name].items():
            on, title = own | {"setting": setting}, f"{name} {setting}"
            entries = [Entry(on | {"window": i}, i if random else None, SCORED) for i in windows]
            entries.append(Entry(on | {"windows": config.windows}, None, TAILS))
            yield Job(title, entries, functools.partial(reader.losses, plan, random))
            if setting == KV:
                yield Job.one(title, on, SIZE, functools.partial(reader.size, plan))
    controls = [Entry(base | {"quantizer": q}, None, ERRORS) for q in ("zero", "gaussian_noise")]
    yield Job("controls", controls, reader.controls)
    entries = [Entry(base | {"coordinates": name}, None, TIMES) for name in names]
    yield Job("times", entries, functools.partial(reader.times, names, config.repeats))


if __name__ == "__main__":
    run(main, Config, "compare", __doc__)
