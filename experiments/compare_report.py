"""What `compare` says about its rows: the table, what goes with what, a figure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from isojax.report import Row, Study, markdown, new_figure, select, stat, summarize
from isojax.report.figure import COLORS, MORE_COLORS

COLUMNS = {
    "kurtosis": "kurtosis",
    "peak_to_rms": "peak / rms",
    "effective_dims": "effective dims",
    "top_tenth_energy": "top tenth",
    "nmse": "NMSE at 3 bit",
    "rate_bits": "bits at NMSE .01",
    "outlier_mse": "outlier MSE",
    "noise_floor_mse": "floor MSE",
    "false_firings": "false firings",
    "missed_firings": "missed",
    "kv_delta_nll": "KV 3 bit",
    "kv_bits": "KV bits",
    "w4a4_delta_nll": "W4A4",
    "params": "params",
    "fmas": "FMAs",
    "copy_ratio": "time / pass",
}
LOSSES = ("kv_delta_nll", "w4a4_delta_nll")  # over windows: with a standard error
BEST = ("nmse", "rate_bits", "outlier_mse", "noise_floor_mse", *LOSSES)  # the lower the better
PAIRS = (
    ("kurtosis", "nmse"), ("top_tenth_energy", "rate_bits"), ("peak_to_rms", "w4a4_delta_nll"),
)  # fmt: skip


def text(study: Study, base: dict[str, Any]) -> str:
    """The report in Markdown."""
    rows = study.rows(**base)
    exact = summarize(rows, "nll", method="none")
    said = [
        f"# Every transform by every measure: {base['model']}",
        f"Columns to `missed`: the tensor {base['tensor']} on {exact.n} windows of "
        f"{base['length']} tokens of {base['text']}, mean ± sd over seeds. `effective dims` "
        "(exponential of the entropy) and `top tenth` are of the energy of the coordinates; NMSE "
        "has one absmax scale a vector; `bits at NMSE .01` are the entropy with one step and a "
        "code for each coordinate, its frequencies those of the calibration text; outliers (top 1% "
        "of |x|), the floor (lowest 90%) and firings have one scale for the tensor. `KV 3 bit` "
        "(keys and values centred, 4 sinks exact; fixed levels, for pca levels fitted to each "
        "coordinate and bits where they matter; axes for each head) and `W4A4` (int4, a scale a "
        "row and a token, to nearest; axes for all layers and heads) are nat a token lost against "
        f"{exact.mean:.4f}, ± standard error over windows and seeds. `KV bits` are bits a number, "
        "norms and exact tokens counted. Parameters and FMAs of one "
        "vector; time beside a pass over the tensor (x + 1). Fitted on "
        f"{base['calibration']}. A dash: the method has no such form here (learned axes of "
        "down_proj's input are a Hadamard rotation, which is online). Bold: the least of a column.",
        lines(rows),
        "\n".join(f"- {line}" for line in answers(rows)),
    ]
    return "\n\n".join(part for part in said if part)


def lines(rows: Sequence[Row]) -> str:
    """A line a method."""
    names = [n for n in dict.fromkeys(r.config["method"] for r in rows) if n != "none"]
    real = [n for n in names if select(rows, "fmas", method=n)]
    best = {}
    for metric in BEST:
        means = {n: _mean(rows, metric, n) for n in real if select(rows, metric, method=n)}
        best[metric] = min(means, key=lambda n, m=means: m[n]) if means else None
    found = []
    for name in names:
        cells = []
        for metric in COLUMNS:
            values = [r.value for r in select(rows, metric, method=name)]
            found_here = stat(values) if values else None
            cell = "-" if found_here is None else found_here.format(3)
            if found_here and metric in LOSSES and found_here.n > 1:
                cell = f"{found_here.mean:.3f} ± {found_here.sem:.3f}"
            cells.append(f"**{cell}**" if best.get(metric) == name else cell)
        found.append([name, *cells])
    return markdown(["method", *COLUMNS.values()], found)


def answers(rows: Sequence[Row]) -> list[str]:
    """What the columns have to do with each other, over the methods."""
    said = []
    for one, other in PAIRS:
        pairs = [
            (_mean(rows, one, n), _mean(rows, other, n))
            for n in dict.fromkeys(r.config["method"] for r in select(rows, "fmas"))
            if select(rows, one, method=n) and select(rows, other, method=n)
        ]
        if len(pairs) > 2 and all(len(set(side)) > 1 for side in zip(*pairs, strict=True)):
            rho = statistics.correlation(*map(_ranks, zip(*pairs, strict=True)))
            said.append(
                f"Rank correlation over {len(pairs)} methods of {COLUMNS[one]} with "
                f"{COLUMNS[other]}: {rho:+.2f}."
            )
    return said


def figure(study: Study, base: dict[str, Any]) -> Any:
    """What flattening and concentration are worth: a panel for each pair of columns."""
    rows = study.rows(**base)
    chart, axes = new_figure(1, len(PAIRS), f"Rotate or align: {base['model']}")
    names = list(dict.fromkeys(r.config["method"] for r in select(rows, "fmas")))
    spare = iter(MORE_COLORS * 2)
    colors = {n: COLORS.get(n) or next(spare) for n in names}
    for panel, (one, other) in zip(axes[0], PAIRS, strict=True):
        for name in names:
            across, up = ([r.value for r in select(rows, m, method=name)] for m in (one, other))
            if across and up:
                x, y = stat(across), stat(up)
                spread = y.sem if other in LOSSES else y.sd
                panel.errorbar(
                    x.mean, y.mean, spread, x.sd, "o", ms=5, color=colors[name], label=name
                )
        panel.set_xlabel(COLUMNS[one])
        panel.set_ylabel(COLUMNS[other])
    axes[0, 0].set_xscale("log")
    axes[0, 0].set_xticks([2, 3, 5, 10, 20, 40], ["2", "3", "5", "10", "20", "40"])
    axes[0, 0].minorticks_off()
    axes[0, 0].legend(fontsize=6, frameon=False)
    return chart


def _ranks(values: Sequence[float]) -> list[float]:
    return [sorted(values).index(v) for v in values]


def _mean(rows: Sequence[Row], metric: str, name: str) -> float:
    return summarize(rows, metric, method=name).mean
