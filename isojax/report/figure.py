"""Figures made from rows: lines over a configuration value with a band over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from isojax.report.rows import Row
from isojax.report.stats import select, stat

COLORS = {
    "identity": "#444444",
    "haar": "#1f6fb4",
    "hadamard": "#e07b00",
    "pca": "#2a9d4a",
    "zero": "#999999",
    "gaussian_noise": "#b04a98",
}
MORE_COLORS = (
    "#c0392b", "#16a2b8", "#8c6d31", "#6b4fb0", "#7f8c1f", "#d4679c", "#e8b004", "#1b5e3a",
    "#9fb8d8", "#5a2a27", "#000080", "#ff7f50", "#00a86b", "#b39ddb",
)  # fmt: skip


def new_figure(rows: int, columns: int, title: str) -> tuple[Any, Any]:
    """A matplotlib figure that needs no display, and its grid of axes as a 2-D array."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(4.2 * columns, 6), 3.3 * rows), layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.grid(alpha=0.25, lw=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid


def draw_lines(
    axes: Any,
    rows: Sequence[Row],
    metric: str,
    x: str | Callable[[Row], Any],
    hue: str,
    *,
    order: Sequence[Any] | None = None,
    labels: Mapping[str, str] | None = None,
    log: bool = True,
) -> None:
    """One line for each value of `hue`: the mean over seeds, a bar and band from lowest to highest.

    Args:
        axes: matplotlib axes.
        rows: the rows; those of `metric` are drawn.
        metric: goes on the vertical axis.
        x: configuration name on the horizontal axis, or a function of the row.
        hue: configuration name that tells the lines apart.
        order: values of `x` from left to right; sorted numbers where None.
        labels: hue value -> name in the legend.
        log: logarithmic vertical axis, with a zero where a value is zero.
    """
    rows = select(rows, metric)
    where = x if callable(x) else lambda row: row.config[x]
    places = list(order or sorted({where(r) for r in rows}))
    spare = iter(MORE_COLORS * 4)
    for name in dict.fromkeys(r.config[hue] for r in rows):
        mine = select(rows, **{hue: name})
        found = [(i, [r.value for r in mine if where(r) == p]) for i, p in enumerate(places)]
        found = [(i, stat(values)) for i, values in found if values]
        at = [i for i, _ in found]
        color = COLORS.get(name) or next(spare)
        label = (labels or {}).get(name, name)
        axes.plot(at, [s.mean for _, s in found], "o-", ms=3.5, lw=1.4, color=color, label=label)
        axes.vlines(at, [s.low for _, s in found], [s.high for _, s in found], color=color, lw=1)
        axes.fill_between(
            at, [s.low for _, s in found], [s.high for _, s in found], color=color, alpha=0.2, lw=0
        )
    axes.set_xticks(range(len(places)), [str(p) for p in places])
    values = [r.value for r in rows]
    if log and min(values) > 0:
        axes.set_yscale("log")
    elif log and max(values) > 0:
        axes.set_yscale("symlog", linthresh=min(v for v in values if v > 0))
        axes.set_ylim(bottom=0)
    if isinstance(x, str):
        axes.set_xlabel(x)
    axes.set_title(metric.replace("_", " "), fontsize=10)


def save_figure(figure: Any, path: str | Path) -> None:
    """Write the figure as PNG, 150 dots an inch."""
    figure.savefig(path, dpi=150)
