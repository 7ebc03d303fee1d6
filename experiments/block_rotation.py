"""Block rotations: does a permutation before them make up for short blocks?

    python -m experiments.block_rotation
    python -m experiments.block_rotation --model HuggingFaceTB/SmolLM2-135M --text wikitext-2 \
        --settings D4 W4A4 --permutations none random massdiff --out results/blocks

A Hadamard rotation in front of down_proj spreads the outliers of its input. In blocks it is cheaper
and spreads less; MixQuant (2601.22347) permutes the channels first, so that all blocks carry equal
l1 mass. Here the input of down_proj alone is quantized to 4 bit (D4), or all inputs of linear
layers (W16A4), all their weights (W4A16, to nearest or by GPTQ), or both (W4A4). Where more than
down_proj's input is quantized, the residual stream and the values are rotated too, by full Hadamard
matrices merged into the weights. Permutations are fitted on calibration text and merged as well;
the rotation before down_proj alone is left to run.
Every window of text is read with signs and random permutations of one seed, in turn, so that all
methods share text and seed; `delta_nll` is against the model as it is.
Expected, D4 and INT4, 8 windows of 2048 of WikiText-2, nat a token: SmolLM2-135M none 1.39, full
0.10, blocks of 16 none 0.39, massdiff 0.32, random 0.36. A point takes about 40 s there on 2 CPU
cores.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax
from rich.progress import Progress

from experiments.block_points import FORMATS, PERMUTATIONS, SETTINGS, SHARED, Point
from experiments.block_report import add_published, figure, text
from experiments.common import Calibrated, run
from isojax import transforms
from isojax._core.checks import check_choice, check_positive
from isojax.report import Study


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Calibrated):
    """Settings."""

    settings: tuple[str, ...] = tuple(SETTINGS)[1:]
    """What is quantized: D4, W16A4, W4A16, W4A16-gptq, W4A4, W4A4-gptq."""
    formats: tuple[str, ...] = ("int4",)
    """int4 (a scale a token, a row of weights), int4sparse (so, but the 1% of a token's numbers
    that fit worst are exact), int4g64 (a scale for 64 neighbours), fp4, mxfp4, nvfp4."""
    permutations: tuple[str, ...] = tuple(PERMUTATIONS)
    """none, random (the control), massdiff, coactivation, zigzag, absmax (the adversary)."""
    blocks: tuple[int, ...] = ()
    """Lengths of blocks; by default powers of two from 16 to 512 that divide the width. No rotation
    (0), SmoothQuant in its place, and the full one are added, without permutation."""
    seeds: int = 3
    """Seeds of signs and random permutations; window i has seed i modulo this."""
    calibration_windows: int = 2
    """Windows to fit permutations and SmoothQuant on."""
    gptq_windows: int = 8
    """Windows that GPTQ's Hessians are of; `calibration_windows` where that is more. Tokens should
    outnumber channels by far, else it learns them by heart."""

    @property
    def texts(self) -> int:  # noqa: D102
        return self.windows or 8

    def quickened(self) -> dict[str, Any]:  # noqa: D102
        permutations = ("none", "random", "massdiff")
        return {
            "settings": ("D4", "W4A4"), "permutations": permutations, "blocks": (16, 64),
            "windows": 3,
        }  # fmt: skip

    def lengths(self, width: int) -> tuple[int, ...]:
        """Of the blocks between none and full."""
        lengths = self.blocks or [b for b in (16, 32, 64, 128, 256, 512) if width % b == 0]
        return tuple(b for b in lengths if b != width)


def main(config: Config) -> None:
    """Fit, merge, score, and write what the record does not hold yet."""
    from experiments.block_trial import LAYER_UNITS, UNITS, Trial

    assert config.out is not None
    for name, values, allowed in (
        ("settings", config.settings, tuple(SETTINGS)[1:]), ("formats", config.formats, FORMATS),
        ("permutations", config.permutations, PERMUTATIONS),
    ):  # fmt: skip
        for value in values:
            check_choice(name, value, allowed)
        if not values:
            raise ValueError(f"{name} must name at least one, got none.")
    check_positive("seeds", config.seeds)
    check_positive("calibration_windows", config.calibration_windows)
    check_positive("gptq_windows", config.gptq_windows)
    grows = ("settings", "formats", "permutations", "blocks")
    # without a text of their own, the windows to fit on come after those to test on
    grows += ("windows",) if config.calibration_text else ()
    study = Study("block_rotation", config.out, config, grows=grows)
    gptq = any(SETTINGS[setting][1] == "gptq" for setting in config.settings)
    fitted = config.calibration_windows
    most = max(fitted, config.gptq_windows if gptq else 0)
    model, texts, fit_on, base = dataclasses.replace(config, calibration_windows=most).load()
    width = model.config.intermediate_size
    for block in (*config.lengths(width), width):
        make = functools.partial(transforms.block_hadamard, dim=width, block=block)
        jax.eval_shape(make, jax.random.key(0))  # or ValueError
    if set(config.settings) != {"D4"}:
        for dim in (model.config.hidden_size, model.config.head_dim):
            jax.eval_shape(functools.partial(transforms.hadamard, dim=dim), jax.random.key(0))
    trial = Trial(model, fit_on, texts, fitted)
    del model  # the trial has folded its norms, and two of a size are one too many
    turns: list[tuple[int, str]] = [(0, "none"), (width, "none")]
    turns += itertools.product(config.lengths(width), config.permutations)
    cases: list[tuple[list[Point], int]] = []
    shared = [[setting for setting in of if setting in config.settings] for of in SHARED]
    for form, of in itertools.product(config.formats, filter(None, shared)):
        cases += [
            ([Point(setting, form, *turn) for setting in of], seed)
            for seed, turn in itertools.product(range(config.seeds), turns)
        ]
        # weights alone need no smoothing of what they read
        smooth = [Point(setting, form, 0, "smooth") for setting in of if SETTINGS[setting][0]]
        cases += [(smooth, seed) for seed in range(config.seeds)]
    add_published(study)
    with Progress() as bar:
        task = bar.add_task("exact", total=1 + len(cases))
        exact = base | {"setting": "exact"}
        for i in range(config.texts):
            if not study.has(exact | {"window": i}, None, ["nll"]):
                study.add(exact | {"window": i}, None, {"nll": trial.nll(i)}, UNITS)
        plain = [study.rows("nll", **exact, window=i)[0].value for i in range(config.texts)]
        bar.advance(task)
        for points, seed in cases:
            quantized = None
            for point in points:
                bar.update(task, description=" ".join(map(str, point)))
                for i in range(seed, config.texts, config.seeds):
                    row = base | point._asdict() | {"window": i}
                    if not study.has(row, seed, UNITS):
                        quantized = quantized or trial.quantized(point, seed)
                        nll = trial.nll_of(point, *quantized, i)
                        study.add(row, seed, {"nll": nll, "delta_nll": nll - plain[i]}, UNITS)
            bar.advance(task)
        for form, turn in itertools.product(config.formats, turns):
            point = Point("D4", form, *turn)
            look = base | {k: v for k, v in point._asdict().items() if k != "setting"}
            last = look | {"layer": trial.config.num_hidden_layers - 1}
            if not study.has(last, 0, LAYER_UNITS):
                for layer, found in enumerate(trial.layers(point, 0)):
                    study.add(look | {"layer": layer}, 0, found, LAYER_UNITS)
    study.finish(text(study, base, config.texts), figure(study, base, config.texts))
    print((config.out / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    run(main, Config, "block_rotation", __doc__)
