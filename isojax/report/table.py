"""Markdown tables made from rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from isojax._core.checks import nearest
from isojax.report.rows import Row
from isojax.report.stats import Stat, select, stat

Cell = Callable[[Stat], str]
Key = str | Callable[[Row], Any]
OWN = ("metric", "seed", "unit", "device")


def markdown(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; a bar in a cell is escaped.

    Raises:
        ValueError: a line has another number of cells than the header.
    """
    rows = [header, ["---"] * len(header), *map(list, lines)]
    short = [row for row in rows if len(row) != len(header)]
    if short:
        raise ValueError(f"a line must have {len(header)} cells, got {short[0]}.")
    return "\n".join("| " + " | ".join(str(c).replace("|", "\\|") for c in r) + " |" for r in rows)


def bullets(lines: Iterable[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {line}" for line in lines)


def value_of(row: Row, key: Key) -> Any:
    """The value of a row under a key.

    A key is a function of the row, `metric`, `seed`, `unit` or `device`, or a name in the
    configuration; the value is `-` where the row has no such name.
    """
    if callable(key):
        return key(row)
    return getattr(row, key) if key in OWN else row.config.get(key, "-")


def pivot(
    rows: Iterable[Row],
    index: Sequence[str] | Mapping[str, Key],
    columns: Key | tuple[Key, ...],
    value: str | None = None,
    form: Cell | Mapping[Any, Cell] = Stat.format,
    *,
    order: Mapping[Any, str] | Sequence[Any] | None = None,
    count: bool = False,
    over: Sequence[str] = ("seed", "window"),
    rank: str | None = None,
) -> str:
    """A Markdown table: one line per value of the index, one column per value of `columns`.

    Lines and columns are in the order in which their values first appear, or lines in order of a
    metric. A cell shows the
    statistics of all rows with these values, which may differ only in the keys of `over`; a dash
    where there are none. Values without a seed count once, without a spread.

        pivot(rows, ["transform"], "metric")                    # a column per metric
        pivot(rows, {"d": "dim"}, ("dtype", "bits"), "nmse")    # one metric by dtype and bits

    Args:
        rows: the rows.
        index: keys of the lines, or heading -> key; see `value_of`.
        columns: the key of the columns, or a tuple of keys.
        value: the metric to show; None for all, if `columns` distinguishes them.
        form: writes the statistics of a cell, `mean ± sd` by default; or one per column.
        order: values of the columns to show, from left to right, or value -> heading; tuples of
            values where `columns` is a tuple.
        count: show a last column, n, the largest number of rows in a cell of the line.
        over: keys of replicates, over which a cell takes the mean.
        rank: metric whose least mean in a cell orders the lines, which must have it to be shown.

    Raises:
        ValueError: there are no rows (of the metric `value`), no row has a key, or the rows of a
            cell differ in further keys; names them.
    """
    rows = list(rows)
    heads = index if isinstance(index, Mapping) else dict(zip(index, index, strict=True))
    across = columns if isinstance(columns, tuple) else (columns,)
    shown_rows = [row for row in rows if value is None or row.metric == value]
    if not rows:
        raise ValueError("rows must be at least one, got none.")
    if not shown_rows:
        metrics = nearest(value, dict.fromkeys(row.metric for row in rows))
        raise ValueError(f"no row has the metric {value!r}; they have {', '.join(metrics)}.")
    _check_keys(shown_rows, (*heads.values(), *across))
    cells: dict[tuple[Any, ...], dict[Any, list[Row]]] = {}
    present: dict[Any, None] = {}  # a set that keeps its order
    for row in shown_rows:
        line = cells.setdefault(tuple(value_of(row, key) for key in heads.values()), {})
        places = tuple(value_of(row, key) for key in across)
        at = places if isinstance(columns, tuple) else places[0]
        line.setdefault(at, []).append(row)
        present[at] = None

    def heading(at: Any) -> str:
        return ", ".join(map(str, at)) if isinstance(columns, tuple) else str(at)

    found = present.keys() if order is None else order
    shown = dict(found) if isinstance(found, Mapping) else {at: heading(at) for at in found}
    forms = form if isinstance(form, Mapping) else dict.fromkeys(shown, form)
    lines = []
    for name, line in _ranked(cells, rank).items():
        found = {at: _replicates(line[at], over) for at in shown if at in line}
        counts = [max(map(len, found.values()), default=0)] if count else []
        told = [forms[at](stat(found[at])) if at in found else "-" for at in shown]
        lines.append([*name, *told, *counts])
    return markdown([*map(str, heads), *shown.values(), *(["n"] if count else [])], lines)


def _ranked(cells: dict[Any, dict[Any, list[Row]]], metric: str | None) -> dict[Any, Any]:
    """The lines of a table in order of the least mean of a metric in one of their cells."""
    if metric is None:
        return cells
    best: dict[Any, float] = {}
    for name, line in cells.items():
        each = [select(found, metric) for found in line.values()]
        if any(each):
            best[name] = min(stat(row.value for row in found).mean for found in each if found)
    return {name: cells[name] for name in sorted(best, key=best.__getitem__)}


def _check_keys(rows: Sequence[Row], keys: Iterable[Key]) -> None:
    names = dict.fromkeys([*OWN, *(name for row in rows for name in row.config)])
    for key in keys:
        if rows and isinstance(key, str) and key not in names:
            raise ValueError(f"no row has {key!r}; they have {', '.join(nearest(key, names))}.")


def _replicates(rows: Sequence[Row], over: Sequence[str]) -> list[float]:
    """The values of a cell; those that are equal for all seeds count once.

    Raises:
        ValueError: the rows are no replicates.
    """
    names = dict.fromkeys(["metric", *(name for row in rows for name in row.config)])
    left = [n for n in names if n not in over and len({value_of(row, n) for row in rows}) > 1]
    if left or "seed" not in over and len({row.seed for row in rows}) > 1:
        first = rows[0]
        raise ValueError(
            f"a cell pools rows that differ in {', '.join(left or ['seed'])}, such as those of "
            f"{first.metric} at {first.config}: name it in index or columns, in over if these are "
            "replicates, or select rows."
        )
    alike: dict[str, list[float]] = {}
    for row in rows:
        alike.setdefault(json.dumps(row.config, sort_keys=True), []).append(row.value)
    each = ([values[0]] if len({*values}) == 1 else values for values in alike.values())
    return [value for values in each for value in values]
