r"""Rotations learned end to end: what do they gain from the loss of the whole model?

    isojax end-to-end
    isojax end-to-end --model HuggingFaceTB/SmolLM2-135M --text wikitext-2 \
        --calibration-text wikitext-2:validation --length 256 --out results/end_to_end

SpinQuant (2405.16406) learns the rotation of the residual stream (R1) and those of the values of
each head (R2) by gradient descent on the model's own loss, inputs of linear layers in INT4 with one
scale per token.

Here the loss is the KL divergence from the unquantized model on the calibration text, one window
per step, gradients straight through the rounding and into the scales, Adam on the orthogonal group.
Each start, random or none, is compared with its learned rotations: merged into the weights, which
stay exact (W16A4) or are rounded too (W4A4, to nearest). Before down_proj a random Hadamard
transform (R4) runs in all cases, and is not learned.

Every seed draws and learns separate rotations and reads all windows of the test text; `delta_nll`
is against the unquantized model.

A step needs memory for the gradients of all layers: SmolLM2-135M 1.7 GB at 512 tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

from isojax.report import Entry, Job, fill

from ..common import Calibrated, check_drawn, check_named, finish, run
from .measure import CHECKS, DESCENT, SETTINGS, Reader, steps_told
from .report import figure, text

STARTS = ("identity", "hadamard", "haar")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Calibrated):
    """Settings."""

    starts: tuple[str, ...] = STARTS
    """Random coordinates where learning starts: identity, hadamard, haar, or others."""
    seeds: int = 5
    """Seeds of the starts, of the rotation before down_proj, and of learning."""
    steps: int = 100
    """Steps of descent, a multiple of 10."""
    rate: float = 0.003
    """Learning rate of Adam, in radians per step, with a cosine schedule to 0."""

    windows: int = 8
    """Windows of text, one after the other from its start."""
    length: int = 512
    """Tokens per window."""

    def quickened(self) -> dict[str, Any]:  # noqa: D102
        fewer = {"starts": ("hadamard",), "seeds": 1, "length": 128, "windows": 2}
        tiny = self.model == "tiny"
        return fewer | {"steps": 20 if tiny else 10, "calibration_windows": 4 if tiny else 2}


def main(config: Config) -> None:
    """Learn, merge, score, and write missing rows."""
    check_named("starts", config.starts)
    config.check_positive("seeds", "steps")
    if config.steps % CHECKS:
        raise ValueError(f"steps must be a multiple of {CHECKS}, got {config.steps}.")
    if not 0 < config.rate < math.inf:
        raise ValueError(f"rate must be above 0 and finite, got {config.rate}.")
    study = config.study("end_to_end", "starts", "seeds", *config.windows_grow)
    model, texts, base, fit_on = config.load()
    check_drawn(config.starts, model.config.hidden_size, model.config.head_dim)
    check_drawn(["hadamard"], model.config.intermediate_size)
    reader = Reader(model, fit_on, texts)
    fill(study, jobs(config, reader, base))
    finish(study, text(study, base, config), figure(study, base, config))


def jobs(config: Config, reader: Reader, base: dict[str, Any]) -> Iterator[Job]:
    """The exact model, then each start with one seed and its learned rotations."""
    yield reader.exact_job(base | {"setting": "exact"})
    for name, seed in itertools.product(config.starts, range(config.seeds)):
        own = base | {"coordinates": name}
        entries = [Entry(own | {"step": i}, seed, DESCENT) for i in steps_told(config.steps)]
        for learned, setting in itertools.product((False, True), SETTINGS):
            entries += reader.entries(own | {"setting": setting, "learned": learned}, seed)
        values = functools.partial(reader.values, name, seed, config.steps, config.rate)
        yield Job(f"{name}, seed {seed}", entries, values)


if __name__ == "__main__":
    run(main, Config, "end_to_end", __doc__)
