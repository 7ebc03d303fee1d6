r"""One table: all transforms by all measures of the four works.

    isojax compare
    isojax compare --model Qwen/Qwen2.5-0.5B --text wikitext-2 \
        --calibration-text wikitext-2:validation --out results/compare

One line per coordinates: rotations (haar, hadamard, block_hadamard:32, planar, rotor,
quaternion_fast, quaternion_full, butterfly_planar), two of them after a MassDiff permutation, a
learned rotation, and axes: pca and learned_alignment.

On the vectors of one tensor: flatness and concentration of the coordinates, their error at 3 bits,
the bits of an entropy coder at one error for all, and errors of outliers and of the noise floor. In
the model: the loss and the divergence from the unquantized model, with a KV cache of 3 bits and
with weights and activations of 4 bits, in separate coordinates per layer and key head (except the
residual stream). And the costs.

All fits, including the frequencies of the entropy coder, use the calibration text.

Controls: a zero predictor, and Gaussian noise with the error of haar.

`--quick` takes two minutes on 2 CPU cores.

Sources: The Isotropic Tradeoff, IsoQuant (2603.28430), MixQuant (2601.22347), Goyal 2001.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from isojax.quantize import Plan
from isojax.recipes import Coordinates
from isojax.report import Entry, Job, fill

from ..common import Calibrated, finish, run
from .measure import COST, ERRORS, KV, SIZE, TENSOR, TIMES, Reader, plans, shape
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
        if self.model != "tiny":
            once = {"seeds": 1, "windows": 1, "calibration_windows": 2, "length": 256}
            return {"coordinates": ("identity", "haar"), "repeats": 11} | once
        fewer = ("identity", "haar", "hadamard", "block_hadamard:32",
                 "mass_diff@block_hadamard:32", "quaternion_full", "pca")  # fmt: skip
        return {"coordinates": fewer, "seeds": 2, "windows": 2, "repeats": 11}


def main(config: Config) -> None:
    """Measure, and write missing rows."""
    config.check_positive("seeds", "repeats")
    for name in config.coordinates:
        Coordinates.parse(name)  # or ValueError
    if config.tensor.startswith("weight"):
        raise ValueError(f"tensor must be of activations, which texts change, got {config.tensor}.")
    study = config.study("compare", "coordinates", "seeds")
    model, texts, base, fit_on = config.load()
    reader = Reader(model, texts, fit_on, config.tensor)
    sizes, dim = model.config, reader.x.shape[-1]
    widths = dim, sizes.hidden_size, sizes.intermediate_size, sizes.head_dim
    every = "identity", "haar", *config.dividing("coordinates", *widths)
    settings = {}
    for name in dict.fromkeys(str(Coordinates.parse(name)) for name in every):
        shape(Coordinates.parse(name), dim)  # or ValueError
        settings[name] = plans(Coordinates.parse(name), model)
    reader.plans = [plan for each in settings.values() for plan in each.values()]
    base |= {"tensor": config.tensor}
    fill(study, jobs(config, reader, base, settings))
    finish(study, text(study, base), figure(study, base))


def jobs(
    config: Config, reader: Reader, base: dict[str, Any], settings: dict[str, dict[str, Plan]]
) -> Iterator[Job]:
    """The exact model, all coordinates on the tensor and in the model, controls and times."""
    yield reader.exact_job(base | {"setting": "exact"})
    for name, by_setting in settings.items():
        own, random = base | {"coordinates": name}, Coordinates.parse(name).random
        entries = [Entry(own, seed, TENSOR) for seed in (range(config.seeds) if random else [None])]
        yield Job(name, entries, functools.partial(reader.tensor, name))
        yield Job.one(name, own, COST, functools.partial(reader.cost, name))
        for setting, plan in by_setting.items():
            on, title = own | {"setting": setting}, f"{name} {setting}"
            # window i has seed i
            made = functools.partial(reader.drawn, plan, random)
            yield reader.job(title, on, made, int if random else None)
            if setting == KV:
                yield Job.one(title, on, SIZE, functools.partial(reader.size, plan))
    controls = [Entry(base | {"quantizer": q}, None, ERRORS) for q in ("zero", "gaussian_noise")]
    yield Job("controls", controls, reader.controls)
    entries = [Entry(base | {"coordinates": name}, None, TIMES) for name in settings]
    yield Job("times", entries, functools.partial(reader.times, list(settings), config.repeats))


if __name__ == "__main__":
    run(main, Config, "compare", __doc__)
