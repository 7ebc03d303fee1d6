"""Markdown tables made from rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from isojax.report.rows import Row
from isojax.report.stats import Stat, select, stat

Cell = Callable[[Stat], str]


def markdown(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; a bar in a cell is escaped."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(str(c).replace("|", "\\|") for c in r) + " |" for r in rows)


def table(
    rows: Sequence[Row],
    index: Mapping[str, str] | Sequence[str],
    metrics: Mapping[str, str] | Sequence[str],
    *,
    cell: Cell = Stat.format,
    spread: bool = True,
) -> str:
    """A Markdown table: a line for each configuration, a column for each metric.

    Lines come in the order in which their configurations first appear. A metric that a
    configuration lacks shows as a dash. A last column gives n, the number of seeds.

    Args:
        rows: the rows.
        index: configuration names that tell the lines apart (or name -> heading).
        metrics: metrics to show (or metric -> heading).
        cell: how to write the statistics of a cell; `mean ± sd` by default.
        spread: show the column n.
    """
    heads = dict(index) if isinstance(index, Mapping) else {n: n for n in index}
    shown = dict(metrics) if isinstance(metrics, Mapping) else {m: m for m in metrics}
    keys = list(dict.fromkeys(tuple(row.config.get(n, "-") for n in heads) for row in rows))
    lines = []
    for key in keys:
        mine = [r for r in rows if tuple(r.config.get(n, "-") for n in heads) == key]
        stats = [[r.value for r in select(mine, metric)] for metric in shown]
        cells = [cell(stat(values)) if values else "-" for values in stats]
        n = max((len(values) for values in stats), default=0)
        lines.append([*key, *cells, *([n] if spread else [])])
    return markdown([*heads.values(), *shown.values(), *(["n"] if spread else [])], lines)
