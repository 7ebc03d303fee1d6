"""The one table for all: what it measures, and as its users run it."""

import jax
import numpy as np
import pytest

from experiments.compare import __main__ as compare
from experiments.compare.measure import ERRORS
from isojax import transforms
from isojax.report import read_rows, select, summarize

pytestmark = pytest.mark.slow

OWN = f"{__name__}:stretched"
GIVEN = ("--coordinates", "mass_diff@quaternion_full", "pca", OWN, "--seeds", 2, "--windows", 2,
         "--calibration-windows", 2, "--repeats", 2, "--tensor", "input:down_proj:1")  # fmt: skip


def stretched(key, samples):
    """Coordinates of someone's own: no isometry, so they cannot turn the residual stream."""
    return transforms.Diagonal(1 + jax.random.uniform(key, samples.dim))


@pytest.fixture(scope="module")
def study(call):
    return call(compare, *GIVEN)


def rows(folder, metric=None, **config):
    return select(read_rows(folder / "rows.jsonl"), metric, **config)


def test_every_method_has_every_measure_that_it_can_have(study):
    drawn = {"haar": 2, "mass_diff@quaternion_full": 2, OWN: 2, "identity": 1, "pca": 1}
    for name, seeds in drawn.items():
        mine = rows(study, coordinates=name)
        for metric in ("kurtosis", "effective_dims", "nmse", "outlier_mse"):
            assert len(select(mine, metric)) == seeds
        for metric in ("params", "fmas", "time_us", "copy_ratio"):
            assert len(select(mine, metric)) == 1
        assert len(select(mine, "rate_bits")) == seeds + 1
        for setting in ("KV3", "W4A4") if name != OWN else ("KV3",):
            for metric in ("delta_nll", "kl_mean", "same_top1", "rms_dp"):
                found = select(mine, metric, setting=setting)
                assert [r.seed for r in found] == ([0, 1] if seeds == 2 else [None] * 2)
            for metric in ("kl_median", "kl_p99", "kl_p999"):
                assert len(select(mine, metric, setting=setting, windows=2)) == 1
    assert not rows(study, setting="W4A4", coordinates=OWN)
    assert {r.metric for r in rows(study, quantizer="zero")} == set(ERRORS)


def test_measures_are_those_of_their_names(study):
    found = rows(study)

    def mean(metric, name, setting=None):
        return summarize(found, metric, coordinates=name, setting=setting).mean

    (zero,) = select(found, "nmse", quantizer="zero")
    (noise,) = select(found, "nmse", quantizer="gaussian_noise")
    assert zero.value == 1
    assert noise.value == pytest.approx(mean("nmse", "haar"), rel=0.2)
    assert mean("top_tenth_energy", "pca") == max(
        r.value for r in select(found, "top_tenth_energy")
    )
    assert mean("effective_dims", "pca") == min(r.value for r in select(found, "effective_dims"))
    assert mean("rate_bits", "pca") < mean("rate_bits", "haar")
    assert mean("fmas", "haar") == mean("params", "haar") == 64**2
    assert mean("fmas", "mass_diff@quaternion_full") == 8 * 64
    assert mean("rate_bits", "haar", "KV3") == 3 + 16 / 8 + 16 * 4 / 64  # norms, sinks
    for setting in ("KV3", "W4A4"):
        losses = np.array([r.value for r in select(found, "delta_nll", setting=setting)])
        assert np.isfinite(losses).all() and (losses != 0).all()
        assert all(r.value > 0 for r in select(found, "kl_mean", setting=setting))


def test_it_goes_on_and_says_what_it_found(call, study):
    before = (study / "rows.jsonl").read_bytes()
    call(compare, *GIVEN, out=study)
    assert (study / "rows.jsonl").read_bytes() == before
    report = (study / "table.md").read_text()
    assert "| mass_diff@quaternion_full |" in report and "Rank correlation over 5" in report
    assert (study / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--coordinates", "spin"),
        ("--seeds", 0),
        ("--repeats", 0),
        ("--tensor", "hidden:99"),
        ("--tensor", "weight:q_proj:0"),
    ],
)
def test_it_refuses_what_it_does_not_know(refuses, flag, value):
    refuses(str(value), compare, flag, value)
