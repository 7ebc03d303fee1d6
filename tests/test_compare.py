"""The one table for all: what it measures, and as its users run it."""

import numpy as np
import pytest

from experiments import compare
from isojax.report import read_rows, select, summarize

GIVEN = ("--methods", "massdiff@quaternion_full", "pca", "--seeds", 2, "--windows", 2,
         "--calibration-windows", 2, "--repeats", 2, "--tensor", "input:down_proj:1")  # fmt: skip


@pytest.fixture(scope="module")
def study(call):
    return call(compare, *GIVEN)


def rows(folder, metric=None, **config):
    return select(read_rows(folder / "rows.jsonl"), metric, **config)


def test_every_method_has_every_measure_that_it_can_have(study):
    drawn = {"haar": 2, "massdiff@quaternion_full": 2, "identity": 1, "pca": 1}
    for name, seeds in drawn.items():
        for metric in ("kurtosis", "effective_dims", "nmse", "rate_bits", "outlier_mse"):
            assert len(rows(study, metric, method=name)) == seeds
        for metric in ("params", "fmas", "time_us", "copy_ratio"):
            assert len(rows(study, metric, method=name)) == 1
        assert len(rows(study, "kv_delta_nll", method=name)) == 2
        assert len(rows(study, "w4a4_delta_nll", method=name)) == 2
    assert not rows(study, "kv_delta_nll", method="zero")


def test_measures_are_those_of_their_names(study):
    found = rows(study)

    def mean(metric, name):
        return summarize(found, metric, method=name).mean

    assert mean("nmse", "zero") == 1
    assert mean("nmse", "gaussian_noise") == pytest.approx(mean("nmse", "haar"), rel=0.2)
    assert mean("top_tenth_energy", "pca") == max(
        r.value for r in select(found, "top_tenth_energy")
    )
    assert mean("effective_dims", "pca") == min(r.value for r in select(found, "effective_dims"))
    assert mean("rate_bits", "pca") < mean("rate_bits", "haar")
    assert mean("fmas", "haar") == mean("params", "haar") == 64**2
    assert mean("fmas", "massdiff@quaternion_full") == 8 * 64
    losses = np.array([r.value for r in select(found, "w4a4_delta_nll")])
    assert np.isfinite(losses).all() and (losses != 0).all()


def test_it_goes_on_and_says_what_it_found(call, study):
    before = (study / "rows.jsonl").read_bytes()
    call(compare, *GIVEN, out=study)
    assert (study / "rows.jsonl").read_bytes() == before
    report = (study / "table.md").read_text()
    assert "| massdiff@quaternion_full |" in report and "Rank correlation over 4" in report
    assert (study / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--methods", "spin"),
        ("--seeds", 0),
        ("--repeats", 0),
        ("--tensor", "hidden:99"),
        ("--tensor", "weight:q_proj:0"),
    ],
)
def test_it_refuses_what_it_does_not_know(refuses, flag, value):
    refuses(str(value), compare, flag, value)
