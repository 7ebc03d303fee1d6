"""Figures draw what the rows say."""

import pytest
from report_rows import UNITS, rows_of

from isojax import report
from isojax.report import select, stat


def drawn(axes):
    return {line.get_label(): line.get_color() for line in axes.lines}


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
