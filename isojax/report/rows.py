"""The row: one measured number, with everything needed to trust it; and the file of rows."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, SupportsFloat

import jax

from isojax import __version__

Values = Mapping[str, SupportsFloat]  # metric -> number
Units = Mapping[str, str]  # metric -> unit


@dataclasses.dataclass(frozen=True)
class Row:
    """One number.

    Attributes:
        experiment: name of the experiment.
        config: flat dict of strings, numbers and booleans: what was measured.
        seed: number of the seed, or None where nothing is random.
        metric: what `value` is.
        value: the number.
        unit: of `value`.
        device: kind of device that computed it.
        versions: of python, jax and isojax.
        commit: of the source tree, or "unknown".
        started: when the run started, UTC, ISO 8601.
    """

    experiment: str
    config: dict[str, Any]
    seed: int | None
    metric: str
    value: float
    unit: str
    device: str
    versions: dict[str, str]
    commit: str
    started: str

    @property
    def identity(self) -> str:
        """What makes it this row and no other: all but the value and its circumstances."""
        return identity(self.experiment, self.config, self.seed, self.metric)


def identity(experiment: str, config: Mapping[str, Any], seed: int | None, metric: str) -> str:
    """The identity of a row that need not exist yet."""
    return json.dumps([experiment, config, seed, metric], sort_keys=True)


class Stamp:
    """What all rows of one run share."""

    def __init__(self, experiment: str) -> None:
        self.experiment = experiment
        self.device = jax.devices()[0].device_kind
        self.versions = {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "isojax": __version__,
        }
        self.commit = _commit()
        now = datetime.datetime.now(datetime.UTC)
        self.started = now.isoformat(timespec="seconds")

    def rows(
        self,
        config: Mapping[str, Any],
        seed: int | None,
        values: Values,
        units: Units,
    ) -> list[Row]:
        """One row per metric of `values`; `units` has the unit of each, and may have more.

        Raises:
            ValueError: a metric has no unit.
        """
        if not set(values) <= set(units):
            raise ValueError(f"no unit for {sorted(set(values) - set(units))} of {dict(config)}.")
        return [
            Row(
                self.experiment, dict(config), seed, metric, float(value), units[metric],
                self.device, self.versions, self.commit, self.started,
            )
            for metric, value in values.items()
        ]  # fmt: skip


class Record:
    """An append-only file of rows that survives being killed.

    Opening it reads what is there and cuts off a last line that was torn. `append` writes in one
    call and leaves out rows that are there already, so that a run started again neither loses
    nor doubles one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        if path.exists():
            whole = _cut_torn_line(path)
            self.rows = [_parse(line, path, i) for i, line in enumerate(whole.splitlines(), 1)]
        self._known = {row.identity for row in self.rows}

    def append(self, rows: Iterable[Row]) -> None:
        """Add those of `rows` that are not there yet; on disk when this returns."""
        new = {row.identity: row for row in rows if row.identity not in self._known}
        if not new:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in new.values())
        with open(self.path, "ab", buffering=0) as file:
            file.write(lines.encode())
            os.fsync(file.fileno())
        self._known |= set(new)
        self.rows += new.values()

    def has(
        self, experiment: str, config: Mapping[str, Any], seed: int | None, metrics: Iterable[str]
    ) -> bool:
        """True if all these metrics are there."""
        return all(identity(experiment, config, seed, m) in self._known for m in metrics)


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a JSONL file.

    Raises:
        ValueError: a line is no row; names the file and the line.
    """
    text = Path(path).read_text(encoding="utf-8")
    return [_parse(line, Path(path), i) for i, line in enumerate(text.splitlines(), 1)]


def _parse(line: str, path: Path, number: int) -> Row:
    try:
        return Row(**json.loads(line))
    except (TypeError, ValueError):
        raise ValueError(f"{path}: line {number} is no row: {line[:60]!r}.") from None


def _cut_torn_line(path: Path) -> str:
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return whole.decode("utf-8")


def _commit() -> str:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
