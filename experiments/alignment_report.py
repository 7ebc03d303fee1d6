"""What `alignment` says about its rows: claims, tables at equal rate, a figure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from isojax.report import Row, Stat, Study, markdown, new_figure, select, stat, summarize
from isojax.report.figure import COLORS, MORE_COLORS

CODERS = {
    "fixed": "one set of levels, a norm a vector",
    "allocated": "whole bits by component",
    "entropy": "one step, an entropy code by component",
    "lattice": "so, but E8 in place of integers",
}
LOOKS = {
    "kurtosis": "kurtosis",
    "peak_to_rms": "peak / rms",
    "coding_gain_db": "coding gain, dB",
    "effective_dims": "effective dimensions",
    "top_tenth_energy": "energy in the top tenth",
}
Curves = dict[tuple[int, int | None], list[tuple[float, float]]]  # (layer, seed): (rate, dB)
Distances = dict[tuple[int, int | None], float]


def curves(rows: Sequence[Row], transform: str, coder: str) -> Curves:
    """Error in dB below the energy over the rate that was spent, for each layer and seed."""
    mine = select(rows, transform=transform, coder=coder)
    rate = {_at(r): r.value for r in select(mine, "rate_bits")}
    found: Curves = {}
    for row in sorted(select(mine, "nmse"), key=lambda r: r.config["bits"]):
        point = rate[_at(row)], _db(row.value)
        found.setdefault((row.config["layer"], row.seed), []).append(point)
    return found


def above_bound(rows: Sequence[Row], transform: str, coder: str) -> dict[int, Distances]:
    """Distance from Shannon's bound in dB, at the whole rates that all layers and seeds reach."""
    bound: dict[tuple[int, int], float] = {
        (r.config["layer"], r.config["bits"]): _db(r.value)
        for r in select(rows, "nmse", coder="shannon")
    }
    found: dict[int, Distances] = {}
    all_points = curves(rows, transform, coder)
    for (layer, seed), points in all_points.items():
        spent, error = zip(*points, strict=True)
        for rate in sorted({bits for _, bits in bound}):
            if min(spent) <= rate <= max(spent):
                here = float(np.interp(rate, spent, error)) - bound[layer, rate]
                found.setdefault(rate, {})[layer, seed] = here
    return {rate: each for rate, each in found.items() if len(each) == len(all_points)}


def text(study: Study, base: dict[str, Any]) -> str:
    """The report in Markdown."""
    rows = study.rows(**base)
    parts = [
        f"# Rotate or align: {base['model']}",
        f"Vectors of {base['text']}, {base['length']} tokens a window; axes, levels, steps and "
        f"bits fitted on {base['calibration']} (of a weight, on every other output). Numbers are "
        "means ± sd over layers and seeds. `above the bound` is the error in dB above Shannon's "
        "bound for Gaussian vectors of the test covariance, at the rate of the column, norms "
        "counted, interpolated between measured rates; a dash where a coder does not reach it. "
        "Axes, levels and code tables, which are stored once, are not counted: for a weight, axes "
        "that are fitted are as large as the matrix itself.",
    ]
    for tensor in dict.fromkeys(r.config["tensor"] for r in rows):
        here = select(rows, tensor=tensor)
        parts += [f"## {tensor}", answers(here), looks(here)]
        parts += [table(here, coder) for coder in CODERS]
    return "\n\n".join(p for p in parts if p)


def looks(rows: Sequence[Row]) -> str:
    """How the coordinates lie."""
    lines = []
    for name in _names(rows):
        cells = [_stat(rows, m, name).format(3) for m in LOOKS]
        lines.append([name, *cells])
    return markdown(["coordinates", *LOOKS.values()], lines)


def table(rows: Sequence[Row], coder: str) -> str:
    """Distance from the bound in dB, by coordinates and rate."""
    each = {name: above_bound(rows, name, coder) for name in _names(rows)}
    rates = sorted({rate for found in each.values() for rate in found})
    if not rates:
        return ""
    lines = [
        [name, *(stat(found[r].values()).format(3) if r in found else "-" for r in rates)]
        for name, found in each.items()
        if found
    ]
    head = [f"`{coder}` ({CODERS[coder]}): above the bound, dB", *(f"{r} bit" for r in rates)]
    return markdown(head, lines)


def answers(rows: Sequence[Row]) -> str:
    """Which coordinates win under which coder, and by how much."""
    names, said = _names(rows), []
    if {"identity", "haar"} <= set(names):
        (k, k0), (p, p0) = (
            (_stat(rows, m, "haar").mean, _stat(rows, m, "identity").mean)
            for m in ("kurtosis", "peak_to_rms")
        )
        said.append(
            f"Rotation flattens: kurtosis {k0:.3g} to {k:.3g}, peak over rms {p0:.3g} to {p:.3g}."
        )
    gains = ", ".join(f"{n} {_stat(rows, 'coding_gain_db', n).mean:.2f}" for n in names)
    said.append(f"Alignment concentrates: coding gain in dB, {gains}.")
    for coder in CODERS:
        each = {n: found for n in names if (found := above_bound(rows, n, coder))}
        rates = sorted(set.intersection(*map(set, each.values()))) if each else []
        best = {r: min(each, key=lambda n, r=r, each=each: _level(each[n][r])) for r in rates}
        if best:
            wins = ", ".join(f"{r} bit {n}" for r, n in best.items())
            said.append(f"Least error, `{coder}`: {wins}.")
        if rates and {"haar", "pca"} <= set(each):
            gap = {r: _difference(each["haar"][r], each["pca"][r]) for r in rates}
            shown = ", ".join(f"{r} bit {g.mean:+.2f} ± {g.sd:.2f}" for r, g in gap.items())
            said.append(f"Error of haar over that of pca, `{coder}`, in dB: {shown}.")
    return "\n".join(f"- {line}" for line in said)


def _difference(mine: Distances, other: Distances) -> Stat:
    """Of layers and seeds against the mean of the other over seeds, layer by layer."""
    return stat(value - _level(other, layer) for (layer, _), value in mine.items())


def _level(distances: Distances, layer: int | None = None) -> float:
    """The mean, of one layer if it is given; 0 of none."""
    kept = [v for (at, _), v in distances.items() if layer in (None, at)]
    return stat(kept).mean if kept else 0.0


def figure(study: Study, base: dict[str, Any]) -> Any:
    """Error against that of haar, layer by layer: a line of panels a tensor, a panel a coder.

    Without haar, the distance from the bound.
    """
    rows = study.rows(**base)
    tensors = list(dict.fromkeys(r.config["tensor"] for r in rows))
    title = f"Rotate or align: {base['model']}"
    chart, axes = new_figure(len(tensors), len(CODERS), title)
    spare = dict(zip([n for n in _names(rows) if n not in COLORS], itertools.cycle(MORE_COLORS)))
    for line, tensor in zip(axes, tensors, strict=True):
        here = select(rows, tensor=tensor)
        against = "haar" in _names(here)
        line[0].set_ylabel("error in dB, against haar" if against else "dB above the bound")
        for panel, coder in zip(line, CODERS, strict=True):
            level = above_bound(here, "haar", coder)
            for name in _names(here):
                found = {
                    r: _difference(mine, level.get(r, {}))
                    for r, mine in above_bound(here, name, coder).items()
                    if r in level or not level
                }
                if not found:
                    continue
                panel.errorbar(
                    list(found), [s.mean for s in found.values()], [s.sd for s in found.values()],
                    fmt="o-", ms=3, lw=1.3, capsize=2, label=name,
                    color=COLORS.get(name) or spare[name],
                )  # fmt: skip
            panel.set_title(f"{tensor}, {coder}", fontsize=9)
            panel.set_visible(panel.has_data())
    for panel in axes[-1]:
        panel.set_xlabel("bits a number")
    marks = axes[0, 0].get_legend_handles_labels()
    chart.legend(*marks, loc="outside right upper", fontsize=8, frameon=False)
    return chart


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(r.config["transform"] for r in rows if "transform" in r.config))


def _stat(rows: Sequence[Row], metric: str, name: str) -> Stat:
    return summarize(rows, metric, transform=name)


def _at(row: Row) -> tuple[int, int | None, int]:
    return row.config["layer"], row.seed, row.config["bits"]


def _db(nmse: float) -> float:
    return 10 * math.log10(max(nmse, 1e-12))
