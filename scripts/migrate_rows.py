"""Bring committed rows to the vocabulary of today: units, metrics, names and values of keys.

    python scripts/migrate_rows.py              # docs/rows.jsonl and docs/results/*/rows.jsonl
    python scripts/migrate_rows.py FILE ...

What was renamed stands in the tables below; running it again changes nothing. Values, seeds and
the circumstances of a row stay as they are.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

# old unit -> new unit
UNITS = {
    "nat a token": "nats per token",
    "nat": "nats",
    "bit a number": "bits per element",
    "bit": "bits per element",
    "byte": "bytes",
    "token/s": "tokens/s",
}
# metric -> its unit, where rows have a wrong one
UNITS_OF = {
    "kl": "nats per token",
    "kv_delta_nll": "nats per token",
    "w4a4_delta_nll": "nats per token",
    "kv_bits": "bits per element",
    "bytes_per_token": "bytes per token",
    "compiles": "count",
}
# (experiment or "*", old metric) -> new metric
METRICS: dict[tuple[str, str], str] = {}
# (experiment or "*", old key) -> new key
KEYS: dict[tuple[str, str], str] = {}
# (experiment or "*", key as of today) -> {old value: new value}
VALUES: dict[tuple[str, str], dict[Any, Any]] = {}


def migrated(row: dict[str, Any]) -> dict[str, Any]:
    """The row in the vocabulary of today."""
    experiment = row["experiment"]

    def named(table: dict[tuple[str, str], Any], name: str, default: Any) -> Any:
        return table.get((experiment, name), table.get(("*", name), default))

    metric = named(METRICS, row["metric"], row["metric"])
    config = {named(KEYS, key, key): value for key, value in row["config"].items()}
    if len(config) < len(row["config"]):
        raise SystemExit(f"two keys of a row get one name: {row['config']}.")
    config = {key: named(VALUES, key, {}).get(value, value) for key, value in config.items()}
    unit = UNITS_OF.get(metric, UNITS.get(row["unit"], row["unit"]))
    return row | {"config": config, "metric": metric, "unit": unit}


def main(files: list[Path]) -> None:
    """Rewrite the files."""
    for path in files:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        new = [migrated(row) for row in rows]
        changed = sum(a != b for a, b in zip(rows, new, strict=True))
        path.write_text("".join(json.dumps(row) + "\n" for row in new), encoding="utf-8")
        print(f"{path}: {changed} of {len(rows)} rows changed")


if __name__ == "__main__":
    given = [Path(name) for name in sys.argv[1:]]
    main(given or [ROOT / "docs" / "rows.jsonl", *ROOT.glob("docs/results/*/rows.jsonl")])
