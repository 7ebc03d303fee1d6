"""Statistics of rows: means, paired differences, and which of several is the least."""

import statistics

import jax.numpy as jnp
import pytest
from report_rows import UNITS, rows_of

from isojax import report
from isojax.report import against, least, paired, stat


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
    assert stat(jnp.asarray(values)) == s
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


def test_a_relative_difference_from_zero_is_infinite_or_none(stamp):
    rows = stamp.rows({"t": "a"}, None, {"mse": 1.0}, UNITS) + stamp.rows(
        {"t": "b"}, None, {"mse": 0.0}, UNITS
    )
    assert paired(rows, "mse", {"t": "a"}, {"t": "b"}, relative=True).mean == float("inf")
    assert paired(rows, "mse", {"t": "b"}, {"t": "b"}, relative=True).mean == 0.0
