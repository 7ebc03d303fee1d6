"""The folder of one study: its configuration, rows, table and figure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from isojax.report.figure import save_figure
from isojax.report.rows import Record, Row, Stamp, Units, Values
from isojax.report.stats import select

FREE = ("quick", "out", "dry_run")  # say nothing of what is measured


class Study:
    """An output folder that a killed run takes up again where it stopped.

    `config.json` holds the settings; it is written with the first row. A folder that holds other
    settings is refused, since its rows would not belong together; those that only ask for more
    rows may change.
    """

    def __init__(
        self, experiment: str, out: str | Path, settings: Any, grows: Sequence[str] = ("seeds",)
    ) -> None:
        """Open or make the folder.

        Args:
            experiment: its name.
            out: the folder.
            settings: a dataclass, or a dict, that JSON can hold.
            grows: names of settings that only ask for more rows.

        Raises:
            ValueError: the folder holds a run with other settings; names them.
        """
        self.folder = Path(out)
        self.settings = new = {"experiment": experiment} | as_json(settings)
        self._config = self.folder / "config.json"
        if self._config.exists():
            old = _read_json(self._config)
            changed = [
                f"{k} (there {old.get(k)!r}, now {new.get(k)!r})"
                for k in sorted(set(old) | set(new))
                if k not in (*FREE, *grows) and old.get(k) != new.get(k)
            ]
            if changed:
                raise ValueError(
                    f"{self.folder} holds a run with other settings: {', '.join(changed)}; "
                    "give another --out."
                )
        self._grows = [k for k in grows if k in new]
        self._written = False
        self.record = Record(self.folder / "rows.jsonl")
        self.stamp = Stamp(experiment)

    def add(
        self,
        config: Mapping[str, Any],
        seed: int | None,
        values: Values,
        units: Units,
    ) -> None:
        """Append a row for each metric of `values`, save those that are there already.

        Args:
            config: what was measured.
            seed: number of the seed, or None.
            values: metric -> number.
            units: metric -> unit, of these metrics at least.

        Raises:
            ValueError: a metric has no unit.
        """
        self._append(self.stamp.rows(config, seed, values, units))

    def add_published(
        self,
        config: Mapping[str, Any],
        values: Values,
        units: Units,
        device: str = "published",
    ) -> None:
        """Append numbers that somebody else measured, so that tables are made of rows alone."""
        rows = self.stamp.rows(config, None, values, units)
        self._append(
            [dataclasses.replace(r, device=device, versions={}, commit="unknown") for r in rows]
        )

    def _append(self, rows: Sequence[Row]) -> None:
        if not self._written:
            if self._config.exists():
                old = _read_json(self._config)
                grown = {k: _union(old.get(k), self.settings[k]) for k in self._grows}
                self.settings = self.settings | grown
            _write(self._config, json.dumps(self.settings, indent=2) + "\n")
            self._written = True
        self.record.append(rows)

    def has(self, config: Mapping[str, Any], seed: int | None, metrics: Iterable[str]) -> bool:
        """True if the rows of all these metrics are there."""
        return self.record.has(self.stamp.experiment, config, seed, metrics)

    def rows(self, metric: str | None = None, **config: Any) -> list[Row]:
        """The rows so far; see `isojax.report.select`."""
        return select(self.record.rows, metric, **config)

    def finish(self, text: str, figure: Any = None) -> None:
        """Write `table.md` and `figure.png`."""
        _write(self.folder / "table.md", text.rstrip() + "\n")
        if figure is not None:
            save_figure(figure, self.folder / "figure.png")


def _union(old: Any, new: Any) -> Any:
    """What two runs asked for together: all of two lists, the larger of two numbers."""
    if isinstance(old, list) and isinstance(new, list):
        return [*old, *(item for item in new if item not in old)]
    return max(old, new) if isinstance(old, int) and isinstance(new, int) else new


def _write(path: Path, text: str) -> None:
    """Write a file so that a killed run leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a readable configuration ({error}).") from None


def as_json(settings: Any) -> dict[str, Any]:
    """A dataclass or dict of settings as JSON holds it (tuples as lists, paths as strings)."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        settings = dataclasses.asdict(settings)
    return json.loads(json.dumps(settings, default=str))
