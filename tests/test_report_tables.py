"""Tables say what the rows say."""

import pytest
from report_rows import UNITS, rows_of

from isojax.report import pivot


def test_lines_of_a_table_are_ranked_by_their_least_cell(stamp):
    rows = [
        row
        for t, losses in (("a", (5.0, 2.0)), ("b", (1.0, 9.0)), ("c", (3.0, 3.0)))
        for bits, loss in zip((2, 3), losses, strict=True)
        for row in stamp.rows({"t": t, "bits": bits}, None, {"nll": loss, "mse": 0.0}, UNITS)
    ]
    rows += stamp.rows({"t": "none", "bits": 2}, None, {"mse": 0.0}, UNITS)
    table = pivot(rows, ["t"], ("metric", "bits"), rank="nll")
    assert [line.split()[1] for line in table.splitlines()[2:]] == ["b", "a", "c"]


def test_a_table_shows_mean_spread_n_and_what_is_missing(stamp):
    rows = rows_of(stamp, [1.0, 3.0], t="haar") + stamp.rows(
        {"t": "a|b"}, None, {"nll": 2.0}, UNITS
    )
    order = {"mse": "MSE", "nll": "nll"}
    lines = pivot(rows, ["t"], "metric", order=order, count=True).splitlines()
    assert lines[0] == "| t | MSE | nll | n |"
    assert lines[2] == "| haar | 2 ± 1.4 | - | 2 |"
    assert lines[3] == r"| a\|b | - | 2 | 1 |"


def test_a_pivot_shows_all_rows_that_agree_in_line_and_column(stamp):
    rows = [
        *rows_of(stamp, [1.0, 3.0], t="haar", bits=3, dim=8),
        *rows_of(stamp, [5.0], t="pca", bits=2, dim=8),
        *rows_of(stamp, [7.0], t="haar", bits=2, dim=16),
        *rows_of(stamp, [9.0], metric="nll", t="haar", bits=2),
    ]
    mean = "{0.mean:g}".format
    assert pivot(rows, {"d": "dim"}, "bits", "mse", mean).splitlines() == [
        "| d | 3 | 2 |", "| --- | --- | --- |", "| 8 | 2 | 5 |", "| 16 | - | 7 |",
    ]  # fmt: skip
    lines = pivot(rows, ["t"], ("dim", "bits"), "mse", mean, count=True).splitlines()
    assert lines[0] == "| t | 8, 3 | 8, 2 | 16, 2 | n |"
    assert lines[2:] == ["| haar | 2 | - | 7 | 2 |", "| pca | - | 5 | - | 1 |"]
    pool = ("seed", "t", "dim")
    ordered = pivot(rows, ["metric"], "bits", form=mean, order=(2, 3, 4), over=pool).splitlines()
    assert ordered == [
        "| metric | 2 | 3 | 4 |", "| --- | --- | --- | --- |", "| mse | 6 | 2 | - |",
        "| nll | 9 | - | - |",
    ]  # fmt: skip
    each = pivot(rows, [], "metric", form={"mse": mean, "nll": lambda s: f"{s.n} rows"},
                 over=(*pool, "bits"))  # fmt: skip
    assert each.splitlines()[2] == "| 4 | 1 rows |"
    keyed = pivot(rows, {"double": lambda r: 2 * r.config["bits"]}, "seed", "mse", mean, over=pool)
    assert keyed.splitlines()[2:] == ["| 6 | 1 | 3 |", "| 4 | 6 | - |"]


def test_a_table_pools_replicates_alone(stamp):
    rows = [
        row
        for t in ("key", "value")
        for bits in (2, 3)
        for row in rows_of(stamp, [1.0 * bits, 2.0 * bits], tensor=t, bits=bits)
    ]
    with pytest.raises(ValueError, match="a cell pools rows that differ in tensor, bits, such as"):
        pivot(rows, [], "metric")
    with pytest.raises(ValueError, match="a cell pools rows that differ in tensor, such as"):
        pivot(rows, ["bits"], "metric")
    with pytest.raises(ValueError, match="a cell pools rows that differ in metric"):
        more = rows_of(stamp, [1.0], metric="nll", tensor="key", bits=2)
        pivot([*rows, *more], ["bits", "tensor"], "device")
    with pytest.raises(ValueError, match="a cell pools rows that differ in seed"):
        pivot(rows, ["bits", "tensor"], "metric", over=())
    lines = pivot(rows, ["bits"], "metric", count=True, over=("seed", "tensor")).splitlines()
    assert lines[2:] == ["| 2 | 3 ± 1.2 | 4 |", "| 3 | 4.5 ± 1.7 | 4 |"]


@pytest.mark.parametrize("index, columns", [(["bit"], "metric"), (["bits"], "tensr")])
def test_a_key_that_no_row_has_is_named(stamp, index, columns):
    rows = rows_of(stamp, [1.0], bits=2, tensor="key")
    with pytest.raises(ValueError, match=f"no row has '({index[0]}|{columns})'; they have .*bits"):
        pivot(rows, index, columns)


def test_a_table_without_rows_or_of_an_unknown_metric_is_refused(stamp):
    with pytest.raises(ValueError, match="rows must be at least one"):
        pivot(iter([]), ["kind"], "metric")
    rows = rows_of(stamp, [1.0], kind="haar")
    with pytest.raises(ValueError, match="no row has the metric 'nsme'; they have mse"):
        pivot(rows, ["kind"], "bits", "nsme")


def test_what_no_seed_changes_has_no_spread_and_counts_once(stamp):
    rows = [*rows_of(stamp, [2.0] * 24, t="identity"), *rows_of(stamp, [1.0, 3.0], t="haar")]
    lines = pivot(rows, ["t"], "metric", count=True).splitlines()
    assert lines[2:] == ["| identity | 2 | 1 |", "| haar | 2 ± 1.4 | 2 |"]
    several = [r for w in (1.0, 2.0) for r in rows_of(stamp, [w] * 3, t="identity", window=w)]
    assert pivot(several, ["t"], "metric", count=True).endswith("| identity | 1.5 ± 0.71 | 2 |")
