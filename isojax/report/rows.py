"""The row: one measured number with its provenance; and the file of rows."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, SupportsFloat

import jax
from filelock import FileLock

from isojax import __version__
from isojax._core.checks import as_scalar

Values = Mapping[str, SupportsFloat]  # metric -> number
Units = Mapping[str, str]  # metric -> unit
INSTEAD = "give --overwrite or another --out (in Python: overwrite=True or another folder)"


@dataclasses.dataclass(frozen=True)
class Row:
    """One number.

    Attributes:
        experiment: name of the experiment.
        config: flat dict of strings, numbers and booleans: what was measured.
        seed: number of the seed, or None where nothing is random.
        metric: name of the measured quantity.
        value: the number.
        unit: of `value`.
        device: kind of device that computed it.
        versions: of python, jax and isojax.
        commit: of the source tree, or "unknown".
        started: when the run started, UTC, ISO 8601.
        source: hash of the user's code that measured it, see `source_of`; empty without user code.
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
    source: str = ""

    @property
    def identity(self) -> str:
        """The key of the row: everything except the value and how it was measured."""
        return identity(self.experiment, self.config, self.seed, self.metric)

    def with_config(self, **config: Any) -> Row:
        """The same row with these values in its configuration, as a table or a figure needs it."""
        return dataclasses.replace(self, config=self.config | config)


def identity(experiment: str, config: Mapping[str, Any], seed: int | None, metric: str) -> str:
    """The key of a row, which need not exist."""
    return json.dumps([experiment, flat(config), seed, metric], sort_keys=True)


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration in the form of rows: scalars of numpy and JAX become plain numbers.

    Raises:
        ValueError: a value is no string, number, boolean or None; names it.
    """
    found = {name: as_scalar(value) for name, value in config.items()}
    for name, value in found.items():
        if not isinstance(value, str | int | float | None):
            raise ValueError(
                f"config: {name} must be a string, a number or a boolean, got {value!r}."
            )
    return found


class Stamp:
    """The fields that all rows of one run share."""

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
        source: str = "",
    ) -> list[Row]:
        """One row per metric of `values`; `units` maps at least these metrics to their units.

        Raises:
            ValueError: a metric has no unit, or a value of `config` has another type (see `flat`).
        """
        if not set(values) <= set(units):
            raise ValueError(f"no unit for {sorted(set(values) - set(units))} of {dict(config)}.")
        return [
            Row(
                self.experiment, flat(config), seed, metric, float(value), units[metric],
                self.device, self.versions, self.commit, self.started, source,
            )
            for metric, value in values.items()
        ]  # fmt: skip


class Record:
    """An append-only file of rows, safe against killed runs, which several runs may share.

    Opening it reads all complete lines. `append` takes a lock, reads the lines of other runs, cuts
    off an incomplete last line, and skips rows that exist already: no run loses or duplicates one.
    """

    def __init__(self, path: Path, anew: bool = False) -> None:
        """Open the file; `anew` empties it when the first row is appended."""
        self.path = path
        self.lock = FileLock(path.with_name(path.name + ".lock"))
        self.rows: list[Row] = []
        self._known: dict[str, Row] = {}
        self.anew = anew
        self._lines = self._bytes = 0  # that have been read
        if not anew:
            self._catch_up()

    def append(self, rows: Iterable[Row], keep: bool = False) -> None:
        """Add those of `rows` that do not exist yet; they are on disk when this returns.

        Args:
            rows: to add.
            keep: keep the old value of a row that exists with another value.

        Raises:
            ValueError: a row exists with another value, and `keep` is False.
            OSError: the file cannot be written; it is then unchanged.
        """
        rows = list(rows)
        if not rows:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.lock:
            if self.anew:
                self.path.unlink(missing_ok=True)
                self.anew = False
            self._catch_up()
            new: dict[str, Row] = {}
            for row in rows:
                old = self._known.get(row.identity) or new.setdefault(row.identity, row)
                if not keep and repr(old.value) != repr(row.value):
                    raise ValueError(
                        f"{self.path} holds {row.metric} = {old.value:g} of {row.config}, seed "
                        f"{row.seed}, now it is {row.value:g}; {INSTEAD}."
                    )
            lines = "".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in new.values())
            self._write(lines.encode())
            self._lines += len(new)
            self._known |= new
            self.rows += new.values()

    def has(
        self, experiment: str, config: Mapping[str, Any], seed: int | None, metrics: Iterable[str]
    ) -> bool:
        """Whether rows of all these metrics exist."""
        return all(identity(experiment, config, seed, m) in self._known for m in metrics)

    def find(self, name: str) -> Row | None:
        """The row of this identity, or None."""
        return self._known.get(name)

    def _catch_up(self) -> None:
        """Read the complete lines appended since."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            if file.seek(0, os.SEEK_END) < self._bytes:
                raise ValueError(
                    f"{self.path}: another run has started it again; restart this one."
                )
            file.seek(self._bytes)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        for row in _parsed(whole, self.path, self._lines + 1):
            if self._known.setdefault(row.identity, row) is row:
                self.rows.append(row)
        self._lines += whole.count(b"\n")
        self._bytes += len(whole)

    def _write(self, data: bytes) -> None:
        with open(self.path, "ab", buffering=0) as file:
            file.truncate(self._bytes)  # removes an incomplete line of a killed run
            rest = memoryview(data)
            try:
                while rest:  # a full disk accepts a part, then fails
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError as error:
                file.truncate(self._bytes)
                raise OSError(error.errno, error.strerror, str(self.path)) from None
        self._bytes += len(data)


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a JSONL file.

    Raises:
        ValueError: a line is no row; names the file and the line.
    """
    return list(_parsed(Path(path).read_bytes(), Path(path), 1))


def _parsed(data: bytes, path: Path, first: int) -> Iterator[Row]:
    """The rows of complete lines; `first` is the number of the first line."""
    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    for number, line in enumerate(lines, first):
        row = _parse(line)
        if row is None:
            shown = line[:60].decode(errors="replace")
            raise ValueError(f"{path}: line {number} is no row: {shown!r}.")
        yield row


_KINDS: dict[str, Any] = {
    "experiment": str, "config": dict, "seed": int | None, "metric": str, "value": float | int,
    "unit": str, "device": str, "versions": dict, "commit": str, "started": str, "source": str,
}  # fmt: skip


def _parse(line: bytes) -> Row | None:
    try:
        row = Row(**json.loads(line))
        flat(row.config)
        float(row.value)
    except (TypeError, ValueError, AttributeError, OverflowError, RecursionError):
        return None
    return row if all(isinstance(getattr(row, n), kind) for n, kind in _KINDS.items()) else None


def _commit() -> str:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
