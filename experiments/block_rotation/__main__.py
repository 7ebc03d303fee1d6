r"""Block rotations: does a permutation before them make up for short blocks?

    isojax block-rotation
    isojax block-rotation --model HuggingFaceTB/SmolLM2-135M --text wikitext-2 \
        --settings A4-down W4A4 --permutations none random_permutation mass_diff \
        --out results/blocks

A Hadamard rotation in front of down_proj spreads the outliers of its input. In blocks it is cheaper
and spreads less; MixQuant (2601.22347) permutes the channels first, so that all blocks have equal
l1 mass.

Here only the input of down_proj is quantized to 4 bit (A4-down), or all inputs of linear layers
(W16A4), all their weights (W4A16), or both (W4A4), weights to nearest or by GPTQ.

Where more than down_proj's input is quantized, the residual stream and the values are rotated too,
by full Hadamard matrices merged into the weights.

Permutations are fitted on calibration text and merged as well; only the rotation before down_proj
runs online.

Window i uses the signs and random permutations of seed i modulo the number of seeds, so that all
methods share text and seed; `delta_nll` is against the unquantized model.

Expected, A4-down and INT4, 8 windows of 2048 of WikiText-2, nats per token: SmolLM2-135M-Instruct
in Q4_1 (`--model smollm2`) none 1.39, full 0.10, blocks of 16 none 0.39, mass_diff 0.32, random
0.36. A point takes about 40 s with this model on 2 CPU cores; `--quick` takes 2 CPU minutes.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax

from isojax import transforms
from isojax.quantize.shapes import quantized_shapes
from isojax.report import Entry, Job, fill
from isojax.transforms.paley import largest_block

from ..common import Calibrated, check_drawn, check_named, finish, run, say
from .measure import LOOK, Reader
from .points import (
    FITTED,
    FORMATS,
    PERMUTATIONS,
    ROUNDINGS,
    SETTINGS,
    SMOOTH,
    Point,
    coordinates_of,
    own_plan,
    settings,
    shared_plan,
)
from .report import add_published, figure, text

BLOCKS = (16, 32, 64, 128, 256, 512)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Calibrated):
    """Settings."""

    settings: tuple[str, ...] = SETTINGS
    """Quantized tensors and bits: A4-down, W16A4, W4A16, W4A4."""
    rounding: tuple[str, ...] = ROUNDINGS
    """Rounding of weights: nearest, gptq."""
    formats: tuple[str, ...] = ("int4",)
    """int4 (one scale per token, per row of weights), int4sparse (the same, with the 1% of a
    token's elements of largest error exact), int4g64 (one scale per 64 neighbours), fp4, mxfp4,
    nvfp4."""
    permutations: tuple[str, ...] = PERMUTATIONS
    """none, random_permutation (the control), mass_diff, co_activation, zigzag, absmax_order (the
    worst case)."""
    blocks: tuple[int, ...] = BLOCKS
    """Lengths of blocks; by default, those that divide the width, or the largest divisor below 16.
    No rotation (identity), SmoothQuant instead of rotation (smooth:0.5) and the full rotation
    (hadamard) are added, without permutation."""
    coordinates: tuple[str, ...] = ()
    """Further coordinates in front of down_proj, such as mypackage.mymodule:name."""
    seeds: int = 3
    """Seeds of signs and random permutations; window i has seed i modulo this."""
    calibration_windows: int = 2
    """Windows to fit permutations and SmoothQuant on."""
    gptq_windows: int = 8
    """Windows for GPTQ's Hessians; `calibration_windows` where that is more. Tokens should
    outnumber channels by far, else it overfits."""

    windows: int = 8
    """Windows of text, one after the other from its start."""

    def quickened(self) -> dict[str, Any]:  # noqa: D102
        fewer = {"settings": ("A4-down", "W4A4"), "rounding": ("nearest",), "windows": 3}
        fewer |= {"permutations": ("none", "random_permutation", "mass_diff"), "blocks": (16, 64)}
        if self.model != "tiny":
            fewer |= {"settings": ("A4-down",), "permutations": ("none", "mass_diff")}
            fewer |= {"blocks": (16,), "seeds": 1, "windows": 1, "calibration_windows": 1}
            fewer |= {"length": 512}
        return fewer

    def lengths(self, width: int) -> tuple[int, ...]:
        """Lengths of the blocks between none and full; default ones divide `width`."""
        lengths = self.blocks
        if self.own("blocks"):
            lengths = [b for b in lengths if width % b == 0]
            if not lengths:
                lengths = [largest_block(self.blocks[0], width)]
                say(f"blocks, in lengths that divide {width}: {lengths[0]} for {self.blocks[0]}")
        return tuple(b for b in lengths if b != width)


def main(config: Config) -> None:
    """Fit, merge, score, and write missing rows."""
    check_named("settings", config.settings, SETTINGS)
    check_named("formats", config.formats, FORMATS)
    check_named("permutations", config.permutations, PERMUTATIONS)
    check_named("rounding", config.rounding, ROUNDINGS)
    config.check_positive("seeds", "calibration_windows", "gptq_windows")
    grows = ("settings", "rounding", "formats", "permutations", "blocks", "coordinates")
    study = config.study("block_rotation", *grows, *config.windows_grow)
    groups = settings(config.settings, config.rounding)
    fitted = config.calibration_windows
    gptq = any(rounding in FITTED for group in groups for _, rounding in group)
    most = max(fitted, config.gptq_windows if gptq else 0)
    model, texts, base, fit_on = dataclasses.replace(config, calibration_windows=most).load()
    width = model.config.intermediate_size
    lengths = config.lengths(width)
    for block in lengths:
        make = functools.partial(transforms.block_hadamard, dim=width, block=block)
        jax.eval_shape(make, jax.random.key(0))  # or ValueError
    others = (model.config.hidden_size, model.config.head_dim)
    check_drawn(["hadamard"], width, *(others if config.settings != ("A4-down",) else ()))
    turns = ["identity", "hadamard", *config.coordinates]
    turns += [coordinates_of(p, b) for b in lengths for p in config.permutations]
    every = itertools.product(config.formats, groups, range(config.seeds), [*turns, SMOOTH])
    cases = []
    for form, group, seed, turn in every:
        # weight-only settings need no smoothing of inputs
        some = [s for s in group if turn != SMOOTH or "A16" not in s[0]]
        cases += [([Point(*s, form, turn) for s in some], seed)] if some else []
    plans = [
        make(point) for points, _ in cases for point in points for make in (shared_plan, own_plan)
    ]
    plans.append(own_plan(Point("A4-down", "none", "int4", "mass_diff:1")))  # for `Reader.look`
    reader = Reader(model, texts, fit_on, plans, samples=fitted * fit_on.shape[1])
    for turn in config.coordinates:
        own = own_plan(Point("A4-down", "none", config.formats[0], turn))
        quantized_shapes(own, model.config, reader.stats)  # or ValueError
    fill(study, jobs(config, reader, base, cases, turns))
    add_published(study)
    finish(study, text(study, base, config.texts), figure(study, base, config.texts))


def jobs(
    config: Config, reader: Reader, base: dict[str, Any], cases: list[Any], turns: list[str]
) -> Iterator[Job]:
    """The exact model, each point with one seed, and the input of down_proj."""
    yield reader.exact_job(base | {"setting": "exact"})
    for points, seed in cases:
        every = [reader.entries(base | p._asdict(), seed, every=config.seeds) for p in points]
        title = " ".join([*points[0], f"seed {seed}"])
        measure = functools.partial(reader.losses, points, seed)
        yield Job(title, list(itertools.chain(*every)), measure)
    layers = range(reader.model.config.num_hidden_layers)
    for form, turn in itertools.product(config.formats, turns):
        own = base | {"format": form, "coordinates": turn}
        entries = [Entry(own | {"layer": i}, 0, LOOK) for i in layers]
        yield Job(f"{form} {turn}, by layers", entries, functools.partial(reader.look, turn, form))


if __name__ == "__main__":
    run(main, Config, "block_rotation", __doc__)
