"""One table for all: what every transform of the family does, by every measure of the four works.

    python -m experiments.compare
    python -m experiments.compare --model Qwen/Qwen2.5-0.5B --text wikitext-2 \
        --calibration-text valid.txt --out results/compare

A row a method: rotations (haar, hadamard, block_hadamard:32, planar, rotor, quaternion_fast,
quaternion_full, butterfly_planar), two of them after a MassDiff permutation, a learned rotation,
and axes: pca and learned_alignment. On the vectors of one tensor: how flat the coordinates are, how
concentrated, their error at 3 bits, the bits that an entropy coder needs at one error for all, and
what becomes of outliers and of the noise floor. In the model: the loss with a KV cache of 3 bits,
and with weights and activations of 4 bits. And what it costs.
Everything fitted, frequencies of the entropy coder included, is fitted on the calibration text.
Controls: a zero predictor, and Gaussian noise of the error of haar. `--quick` takes under a minute
on 2 CPU cores.
Sources: The Isotropic Tradeoff, IsoQuant (2603.28430), MixQuant (2601.22347), Goyal 2001.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.progress import Progress

from experiments.common import Calibrated, run
from experiments.compare_report import figure, text
from isojax._core.checks import check_choice, check_positive
from isojax.report import Study

METHODS = (
    "identity", "haar", "hadamard", "block_hadamard:32", "massdiff@block_hadamard:32", "planar",
    "rotor", "quaternion_fast", "quaternion_full", "massdiff@quaternion_full", "butterfly_planar",
    "learned_rotation", "pca", "learned_alignment",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Calibrated):
    """Settings."""

    methods: tuple[str, ...] = METHODS
    """Of those above, with identity and haar always among them."""
    tensor: str = "hidden:final"
    """The tensor to measure on: hidden:final, hidden:L, key:L, value:L, query:L, input:NAME:L."""
    seeds: int = 5
    """Seeds of what is drawn or learned, on the tensor; the model reads window i with seed i."""
    repeats: int = 21
    """Timed calls of each transform, in turn with all others."""
    calibration_windows: int = 4
    """Windows to fit on."""

    @property
    def texts(self) -> int:  # noqa: D102
        return self.windows or 5

    def quickened(self) -> dict[str, Any]:  # noqa: D102
        methods = ("identity", "haar", "hadamard", "block_hadamard:32",
                   "massdiff@block_hadamard:32", "quaternion_full", "pca")  # fmt: skip
        return {"methods": methods, "seeds": 2, "windows": 2, "repeats": 11}


def main(config: Config) -> None:
    """Measure, and write what the record does not hold yet."""
    from experiments.compare_trial import UNITS, Trial

    assert config.out is not None
    for name in config.methods:
        check_choice("methods", name, METHODS)
    for name in ("seeds", "repeats"):
        check_positive(name, getattr(config, name))
    names = tuple(n for n in METHODS if n in {"identity", "haar", *config.methods})
    if config.tensor.startswith("weight"):
        raise ValueError(f"tensor must be of activations, which texts change, got {config.tensor}.")
    study = Study("compare", config.out, config, grows=("methods", "seeds"))
    model, texts, fit_on, base = config.load()
    trial = Trial(model, fit_on, texts, config.tensor)
    for name in names:
        trial.check(name)
    base |= {"tensor": config.tensor}

    def add(on: dict[str, Any], seed: int | None, metric: str, call: Any, *args: Any) -> None:
        if not study.has(base | on, seed, [metric]):
            study.add(base | on, seed, call(*args), UNITS)

    with Progress() as bar:
        task = bar.add_task("exact", total=len(names) + 1)
        for i in range(config.texts):
            add({"method": "none", "window": i}, None, "nll", trial.exact, i)
        bar.advance(task)
        for name in names:
            bar.update(task, description=name)
            own, drawn = {"method": name}, trial.drawn(name)
            for seed in range(config.seeds if drawn else 1):
                add(own, seed if drawn else None, "nmse", trial.tensor, name, seed)
            add(own, None, "fmas", trial.cost, name)
            for metric, loss in trial.losses(name).items():
                for i in range(config.texts):
                    add(own | {"window": i}, i if drawn else None, metric, loss, name, i)
            bar.advance(task)
    for name in trial.controls:
        add({"method": name}, None, "nmse", trial.control, name)
    if not all(study.has(base | {"method": n}, None, ["time_us"]) for n in names):
        for name, values in trial.times(names, config.repeats).items():
            study.add(base | {"method": name}, None, values, UNITS)
    study.finish(text(study, base), figure(study, base))
    print((config.out / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    run(main, Config, "compare", __doc__)
