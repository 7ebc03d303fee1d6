"""Markdown tables made from rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from isojax.report.rows import Row
from isojax.report.stats import Stat, stat

Cell = Callable[[Stat], str]
Key = str | Callable[[Row], Any]


def markdown(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; a bar in a cell is escaped."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(str(c).replace("|", "\\|") for c in r) + " |" for r in rows)


def value_of(row: Row, key: Key) -> Any:
    """The value of a row under a key.

    A key is a function of the row, `metric`, `seed`, `unit` or `device`, or a name in the
    configuration, `-` where the row has none of that name.
    """
    if callable(key):
        return key(row)
    own = key in ("metric", "seed", "unit", "device")
    return getattr(row, key) if own else row.config.get(key, "-")


def pivot(
    rows: Iterable[Row],
    index: Sequence[str] | Mapping[str, Key],
    columns: Key | tuple[Key, ...],
    value: str | None = None,
    form: Cell | Mapping[Any, Cell] = Stat.format,
    *,
    order: Mapping[Any, str] | Sequence[Any] | None = None,
    count: bool = False,
) -> str:
    """A Markdown table: a line per values of the index, a column per values of `columns`.

    Lines and columns come in the order in which their values first appear. A cell shows all rows
    that agree in both, whatever their seed or window; a dash where there is none.

        pivot(rows, ["transform"], "metric")                    # a column per metric
        pivot(rows, {"d": "dim"}, ("dtype", "bits"), "nmse")    # one metric by dtype and bits

    Args:
        rows: the rows.
        index: keys that tell the lines apart, or heading -> key; see `value_of`.
        columns: the key that tells the columns apart, or a tuple of keys.
        value: the metric to show; None for all, where `columns` tells them apart.
        form: writes the statistics of a cell, `mean ± sd` by default; or one per column.
        order: values of the columns to show, from left to right, or value -> heading; tuples of
            values where `columns` is a tuple.
        count: show a last column, n, the largest number of rows in a cell of the line.
    """
    heads = index if isinstance(index, Mapping) else dict(zip(index, index, strict=True))
    cells: dict[tuple[Any, ...], dict[Any, list[float]]] = {}
    present: dict[Any, None] = {}  # a set that keeps its order
    for row in rows:
        if value is None or row.metric == value:
            line = cells.setdefault(tuple(value_of(row, key) for key in heads.values()), {})
            if isinstance(columns, tuple):
                at = tuple(value_of(row, key) for key in columns)
            else:
                at = value_of(row, columns)
            line.setdefault(at, []).append(row.value)
            present[at] = None

    def heading(at: Any) -> str:
        return ", ".join(map(str, at)) if isinstance(columns, tuple) else str(at)

    found = present.keys() if order is None else order
    shown = dict(found) if isinstance(found, Mapping) else {at: heading(at) for at in found}
    forms = form if isinstance(form, Mapping) else dict.fromkeys(shown, form)
    lines = [
        [
            *name,
            *(forms[at](stat(line[at])) if at in line else "-" for at in shown),
            *([max((len(line[at]) for at in shown if at in line), default=0)] if count else []),
        ]
        for name, line in cells.items()
    ]
    return markdown([*map(str, heads), *shown.values(), *(["n"] if count else [])], lines)
