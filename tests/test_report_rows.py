"""Rows: their fields, the file that holds them, and which of them a question is about."""

import dataclasses
import json

import pytest
from report_rows import UNITS, rows_of

from isojax import report
from isojax.report import Record, read_rows, select, summarize


def test_a_row_has_the_fields_of_the_schema(stamp):
    (row,) = stamp.rows({"bits": 3}, 0, {"nll": 1.5}, UNITS)
    fields = json.loads(json.dumps(dataclasses.asdict(row)))
    assert set(fields) == {
        "experiment", "config", "seed", "metric", "value", "unit", "device", "versions",
        "commit", "started", "source",
    }  # fmt: skip
    assert set(fields["versions"]) == {"python", "jax", "isojax"}
    assert (fields["unit"], fields["value"], fields["seed"]) == ("nats per token", 1.5, 0)
    assert fields["started"].endswith("+00:00")


def test_rows_read_back_equal_what_was_appended(tmp_path, stamp):
    rows = rows_of(stamp, [1.0, 2.0], bits=3)
    Record(tmp_path / "rows.jsonl").append(rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows


def test_appending_twice_doubles_nothing(tmp_path, stamp):
    rows = rows_of(stamp, [1.0, 2.0], bits=3)
    record = Record(tmp_path / "rows.jsonl")
    record.append(rows)
    record.append(rows)
    Record(tmp_path / "rows.jsonl").append([*rows, *rows_of(stamp, [5.0], bits=4)])
    assert len(read_rows(tmp_path / "rows.jsonl")) == 3


@pytest.mark.parametrize("cut", [1, 10, 200])
def test_a_torn_last_line_is_cut_off_and_its_row_written_again(tmp_path, stamp, cut):
    path = tmp_path / "rows.jsonl"
    rows = rows_of(stamp, [1.0, 2.0, 3.0], bits=3)
    Record(path).append(rows)
    path.write_bytes(path.read_bytes()[:-cut])
    record = Record(path)
    assert not record.has("test", {"bits": 3}, 2, ["mse"])
    assert record.has("test", {"bits": 3}, 1, ["mse"])
    record.append(rows)
    assert read_rows(path) == rows


def test_the_order_of_configuration_names_does_not_matter(tmp_path, stamp):
    record = Record(tmp_path / "rows.jsonl")
    record.append(stamp.rows({"a": 1, "b": 2}, None, {"mse": 1.0}, UNITS))
    assert record.has("test", {"b": 2, "a": 1}, None, ["mse"])
    assert not record.has("test", {"b": 2, "a": 1}, None, ["mse", "nll"])


def test_a_line_that_is_no_row_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"experiment": 1}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl: line 1 is no row"):
        read_rows(path)


def test_select_and_summarize_take_values_and_alternatives(stamp):
    rows = [r for b in (2, 3, 4) for r in rows_of(stamp, [float(b), b + 1.0], bits=b)]
    assert len(select(rows, bits=(2, 3))) == 4
    assert summarize(rows, "mse", bits=4).mean == 4.5
    with pytest.raises(ValueError, match="no row of nll"):
        summarize(rows, "nll", bits=4)


def test_points_that_lack_a_window_are_left_out(stamp):
    rows = [
        row
        for method, windows in (("whole", (0, 1, 2)), ("cut short", (0,)))
        for window in windows
        for row in stamp.rows(
            {"method": method, "window": window}, 0, {"nll": 1.0, "cosine": 0.9}, UNITS
        )
    ]
    rows += stamp.rows({"method": "whole"}, None, {"bytes": 8.0}, UNITS)
    rows += stamp.rows({"method": "cut short"}, None, {"bytes": 8.0}, UNITS)
    found = report.complete(rows, 2, ["method"])
    assert {r.config["method"] for r in found} == {"whole"} and len(found) == 5
    assert {r.config.get("window") for r in found} == {0, 1, None}
    with pytest.raises(ValueError, match="other recipes of the same name"):
        report.complete([*rows, *rows], 2, ["method"])
    totals = [
        r
        for n in (2, 3)
        for r in stamp.rows({"method": "whole", "windows": n}, 0, {"mse": n}, UNITS)
    ]
    assert [r.value for r in report.complete([*rows, *totals], 2, ["method"])][-1] == 2


def test_rows_are_told_apart_by_the_names_they_have(stamp):
    rows = [r for b in (4, 2, 4) for r in rows_of(stamp, [b, b + 2.0], bits=b)]
    rows += rows_of(stamp, [9.0], layer=1)
    assert report.distinct(rows, "bits") == [4, 2]
    assert report.distinct(rows, "bits", "layer") == []
    assert len(select(rows, bits=...)) == 6 and len(select(rows, bits=None)) == 1
    assert [r.value for r in select(rows, layer=...)] == [9.0]
    found = report.summarize_by(rows, "mse", "bits")
    assert {bits: (s.mean, s.n) for bits, s in found.items()} == {4: (5.0, 4), 2: (3.0, 2)}
    assert rows[0].with_config(bits=5, d=1).config == {"bits": 5, "d": 1} != rows[0].config
