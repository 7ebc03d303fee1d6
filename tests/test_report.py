"""Rows survive being killed; tables, statistics and figures say what the rows say."""

import dataclasses
import json
import statistics

import jax.numpy as jnp
import numpy as np
import pytest

from isojax import report
from isojax.report import (
    Record,
    Stamp,
    Study,
    against,
    least,
    paired,
    pivot,
    read_rows,
    select,
    stat,
    summarize,
)  # fmt: skip

UNITS = {"mse": "1", "nll": "nats per token", "cosine": "1", "bytes": "bytes"}


@pytest.fixture
def stamp():
    return Stamp("test")


def rows_of(stamp, values, metric="mse", **config):
    return [r for s, v in enumerate(values) for r in stamp.rows(config, s, {metric: v}, UNITS)]


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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_statistics_of_numbers_that_are_not_finite_are_shown_and_raise_nothing(value):
    found = stat([1.0, value])
    assert not abs(found.mean) < float("inf") and found.sd != found.sd
    assert found.format() and found.n == 2


def test_statistics_agree_with_the_standard_library():
    values = [1.0, 2.0, 4.0, 8.0, 16.0]
    s = stat(values)
    assert (s.mean, s.sd, s.n) == (statistics.fmean(values), statistics.stdev(values), 5)
    assert (s.low, s.high) == (1.0, 16.0)
    assert s.sem == pytest.approx(statistics.stdev(values) / 5**0.5)
    with pytest.raises(ValueError):
        stat([])


def test_paired_differences_pair_seed_with_seed(stamp):
    rows = rows_of(stamp, [3.0, 5.0, 9.0], t="haar", bits=3)
    rows += rows_of(stamp, [1.0, 4.0, 6.0], t="none", bits=3)
    rows += rows_of(stamp, [100.0, 100.0, 100.0], t="none", bits=4)  # pairs with nothing
    s = paired(rows, "mse", {"t": "haar"}, {"t": "none"})
    assert (s.mean, s.n, s.low, s.high) == (2.0, 3, 1.0, 3.0)
    assert paired(rows, "mse", {"t": "haar"}, {"t": "none"}, relative=True).high == 2.0


def test_one_row_without_a_seed_pairs_with_every_seed(stamp):
    rows = rows_of(stamp, [3.0, 5.0], t="haar") + stamp.rows(
        {"t": "none"}, None, {"mse": 1.0}, UNITS
    )
    assert paired(rows, "mse", {"t": "haar"}, {"t": "none"}).mean == 3.0
    with pytest.raises(ValueError, match="pair"):
        paired(rows, "mse", {"t": "haar"}, {"t": "pca"})


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


def test_means_over_seeds_then_over_windows_weigh_every_window_alike(stamp):
    rows = rows_of(stamp, [1.0, 3.0], window=0, t="haar") + rows_of(
        stamp, [8.0], window=1, t="haar"
    )
    means = report.averaged(rows, "seed")
    assert [(r.value, r.seed, r.config["window"]) for r in means] == [
        (2.0, None, 0),
        (8.0, None, 1),
    ]
    (both,) = report.averaged(means, "window")
    assert both.value == 5.0 and both.config == {"t": "haar"}
    assert report.averaged(rows, "window")[0].value == 4.5  # of seed 0


def test_a_frontier_is_of_points_that_no_other_beats_in_both():
    points = {"a": (1, 5.0), "b": (2, 6.0), "c": (3, 2.0), "d": (3, 3.0), "e": (0, 9.0)}
    assert report.frontier(points) == ["e", "a", "c"]
    for name, (cost, loss) in points.items():
        beaten = any(c <= cost and v <= loss for n, (c, v) in points.items() if n != name)
        assert beaten == (name not in report.frontier(points))


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


def test_pairs_of_metrics_are_drawn_as_points_of_their_means(stamp):
    rows = [
        row
        for t, bits, x, y in (("a", 3, 3.0, 1.0), ("a", 2, 2.0, 4.0), ("b", 2, 2.5, 3.0))
        for i in (0, 1)
        for row in stamp.rows({"t": t, "bits": bits}, i, {"bytes": x, "nll": y + i}, UNITS)
    ]
    rows += rows_of(stamp, [1.0], "nll", t="c", bits=2)
    _, axes = report.new_figure(1, 1, "")
    found = report.draw_pairs(axes[0, 0], rows, "bytes", "nll", "t", "bits", report.deviations)
    assert {t: [(x, s.mean) for x, s in points] for t, points in found.items()} == {
        "a": [(2.0, 4.5), (3.0, 1.5)], "b": [(2.5, 3.5)],
    }  # fmt: skip
    assert [line.get_label() for line in axes[0, 0].lines] == ["a", "b"]


def test_times_in_turn_are_medians_of_calls_that_alternate():
    order = []
    calls = {name: lambda name=name: order.append(name) or jnp.zeros(()) for name in "ab"}
    times = report.times_in_turn(calls, 3)
    assert "".join(order) == "ab" * 5 and all(0 < t < 1e6 for t in times.values())


def test_paragraphs_of_a_report_are_apart_and_empty_ones_left_out(tmp_path):
    Study("test", tmp_path, {}).finish(["# A", "", report.bullets(["b", "c"])])
    assert (tmp_path / "table.md").read_text() == "# A\n\n- b\n- c\n"


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


def test_what_no_seed_changes_has_no_spread_and_counts_once(stamp):
    rows = [*rows_of(stamp, [2.0] * 24, t="identity"), *rows_of(stamp, [1.0, 3.0], t="haar")]
    lines = pivot(rows, ["t"], "metric", count=True).splitlines()
    assert lines[2:] == ["| identity | 2 | 1 |", "| haar | 2 ± 1.4 | 2 |"]
    several = [r for w in (1.0, 2.0) for r in rows_of(stamp, [w] * 3, t="identity", window=w)]
    assert pivot(several, ["t"], "metric", count=True).endswith("| identity | 1.5 ± 0.71 | 2 |")


@pytest.mark.parametrize(
    ("found", "want"),
    [
        ({"a": [1.0, 1.2, 1.1], "b": [2.0, 2.2, 2.1]}, "a"),
        ({"a": [1.0, 2.2, 1.1], "b": [1.2, 2.1, 1.3]}, None),  # within noise of the second
        ({"a": [1.0], "b": [1.1]}, "a"),  # nothing is random
        ({"a": [1.0], "b": [1.0]}, None),
        ({"a": [1.0, 1.1, 1.2]}, None),  # nothing to be better than
        ({"a": [float("nan")] * 2, "b": [1.0, 1.1], "c": [3.0, 3.1]}, "b"),
    ],
)
def test_the_least_is_one_beyond_noise_of_the_second(found, want):
    assert least({name: stat(values) for name, values in found.items()}) == want


def test_differences_are_those_of_pairs_and_keep_their_rows(stamp):
    rows = rows_of(stamp, [3.0, 6.0], t="haar", bits=3)
    rows += stamp.rows({"t": "none", "bits": 3}, None, {"mse": 2.0}, UNITS)
    rows += rows_of(stamp, [8.0], t="haar", bits=4)  # has no partner
    found = against(rows, {"t": "none"})
    assert [(r.config["t"], r.seed, r.value) for r in found] == [
        ("haar", 0, 1.0), ("haar", 1, 4.0), ("none", None, 0.0),
    ]  # fmt: skip
    assert [r.value for r in against(rows, {"t": "none"}, relative=True)] == [0.5, 2.0, 0.0]
    assert len(against(rows, {"t": "none"}, ["bits"])) == 4


def test_a_study_goes_on_and_refuses_other_settings(tmp_path):
    study = Study("s", tmp_path, {"bits": (2, 3), "seeds": 4})
    study.add({"bits": 2}, 0, {"mse": 1.0}, UNITS)
    again = Study("s", tmp_path, {"bits": (2, 3), "seeds": 9})
    assert again.has({"bits": 2}, 0, ["mse"])
    with pytest.raises(ValueError, match=r"bits \(there \[2, 3\], now \[2\]\).*--out"):
        Study("s", tmp_path, {"bits": (2,), "seeds": 4})
    with pytest.raises(ValueError, match="experiment"):
        Study("other", tmp_path, {"bits": (2, 3), "seeds": 4})
    (tmp_path / "config.json").write_text("")
    for hostile in ("", "[]", '"text"', "7", "[" * 100_000, "{" * 9, "\0"):
        (tmp_path / "config.json").write_text(hostile)
        with pytest.raises(ValueError, match=r"config\.json: not a readable"):
            Study("s", tmp_path, {"bits": (2, 3), "seeds": 4})


def test_another_value_of_a_row_is_refused_and_the_same_is_not(tmp_path):
    study = Study("s", tmp_path, {})
    study.add({"bits": 2}, 0, {"mse": 1.0}, UNITS)
    study.add({"bits": np.int64(2)}, 0, {"mse": jnp.float32(1)}, UNITS)
    with pytest.raises(ValueError, match=r"holds mse = 1 of .*bits.*now it is 99; give --overwr"):
        study.add({"bits": 2}, 0, {"mse": 99.0}, UNITS)
    assert [r.value for r in study.rows()] == [1.0]
    nan = float("nan")
    study.add({"bits": 3}, 0, {"mse": nan}, UNITS)
    study.add({"bits": 3}, 0, {"mse": nan}, UNITS)


def test_overwriting_begins_the_folder_anew_with_the_first_row(tmp_path):
    Study("s", tmp_path, {"bits": 2}).add({"bits": 2}, 0, {"mse": 1.0}, UNITS)
    study = Study("s", tmp_path, {"bits": 3}, overwrite=True)
    assert not study.rows() and len(read_rows(tmp_path / "rows.jsonl")) == 1
    study.add({"bits": 3}, 0, {"mse": 5.0}, UNITS)
    assert [r.value for r in read_rows(tmp_path / "rows.jsonl")] == [5.0]
    assert json.loads((tmp_path / "config.json").read_text())["bits"] == 3
    assert Study("s", tmp_path, {"bits": 3}).rows() == study.rows()


@pytest.mark.parametrize("value", [[1, 2], (1, 2), {"a": 1}, np.ones(2), 1j])
def test_a_configuration_holds_no_lists(tmp_path, value):
    with pytest.raises(ValueError, match="config: bits must be a string, a number or a boolean"):
        Study("s", tmp_path, {}).add({"bits": value}, 0, {"mse": 1.0}, UNITS)


def test_a_report_says_that_its_rows_are_of_uncommitted_code(tmp_path):
    for commit, said in (("0123456789ab", False), ("0123456789ab-dirty", True)):
        study = Study("s", tmp_path / commit, {})
        study.stamp.commit = commit
        study.add({"bits": 2}, 0, {"mse": 1.0}, UNITS)
        study.finish("text")
        table = (tmp_path / commit / "table.md").read_text()
        assert ("uncommitted changes: 0123456789ab-dirty" in table) == said


def test_a_relative_difference_from_zero_is_infinite_or_none(stamp):
    rows = stamp.rows({"t": "a"}, None, {"mse": 1.0}, UNITS) + stamp.rows(
        {"t": "b"}, None, {"mse": 0.0}, UNITS
    )
    assert paired(rows, "mse", {"t": "a"}, {"t": "b"}, relative=True).mean == float("inf")
    assert paired(rows, "mse", {"t": "b"}, {"t": "b"}, relative=True).mean == 0.0


def drawn(axes):
    return {line.get_label(): line.get_color() for line in axes.lines}


def test_a_figure_draws_mean_and_range(stamp, tmp_path):
    rows = [r for b in (2, 3) for r in rows_of(stamp, [float(b), b + 2.0], t="haar", bits=b)]
    figure, axes = report.new_figure(1, 2, "title")
    for panel, spread in zip(axes[0], (report.span, report.errors), strict=True):
        report.draw_lines(panel, rows, "mse", "bits", "t", spread=spread)
        (line,) = panel.lines
        assert list(line.get_ydata()) == [3.0, 4.0]
        assert line.get_label() == "haar"
        low, high = spread(stat([2.0, 4.0]))
        assert panel.collections[0].get_segments()[0][:, 1].tolist() == [low, high]
    report.save_figure(figure, tmp_path / "f.png")
    assert (tmp_path / "f.png").stat().st_size > 1000
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["haar"]
    with pytest.raises(ValueError, match="no row of nll to draw"):
        report.draw_lines(axes[0, 0], rows, "nll", "bits", "t")


def test_a_name_has_one_colour_in_a_figure_and_no_two_share_one(stamp):
    names = [f"method {i}" for i in range(14)]
    rows = [r for n in names for b in (2, 3) for r in rows_of(stamp, [1.0 * b], t=n, bits=b)]
    figure, axes = report.new_figure(1, 3, "title")
    report.draw_lines(axes[0, 0], select(rows, t=tuple(names[:6])), "mse", "bits", "t")
    report.draw_lines(axes[0, 1], select(rows, t=tuple(names[4:9])), "mse", "bits", "t")
    report.draw_ranked(axes[0, 2], {n: stat([1.0]) for n in (names[8], *names[10:], "haar")})
    colors = {}
    for panel in axes[0]:
        for name, color in drawn(panel).items():
            assert colors.setdefault(name, color) == color
    assert len(colors) == 14 == len(set(colors.values()))


def test_one_place_on_the_axis_is_drawn_as_a_ranking(stamp, tmp_path):
    values = {"b": [3.0, 5.0], "a": [7.0, 9.0], "c": [1.0, 2.0]}
    rows = [r for t, v in values.items() for r in rows_of(stamp, v, t=t, bits=3)]
    figure, axes = report.new_figure(1, 1, "title")
    labels = {"a": "first", "b": "second"}
    report.draw_lines(axes[0, 0], rows, "mse", "bits", "t", labels=labels)
    names = [text.get_text() for text in axes[0, 0].get_yticklabels()]
    assert names == ["c", "second", "first"]
    assert [line.get_xdata()[0] for line in axes[0, 0].lines] == [1.5, 4.0, 8.0]
    assert axes[0, 0].get_xlabel() == "bits: 3" and axes[0, 0].get_xscale() == "log"
    report.save_figure(figure, tmp_path / "f.png")
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {*names}
