"""The folder of one study: its configuration, rows, table and figure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from isojax.report.figure import save_figure
from isojax.report.rows import INSTEAD, Record, Row, Stamp, Units, Values, identity
from isojax.report.stats import select

FREE = ("quick", "out", "overwrite", "dry_run")  # do not affect what is measured


class Study:
    """An output folder, in which a killed run can be resumed.

    `config.json` holds the settings; it is written with the first row. A folder with other settings
    is refused, since its rows are not comparable. Settings that only add rows may change.
    """

    def __init__(
        self,
        experiment: str,
        out: str | Path,
        settings: Any,
        grows: Sequence[str] = ("seeds",),
        *,
        overwrite: bool = False,
    ) -> None:
        """Open or create the folder.

        Args:
            experiment: its name.
            out: the folder.
            settings: a dataclass, or a dict, that JSON can hold.
            grows: names of settings that only add rows.
            overwrite: empty the folder's record with the first row, whatever it holds.

        Raises:
            ValueError: the folder holds a run with other settings, which are named, or rows
                without settings.
        """
        self.folder = Path(out)
        self.settings = {"experiment": experiment} | as_json(settings)
        self._config = self.folder / "config.json"
        self._grows = [k for k in grows if k in self.settings]
        self._written = False
        self.record = Record(self.folder / "rows.jsonl", overwrite)
        self.stamp = Stamp(experiment)
        if not overwrite:
            self._there()

    def _there(self) -> dict[str, Any]:
        """The settings of the folder, empty for a new one.

        Raises:
            ValueError: they differ from these.
        """
        if not self._config.exists():
            if self.record.rows:
                raise ValueError(
                    f"{self.folder} holds rows and no config.json with their settings; {INSTEAD}."
                )
            return {}
        old, new = _read_json(self._config), self.settings
        changed = [
            f"{k} (there {old.get(k)!r}, now {new.get(k)!r})"
            for k in sorted(set(old) | set(new))
            if k not in (*FREE, *self._grows) and old.get(k) != new.get(k)
        ]
        if changed:
            raise ValueError(
                f"{self.folder} holds a run with other settings: {', '.join(changed)}; {INSTEAD}."
            )
        return old

    def add(
        self,
        config: Mapping[str, Any],
        seed: int | None,
        values: Values,
        units: Units,
        *,
        source: str = "",
        keep: bool = False,
    ) -> None:
        """Append one row per metric of `values`, except for rows that exist.

        Args:
            config: what was measured.
            seed: number of the seed, or None.
            values: metric -> number.
            units: metric -> unit, of these metrics at least.
            source: hash of the user's code that measured the values, see `source_of`.
            keep: keep the old value of a row that exists with another value.

        Raises:
            ValueError: a metric has no unit, or a row exists with another value.
        """
        self._append(self.stamp.rows(config, seed, values, units, source), keep)

    def add_published(
        self,
        config: Mapping[str, Any],
        values: Values,
        units: Units,
        device: str = "published",
    ) -> None:
        """Append published numbers, so that tables are made only from rows."""
        rows = self.stamp.rows(config, None, values, units)
        self._append(
            [dataclasses.replace(r, device=device, versions={}, commit="unknown") for r in rows]
        )

    def _append(self, rows: Sequence[Row], keep: bool = False) -> None:
        if not self._written:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.record.lock:  # another run may have started the folder since
                old = {} if self.record.anew else self._there()
                grown = {k: _union(old.get(k), self.settings[k]) for k in self._grows}
                self.settings = self.settings | grown
                _write(self._config, json.dumps(self.settings, indent=2) + "\n")
                self.record.append(rows, keep)
            self._written = True
        else:
            self.record.append(rows, keep)

    def check_source(
        self, config: Mapping[str, Any], seed: int | None, metrics: Iterable[str], source: str
    ) -> None:
        """Raise `ValueError` if existing rows were measured by other user code."""
        for metric in metrics:
            row = self.record.find(identity(self.stamp.experiment, config, seed, metric))
            if row and row.source not in ("", source):
                raise ValueError(
                    f"{self.folder} holds {metric} of {row.config} by user code that has "
                    f"changed since; {INSTEAD}."
                )

    def has(self, config: Mapping[str, Any], seed: int | None, metrics: Iterable[str]) -> bool:
        """Whether rows of all these metrics exist."""
        return self.record.has(self.stamp.experiment, config, seed, metrics)

    def rows(self, metric: str | None = None, **config: Any) -> list[Row]:
        """The rows so far; see `isojax.report.select`."""
        return select(self.record.rows, metric, **config)

    def finish(self, text: str | Iterable[str], figure: Any = None) -> None:
        """Write `table.md`, with a note on rows of uncommitted code, and `figure.png`.

        Args:
            text: in Markdown; or its paragraphs, of which empty ones are left out.
            figure: of matplotlib.
        """
        text = text if isinstance(text, str) else "\n\n".join(part for part in text if part)
        dirty = sorted({r.commit for r in self.record.rows if r.commit.endswith("-dirty")})
        if dirty:
            text += f"\n\nSome rows were measured with uncommitted changes: {', '.join(dirty)}."
        _write(self.folder / "table.md", text.rstrip() + "\n")
        if figure is not None:
            save_figure(figure, self.folder / "figure.png")


def _union(old: Any, new: Any) -> Any:
    """The union of the settings of two runs: of two lists, or the larger of two numbers."""
    if isinstance(old, list) and isinstance(new, list):
        return [*old, *(item for item in new if item not in old)]
    return max(old, new) if isinstance(old, int) and isinstance(new, int) else new


def _write(path: Path, text: str) -> None:
    """Write a file atomically: a killed run leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a readable configuration ({error}).") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: not a readable configuration (no object).")
    return found


def as_json(settings: Any) -> dict[str, Any]:
    """A dataclass or dict of settings in JSON types (tuples as lists, paths as strings)."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        settings = dataclasses.asdict(settings)
    return json.loads(json.dumps(settings, default=str))
