r"""Rotate, align, or align and then flatten: what do linear layers lose in 4 bits, at what cost?

    isojax linear-layers
    isojax linear-layers --model HuggingFaceTB/SmolLM2-135M --text wikitext-2 \
        --calibration-text wikitext-2:validation --seeds 5 --out results/linear_layers

Every case quantizes the inputs and the weights of all linear layers, with the same ranges and
texts; the transforms differ, and whether the scales of norms are folded into the weights, as a
merged rotation of the residual stream (`quarot`) requires.

With `centre` in front, the mean of an input over the calibration text is subtracted before it is
quantized, and added back by a bias, as in Outlier Suppression+ (2304.09145).

With coordinates at the four inputs (`--coordinates`) these scales stay on the input. Only a leading
diagonal is merged, the rest runs online, so the report shows loss against online cost.

Diagonals before a Hadamard matrix were used in QuIP (only for weights), SmoothRot, DuQuant and
OSTQuant; CAT and WUSH are closed forms that align inputs with weights, Kronecker factors are
FlatQuant's.

Every seed reads all windows; `delta_nll` is against the unquantized model.

A table by layer and input shows the contributions of concentration and alignment.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

from isojax._core.checks import check_choice
from isojax.quantize.calibrate import keyed
from isojax.quantize.parts import SITES
from isojax.quantize.shapes import check_plans
from isojax.recipes import CENTRE
from isojax.report import Entry, Job, fill

from ..common import Calibrated, check_named, finish, run
from .measure import COSTS, LAYER, Reader
from .methods import COORDINATES, FORMATS, LEARNED, PLANS, ROUNDINGS, Case, bits_of, cases, plan_of
from .report import figure, text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Calibrated):
    """Settings."""

    settings: tuple[str, ...] = ("W4A4",)
    """Bits of weights and of the inputs of linear layers, such as W4A4, W4A16, W16A4."""
    formats: tuple[str, ...] = ("int4",)
    """int4 (one scale per token and per output channel), int4max (the same with ranges up to the
    peak), int4g32, int4g128 (one scale per 32 or 128 neighbours), mxfp4, nvfp4."""
    rounding: tuple[str, ...] = ("nearest", "gptq")
    """Rounding of weights: nearest, gptq, gptq-behind (on inputs after quantized layers)."""
    plans: tuple[str, ...] = tuple(name for name in PLANS if name not in LEARNED)
    """none, smoothquant, quarot (its places), quarot+balance (the same with a diagonal at o and
    down), quarot+centre (the same, all inputs centred), spinquant (quarot with rotations learned on
    the loss, per seed), ostquant (with scales learned too), folded (a Hadamard at all inputs, norms
    folded)."""
    coordinates: tuple[str, ...] = COORDINATES
    """Coordinates at all four inputs, with the scales of norms not folded. Default blocks that do
    not divide all inputs become the longest shorter ones that do. learned_scales@hadamard learns
    scales on the loss, per seed."""
    seeds: int = 2
    """Seeds of random transforms; each reads all windows."""
    first_seed: int = 0
    """The first of them: more seeds in a folder that has some, or on another machine."""
    steps: int = 100
    """Steps of rotations and scales learned on the loss, a multiple of 10."""
    layers: bool = True
    """Whether every layer and input is measured too."""
    samples: int = 4096
    """Tokens whose vectors are kept, for coordinates fitted on more than moments."""

    windows: int = 8
    """Windows of text, one after the other from its start."""

    def quickened(self) -> dict[str, Any]:  # noqa: D102
        fewer: dict[str, Any] = {
            "rounding": ("nearest",), "plans": ("quarot",), "seeds": 1, "layers": False,
            "coordinates": ("hadamard", "balance@hadamard"), "calibration_windows": 4,
        }  # fmt: skip
        small = self.model == "tiny"
        return fewer | ({"windows": 2} if small else {"windows": 1, "length": 512})


def main(config: Config) -> None:
    """Fit, quantize, score, and write missing rows."""
    assert config.out is not None
    check_named("settings", config.settings)
    for setting in config.settings:
        bits_of(setting)
    check_named("formats", config.formats, FORMATS)
    check_named("rounding", config.rounding, ROUNDINGS)
    check_named("plans and coordinates", (*config.plans, *config.coordinates))
    for name in config.plans:
        check_choice("plans", name, PLANS)
    config.check_positive("seeds", "steps", "samples")
    config.check_not_negative("first_seed")
    grows = ("settings", "formats", "rounding", "plans", "coordinates", "seeds", "layers")
    study = config.study("linear_layers", *grows, "first_seed", *config.windows_grow)
    given = config.settings, config.formats, config.rounding
    cases(config.plans, config.coordinates, *given)  # or ValueError
    model, texts, base, fit_on = config.load()
    widths = model.config.widths.values()
    every = cases(config.plans, config.dividing("coordinates", *widths), *given)
    plans = [plan_of(case, config.steps) for case in every]
    check_plans(dict(zip(map(" ".join, every), plans, strict=True)), model.config)
    kept = {"samples": config.samples, "cache": config.out / "statistics"}
    reader = Reader(model, texts, fit_on, plans, **kept)
    fill(study, jobs(config, reader, base, every))
    finish(study, *(make(study, base, every, config.texts) for make in (text, figure)))


def jobs(config: Config, reader: Reader, base: dict[str, Any], every: list[Case]) -> Iterator[Job]:
    """The exact model, each case with one seed, and each layer separately."""
    yield reader.exact_job(base | {"setting": "exact"})
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    for case in every:
        plan = plan_of(case, config.steps)
        numbers = seeds if plan.random else (0,)
        for number in numbers:
            seed, own = number if plan.random else None, base | case._asdict()
            entries = reader.entries(own, seed)
            entries += [Entry(own, seed, COSTS)] if number == numbers[0] else []
            title = " ".join([*case, f"seed {number}"])
            yield Job(title, entries, functools.partial(reader.values, plan, number))
    places = itertools.product(SITES, range(reader.model.config.num_hidden_layers))
    places = [{"input": site, "layer": i} for site, i in places]
    for case in every if config.layers else ():
        plan = plan_of(case, config.steps, setting="W16A16")
        # the law has no mean, and what is learned on the loss needs quantized inputs
        if case[3:] != every[0][3:] or CENTRE in case.coordinates or keyed(plan):
            continue
        own = case._asdict()
        del own["setting"], own["rounding"]  # nothing is quantized
        seed = 0 if plan.random else None
        entries = [Entry(base | own | place, seed, LAYER) for place in places]
        values = functools.partial(reader.layers, plan, 0, case.format)
        yield Job(f"{case.plan} {case.coordinates}, by layers", entries, values)


if __name__ == "__main__":
    run(main, Config, "linear_layers", __doc__)
