"""The folder of one study: its configuration, rows, table and figure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isojax.report.figure import save_figure
from isojax.report.rows import Record, Row, Stamp
from isojax.report.stats import select

GROWS = ("seeds", "windows", "quick", "out", "dry_run")


class Study:
    """An output folder that a killed run takes up again where it stopped.

    `config.json` holds the settings. A folder that holds other settings is refused, since its
    rows would not belong together; settings that only ask for more rows (seeds, windows) may
    change.
    """

    def __init__(self, experiment: str, out: str | Path, settings: Any) -> None:
        """Open or make the folder.

        Args:
            experiment: its name.
            out: the folder.
            settings: a dataclass, or a dict, that JSON can hold.

        Raises:
            ValueError: the folder holds a run with other settings; names them.
        """
        self.folder = Path(out)
        self.settings = as_json(settings)
        path = self.folder / "config.json"
        new = {"experiment": experiment} | self.settings
        if path.exists():
            old = json.loads(path.read_text(encoding="utf-8"))
            changed = [
                f"{k} (there {old.get(k)!r}, now {new.get(k)!r})"
                for k in sorted(set(old) | set(new))
                if k not in GROWS and old.get(k) != new.get(k)
            ]
            if changed:
                raise ValueError(
                    f"{self.folder} holds a run with other settings: {', '.join(changed)}; "
                    "give another --out."
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(new, indent=2) + "\n", encoding="utf-8")
        self.record = Record(self.folder / "rows.jsonl")
        self.stamp = Stamp(experiment)

    def add(
        self, config: Mapping[str, Any], seed: int | None, metrics: Mapping[str, float]
    ) -> None:
        """Append a row for each metric, save those that are there already."""
        self.record.append(self.stamp.rows(config, seed, metrics))

    def has(self, config: Mapping[str, Any], seed: int | None, metrics: Sequence[str]) -> bool:
        """True if these rows are there."""
        return self.record.has(self.stamp.experiment, config, seed, metrics)

    def rows(self, metric: str | None = None, **config: Any) -> list[Row]:
        """The rows so far; see `isojax.report.select`."""
        return select(self.record.rows, metric, **config)

    def finish(self, text: str, figure: Any = None) -> None:
        """Write `table.md` and `figure.png`."""
        (self.folder / "table.md").write_text(text.rstrip() + "\n", encoding="utf-8")
        if figure is not None:
            save_figure(figure, self.folder / "figure.png")


def as_json(settings: Any) -> dict[str, Any]:
    """A dataclass or dict of settings as JSON holds it (tuples as lists, paths as strings)."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        settings = dataclasses.asdict(settings)
    return json.loads(json.dumps(settings, default=str))
