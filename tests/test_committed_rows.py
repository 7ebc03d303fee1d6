"""Committed rows speak one vocabulary: units of the field, one unit per metric."""

import importlib.util
import json
from pathlib import Path

import pytest

from isojax.report import read_rows

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "docs" / "rows.jsonl", *ROOT.glob("docs/results/*/rows.jsonl")]
UNITS = {
    "1", "count", "dB", "percent", "squared input units", "input units", "nats", "nats per token",
    "bits per element", "bytes", "bytes per token", "us", "ms", "GB/s", "tokens/s",
    "share of tokens", "probability", "count per layer",
}  # fmt: skip
LOSSES = ("nll", "delta_nll", "kl", "kl_mean", "kv_delta_nll", "w4a4_delta_nll", "induction_nll")


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.parent.name)
def rows(request):
    return read_rows(request.param)


@pytest.fixture(scope="module")
def migrate():
    spec = importlib.util.spec_from_file_location("m", ROOT / "scripts" / "migrate_rows.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_unit_is_known_and_a_metric_has_one(rows):
    found = {(row.metric, row.unit) for row in rows}
    assert {unit for _, unit in found} <= UNITS
    assert len({metric for metric, _ in found}) == len(found)
    assert {unit for metric, unit in found if metric in LOSSES} <= {"nats per token"}
    assert {unit for metric, unit in found if metric.endswith("_bits")} <= {"bits per element"}


def test_committed_rows_need_no_migration(rows, migrate):
    for row in rows:
        assert migrate.migrated(vars(row)) == vars(row)


def test_migration_renames_what_the_tables_say_and_keeps_the_rest(migrate, monkeypatch, tmp_path):
    monkeypatch.setattr(migrate, "KEYS", {("a", "transform"): "coordinates"})
    monkeypatch.setattr(migrate, "METRICS", {("*", "loss"): "nll"})
    monkeypatch.setattr(migrate, "VALUES", {("*", "coordinates"): {"massdiff": "mass_diff"}})
    row = {"experiment": "a", "config": {"transform": "massdiff", "bits": 3}, "seed": 0,
           "metric": "loss", "value": 0.1, "unit": "nat a token"}  # fmt: skip
    new = {"config": {"coordinates": "mass_diff", "bits": 3}, "metric": "nll",
           "unit": "nats per token"}  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | {"experiment": "b"}) + "\n")
    for _ in range(2):
        migrate.main([path])
        first, second = map(json.loads, path.read_text().splitlines())
        assert first == row | new
        assert second == row | new | {"experiment": "b", "config": row["config"]}
    with pytest.raises(SystemExit, match="one name"):
        migrate.migrated(row | {"config": {"transform": "haar", "coordinates": "pca"}})
