"""Figures made from rows: lines over a configuration value, with a band for their spread."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from isojax.report.rows import Row
from isojax.report.stats import Stat, distinct, select, stat

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

Spread = Callable[[Stat], tuple[float, float]]


def span(found: Stat) -> tuple[float, float]:
    """The lowest and the highest value."""
    return found.low, found.high


def errors(found: Stat) -> tuple[float, float]:
    """One standard error below and above the mean."""
    return found.mean - found.sem, found.mean + found.sem


def deviations(found: Stat) -> tuple[float, float]:
    """One standard deviation below and above the mean."""
    return found.mean - found.sd, found.mean + found.sd


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


def color_of(axes: Any, label: str) -> str:
    """The colour of a label in the whole figure; labels share one only when all are taken."""
    drawn = {line.get_label(): line.get_color() for a in axes.figure.axes for line in a.lines}
    free = [color for color in MORE_COLORS if color not in drawn.values()]
    own = drawn.get(label) or COLORS.get(label)
    return own or (free or MORE_COLORS)[0 if free else len(drawn) % len(MORE_COLORS)]


def draw_curve(
    axes: Any,
    x: Sequence[float | int],
    found: Sequence[Stat],
    label: str,
    spread: Spread = span,
    *,
    style: str = "o-",
) -> None:
    """A line through means, with bars from the lower to the upper end of their spread.

    Args:
        axes: matplotlib axes.
        x: places of the means.
        found: the statistics.
        label: name in the legend, with one colour in the whole figure.
        spread: ends of a bar.
        style: line style of matplotlib; bars are drawn only with markers.
    """
    color, ends = color_of(axes, label), [spread(s) for s in found]
    axes.plot(x, [s.mean for s in found], style, ms=3.5, lw=1.4, color=color, label=label)
    if "o" in style and ends:
        low, high = zip(*ends, strict=True)
        axes.vlines(x, low, high, color=color, lw=1)


def draw_pairs(
    axes: Any,
    rows: Sequence[Row],
    x: str,
    y: str,
    hue: str,
    along: str = "",
    spread: Spread = span,
    *,
    style: str = "o-",
) -> dict[str, list[tuple[float, Stat]]]:
    """One line per value of `hue`: the mean of metric `y` against that of metric `x`.

    Bars show the spread of `y`, and the standard deviation of `x` where it has one.

    Args:
        axes: matplotlib axes.
        rows: the rows; names without both metrics are left out.
        x: metric on the horizontal axis.
        y: metric on the vertical axis.
        hue: configuration name that distinguishes the lines.
        along: configuration name that distinguishes the points of a line, in its order; empty for
            one point per line.
        spread: ends of the bars of `y`.
        style: line style of matplotlib.

    Returns:
        The points (mean of x, statistics of y) of each line.
    """
    drawn: dict[str, list[tuple[float, Stat]]] = {}
    for name in distinct(select(rows, y), hue):
        mine = select(rows, **{hue: name})
        places = [{along: at} for at in sorted(distinct(mine, along))] if along else [{}]
        sides = [[select(mine, metric, **at) for metric in (x, y)] for at in places]
        found = [[stat(r.value for r in side) for side in both] for both in sides if all(both)]
        if found:
            points = [(across.mean, up) for across, up in found]
            means, stats = zip(*points, strict=True)
            draw_curve(axes, means, stats, name, spread, style=style)
            for across, up in found:
                if across.sd:
                    axes.hlines(up.mean, *deviations(across), color=color_of(axes, name), lw=1)
            drawn[name] = points
    return drawn


def draw_ranked(axes: Any, found: Mapping[str, Stat], spread: Spread = span) -> None:
    """One line per name with its mean and spread, the least on top."""
    names = sorted(found, key=lambda name: found[name].mean)
    for place, name in enumerate(names):
        color, (low, high) = color_of(axes, name), spread(found[name])
        axes.plot([found[name].mean], [place], "o", ms=4, color=color, label=name)
        axes.hlines([place], [low], [high], color=color, lw=1)
    axes.set_yticks(range(len(names)), [name[:24] for name in names], fontsize=7)
    axes.invert_yaxis()


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
    spread: Spread = span,
    label: str | None = None,
) -> None:
    """One line per value of `hue`: the mean of its rows, with bars and a band for the spread.

    Where `x` has only one value, `draw_ranked` is used: names on the vertical axis.

    Args:
        axes: matplotlib axes.
        rows: the rows; those of `metric` are drawn.
        metric: goes on the vertical axis.
        x: configuration name on the horizontal axis, or a function of the row.
        hue: configuration name that distinguishes the lines.
        order: values of `x` from left to right; sorted numbers where None.
        labels: hue value -> name in the legend.
        log: logarithmic axis of values, with a zero where a value is zero.
        spread: ends of the bars; from the lowest to the highest by default.
        label: of the horizontal axis; `x` where it is a name.

    Raises:
        ValueError: no row is of `metric`.
    """
    rows = select(rows, metric)
    if not rows:
        raise ValueError(f"no row of {metric} to draw.")
    where = x if callable(x) else lambda row: row.config[x]
    places = list(order or sorted({where(r) for r in rows}))
    curves: dict[str, dict[int, Stat]] = {}
    for name in distinct(rows, hue):
        mine = select(rows, **{hue: name})
        found = {i: [r.value for r in mine if where(r) == p] for i, p in enumerate(places)}
        curves[(labels or {}).get(name, str(name))] = {
            i: stat(values) for i, values in found.items() if values
        }
    across = "y" if len(places) > 1 else "x"
    if across == "x":
        draw_ranked(axes, {n: s for n, each in curves.items() for s in each.values()}, spread)
    for name, found in curves.items() if across == "y" else ():
        draw_curve(axes, [*found], [*found.values()], name, spread)
        low, high = zip(*map(spread, found.values()), strict=True)
        axes.fill_between([*found], low, high, color=color_of(axes, name), alpha=0.2, lw=0)
    if across == "y":
        axes.set_xticks(range(len(places)), [str(p) for p in places])
    values = [r.value for r in rows]
    if log and min(values) > 0:
        axes.set(**{f"{across}scale": "log"})
    elif log and max(values) > 0:
        least = min(v for v in values if v > 0)
        getattr(axes, f"set_{across}scale")("symlog", linthresh=least)
        if min(values) == 0:
            axes.set(**{f"{across}lim": (0, None)})
    label = x if label is None and isinstance(x, str) else label or ""
    axes.set_xlabel(label if across == "y" else f"{label}: {places[0]}")
    axes.set_title(metric.replace("_", " "), fontsize=10)


def save_figure(figure: Any, path: str | Path) -> None:
    """Write the figure as PNG, 150 dots per inch; one legend for all axes if none has its own."""
    if not (figure.legends or any(axes.get_legend() for axes in figure.axes)):
        marks: dict[str, Any] = {}
        for axes in figure.axes:
            for mark, label in zip(*axes.get_legend_handles_labels(), strict=True):
                marks.setdefault(label, mark)
        if marks:
            place = "outside right center" if figure.get_layout_engine() else "upper right"
            figure.legend([*marks.values()], [*marks], loc=place, fontsize=7, frameon=False)
    figure.savefig(path, dpi=150)
