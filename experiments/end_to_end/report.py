"""The report: losses before and after learning, and the descent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from isojax.report import (
    Row,
    Study,
    color_of,
    draw_lines,
    markdown,
    new_figure,
    select,
    stat,
    summarize,
)

SETTINGS = ("W16A4", "W4A4")
COLUMNS = (
    "start", "seeds", "KL",
    *(f"{setting}{of}" for setting in SETTINGS for of in ("", ", learned", ", change")),
)  # fmt: skip

Means = dict[tuple[str, str, bool], dict[int | None, float]]  # by setting, start, learned; by seed


def losses(rows: Sequence[Row], windows: int) -> Means:
    """Mean delta nll over the windows, of the seeds that have read them all."""
    found: dict[Any, list[float]] = {}
    for row in select(rows, "delta_nll"):
        if row.config["window"] < windows:
            point = *(row.config[k] for k in ("setting", "coordinates", "learned")), row.seed
            found.setdefault(point, []).append(row.value)
    means: Means = {}
    for (*point, seed), values in found.items():
        if len(values) > windows:
            raise ValueError(f"{point}, seed {seed}: {len(values)} losses of {windows} windows.")
        if len(values) == windows:
            means.setdefault((point[0], point[1], point[2]), {})[seed] = stat(values).mean
    return means


def text(study: Study, base: dict[str, Any], config: Any) -> str:
    """The report in Markdown."""
    rows = study.rows(**base)
    exact = summarize(rows, "nll", setting="exact")
    return "\n\n".join([
        f"# Rotations learned end to end in {base['model']}",
        f"{config.texts} windows of {base['length']} tokens of {base['text']}; unquantized nll "
        f"{exact.mean:.4f} nats per token. Learned on {config.calibration_windows} windows of "
        f"{base['calibration']}, {config.steps} steps of one window each at a rate of "
        f"{config.rate}. Cells are delta nll, nats per token, mean ± sd over seeds, each over all "
        "windows; `change` is the change by learning, seed by seed. KL is on all calibration "
        "windows, at the start and at the best of ten checks, which is kept.",
        markdown(COLUMNS, lines(rows, config.texts)),
    ])  # fmt: skip


def lines(rows: Sequence[Row], windows: int) -> list[list[Any]]:
    """One line per start, in `COLUMNS`, of the seeds that have read all windows."""
    means = losses(rows, windows)
    names = [start for setting, start, learned in means if learned and setting == SETTINGS[-1]]
    return [_line(rows, means, name) for name in names]


def _line(rows: Sequence[Row], means: Means, name: str) -> list[Any]:
    seeds = sorted(means[SETTINGS[-1], name, True], key=str)
    kl = [r for r in select(rows, "kl_mean", coordinates=name) if "step" in r.config]
    kl = [r for r in kl if r.seed in seeds]
    first = stat(r.value for r in select(kl, step=0))
    last = stat(min(r.value for r in kl if r.seed == seed) for seed in seeds)
    cells = [name, len(seeds), f"{first.format(3)} to {last.format(3)}"]
    for setting in SETTINGS:
        before, after = (means[setting, name, learned] for learned in (False, True))
        found = [[before[s] for s in seeds], [after[s] for s in seeds]]
        found.append([b - a for a, b in zip(*found, strict=True)])
        cells += [stat(values).format(3) for values in found]
    return cells


def figure(study: Study, base: dict[str, Any], config: Any) -> Any:
    """The descent of the KL divergence, and the loss of each seed before and after."""
    rows = study.rows(**base)
    means = losses(rows, config.texts)
    chart, grid = new_figure(1, 1 + len(SETTINGS), f"Learned end to end: {base['model']}")
    descent = [r for r in rows if "step" in r.config]
    draw_lines(grid[0, 0], descent, "kl_mean", "step", "coordinates")
    grid[0, 0].set_ylabel("KL on the calibration text, nats per token")
    names = dict.fromkeys(start for _, start, _ in means)
    for axes, setting in zip(grid[0, 1:], SETTINGS, strict=True):
        for name in names:
            before, after = (means.get((setting, name, learned), {}) for learned in (False, True))
            for seed in set(before) & set(after):
                axes.plot([before[seed], after[seed]], "o-", ms=3, lw=1, color=color_of(axes, name))
        axes.set_xticks([0, 1], ["start", "learned"])
        axes.set_xlim(-0.3, 1.3)
        axes.set_title(f"delta nll, {setting}, one line per seed", fontsize=10)
    return chart
