"""Statistics over the rows of seeds and windows: mean, spread, paired differences."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from isojax.report.rows import Row


class Stat(NamedTuple):
    """Statistics of a set of numbers: mean, standard deviation (n - 1), n and range.

    The deviation of one number is 0; with numbers that are not finite it is NaN.
    """

    mean: float
    sd: float
    n: int
    low: float
    high: float

    @property
    def sem(self) -> float:
        """Standard error of the mean."""
        return self.sd / math.sqrt(self.n)

    def format(self, digits: int = 4) -> str:
        """`mean ± sd`, or only the number if there is one."""
        mean = _number(self.mean, digits)
        return mean if self.n == 1 else f"{mean} ± {_number(self.sd, 2)}"

    def with_error(self, decimals: int = 4) -> str:
        """`mean ± standard error`, with these decimals."""
        return f"{self.mean:.{decimals}f} ± {self.sem:.{decimals}f}"

    def percent(self) -> str:
        """A relative change as `mean ± sd [lowest, highest]` in percent, with signs."""
        if self.n == 1:
            return f"{self.mean:+.1%}"
        return f"{self.mean:+.1%} ± {self.sd:.1%} [{self.low:+.1%}, {self.high:+.1%}]"

    def with_range(self, digits: int = 4) -> str:
        """`mean ± sd [lowest, highest]`, or only the number if there is one."""
        if self.n == 1:
            return self.format(digits)
        low, high = _number(self.low, 3), _number(self.high, 3)
        return f"{self.format(digits)} [{low}, {high}]"


def _number(value: float, digits: int) -> str:
    """`digits` significant digits, but never fewer than the integer part has."""
    whole = abs(value) >= 10 ** min(digits, 3)
    return f"{value:,.0f}" if whole else f"{value:.{digits}g}"


def stat(values: Iterable[Any]) -> Stat:
    """The statistics of `values`, numbers or a vector of them.

    Raises:
        ValueError: there are none.
    """
    values = [float(value) for value in values]
    if not values:
        raise ValueError("stat needs at least one value, got none.")
    finite = all(map(math.isfinite, values))
    sd = (statistics.stdev(values) if len(values) > 1 else 0.0) if finite else math.nan
    return Stat(statistics.fmean(values), sd, len(values), min(values), max(values))


def least(found: Mapping[Any, Stat]) -> Any:
    """The name of the least mean if it is significantly below the second; else None.

    Significantly: by two standard errors of the difference between independent means. Means that
    are not finite do not count.
    """
    ranked = sorted((s.mean, name) for name, s in found.items() if math.isfinite(s.mean))
    if len(ranked) < 2:
        return None
    first, second = (found[name] for _, name in ranked[:2])
    noise = 2 * math.hypot(first.sem, second.sem)
    return ranked[0][1] if second.mean - first.mean > noise else None


def select(rows: Iterable[Row], metric: str | None = None, **config: Any) -> list[Row]:
    """The rows of a metric whose configuration has these values.

    A tuple allows several values, `...` any, and None stands for a name that a row lacks.
    """

    def holds(value: Any, wanted: Any) -> bool:
        if wanted is ...:
            return value is not None
        return value in wanted if isinstance(wanted, tuple) else value == wanted

    return [
        row
        for row in rows
        if metric in (None, row.metric)
        and all(holds(row.config.get(k), v) for k, v in config.items())
    ]


def distinct(rows: Iterable[Row], *names: str) -> list[Any]:
    """The values of a name in the configurations, in order of appearance; tuples for several names.

    Rows without one of the names do not count.
    """
    found = dict.fromkeys(at for _, at in _places(rows, names))
    return [values[0] for values in found] if len(names) == 1 else list(found)


def _places(rows: Iterable[Row], names: Sequence[str]) -> Iterator[tuple[Row, tuple[Any, ...]]]:
    """The rows that have all these names, with their values."""
    for row in rows:
        at = tuple(row.config.get(name) for name in names)
        if None not in at:
            yield row, at


def complete(
    rows: Iterable[Row], windows: int, point: Sequence[str], metric: str = "nll"
) -> list[Row]:
    """Rows of the first `windows`, and rows without a window, of points that have all of these.

    So an interrupted study does not compare means over different texts. Rows over all of another
    number of `windows` are left out.

    Args:
        rows: of one study.
        windows: number of windows that a point must have.
        point: names in the configuration that distinguish points.
        metric: recorded for every window.

    Raises:
        ValueError: a point has more rows than windows: two recipes have the same name.
    """

    def of(row: Row) -> tuple[Any, ...]:
        return tuple(row.config.get(name) for name in point)

    kept = [
        r
        for r in rows
        if r.config.get("window", 0) < windows and r.config.get("windows", windows) == windows
    ]
    read = Counter(of(r) for r in select(kept, metric))
    twice = sorted(str(p) for p, n in read.items() if n > windows)
    if twice:
        raise ValueError(f"rows hold other recipes of the same name: {twice}.")
    return [r for r in kept if read[of(r)] == windows]


def summarize(rows: Iterable[Row], metric: str, **config: Any) -> Stat:
    """Statistics of one metric over all seeds of a configuration.

    Raises:
        ValueError: there is no such row; the message names metric and configuration.
    """
    values = [row.value for row in select(rows, metric, **config)]
    if not values:
        raise ValueError(f"no row of {metric} has the configuration {config}.")
    return stat(values)


def summarize_by(rows: Iterable[Row], metric: str, *names: str, **config: Any) -> dict[Any, Stat]:
    """Statistics of one metric for each value of a name; see `summarize` and `distinct`."""
    rows = select(rows, metric, **config)
    found: dict[Any, list[float]] = {}
    for row, at in _places(rows, names):
        found.setdefault(at[0] if len(names) == 1 else at, []).append(row.value)
    return {at: stat(values) for at, values in found.items()}


def averaged(rows: Iterable[Row], *over: str) -> list[Row]:
    """Means over some names, such as the windows of one seed, as rows without these names.

    Args:
        rows: to average.
        over: names in the configuration, or `seed`.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        config = {name: value for name, value in row.config.items() if name not in over}
        seed = None if "seed" in over else row.seed
        rest = dataclasses.replace(row, config=config, seed=seed)
        groups.setdefault(rest.identity, []).append(rest)
    return [
        dataclasses.replace(group[0], value=statistics.fmean(row.value for row in group))
        for group in groups.values()
    ]


def frontier(points: Mapping[Any, tuple[float | int, float]]) -> list[Any]:
    """The names of points (cost, loss) with less loss than all others of at most their cost.

    In order of cost.
    """
    kept: list[Any] = []
    for name, (_, loss) in sorted(points.items(), key=lambda item: item[1]):
        if not kept or loss < points[kept[-1]][1]:
            kept.append(name)
    return kept


def against(
    rows: Iterable[Row],
    other: Mapping[str, Any],
    free: Iterable[str] = (),
    *,
    relative: bool = False,
) -> list[Row]:
    """Rows whose value is the difference from the paired row with the values `other`.

    Rows are paired if metric, seed and all configuration except the names in `other` and `free`
    agree. If the subtrahend has no seed, its only row is used for all seeds. Rows without a
    partner are left out; the difference of the subtrahend from itself is 0.

    Args:
        rows: to look in.
        other: configuration values of the subtrahend.
        free: further names in which the two may differ.
        relative: divide each difference by the subtrahend (by 0: infinite, unless both are 0).
    """
    rows, free = list(rows), {*other, *free}

    def rest(row: Row, seed: int | None) -> str:
        fixed = {k: v for k, v in row.config.items() if k not in free}
        return json.dumps([row.metric, fixed, seed], sort_keys=True)

    base = {rest(r, r.seed): r.value for r in select(rows, **other)}
    found = []
    for row in rows:
        match = base.get(rest(row, row.seed), base.get(rest(row, None)))
        if match is not None:
            difference = row.value - match
            if relative and difference:
                difference = difference / match if match else math.copysign(math.inf, difference)
            found.append(dataclasses.replace(row, value=difference))
    return found


def paired(
    rows: Iterable[Row],
    metric: str,
    one: Mapping[str, Any],
    other: Mapping[str, Any],
    *,
    relative: bool = False,
) -> Stat:
    """Statistics of the differences `one - other` of a metric, between rows that `against` pairs.

    Args:
        rows: to look in.
        metric: to compare.
        one: configuration values of the minuend.
        other: configuration values of the subtrahend.
        relative: divide each difference by the subtrahend (by 0: infinite, unless both are 0).

    Raises:
        ValueError: no rows are paired.
    """
    found = select(against(select(rows, metric), other, one, relative=relative), **one)
    if not found:
        raise ValueError(f"no rows of {metric} pair {dict(one)} with {dict(other)}.")
    return stat(row.value for row in found)
