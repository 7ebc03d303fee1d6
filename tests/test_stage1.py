"""Stage 1 as its users run it, on a small random model; and its theory against scipy and Max."""

import json

import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from experiments.stage1 import __main__ as stage1
from experiments.stage1.measure import theory
from experiments.stage1.report import TIMED
from isojax import quantizers
from isojax.report import read_rows, select

pytestmark = pytest.mark.slow

SMALL = ("--seeds", 2, "--dims", 128, "--bits", 3, "--dtypes", "float32", "--vectors", 512,
         "--coordinates", "rotor", "quaternion_full", "--repeats", 3,
         "--codebooks", "gaussian")  # fmt: skip


@pytest.fixture(scope="module")
def study(call):
    return call(stage1, *SMALL)


def rows(folder, metric=None, **config):
    return select(read_rows(folder / "rows.jsonl"), metric, **config)


@pytest.mark.parametrize("bits, distortion", [(2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_theory_is_the_table_of_max_for_the_gaussian(bits, distortion):
    levels = quantizers.lloyd_max_gaussian(bits).levels / 8
    assert theory(levels, 64, "gaussian") == pytest.approx(distortion, rel=2e-3)


@pytest.mark.parametrize("dim", [3, 64])
def test_theory_on_the_sphere_is_the_integral_of_scipy(dim):
    levels = np.asarray(quantizers.lloyd_max_sphere(2, dim).levels, np.float64)
    law = scipy.stats.beta((dim - 1) / 2, (dim - 1) / 2, -1, 2)
    cuts = (levels[1:] + levels[:-1]) / 2

    def density(z):
        return law.pdf(z) * np.min((z - levels) ** 2)

    want = scipy.integrate.quad(density, -1, 1, points=cuts, limit=200)[0] * dim
    assert theory(levels, dim, "sphere") == pytest.approx(want, rel=1e-4)


def test_unit_vectors_have_the_error_of_theory_in_all_coordinates(study):
    (expected,) = rows(study, "nmse", section="theory")
    found = rows(study, "nmse", section="synthetic")
    assert len(found) == 3 * 2
    for r in found:
        assert r.value == pytest.approx(expected.value, rel=0.04)


def test_published_costs_are_reproduced(study):
    published = rows(study, section="cost", source="IsoQuant (published)")
    ours = {
        (r.config["coordinates"], r.metric): r.value
        for r in rows(study, section="cost")
        if "source" not in r.config
    }
    found = [r for r in published if (r.config["coordinates"], r.metric) in ours]
    assert len(found) == 4
    for r in found:
        assert ours[r.config["coordinates"], r.metric] == r.value


def test_published_times_stand_apart_from_ours(study):
    published = rows(study, "time_us", source="IsoQuant (published)")
    assert len(published) == 18 * len(TIMED)
    assert {r.device for r in published}.isdisjoint(
        r.device for r in rows(study, "copy_ratio", section="time")
    )


def test_a_quaternion_keeps_the_energy_of_blocks_and_a_rotor_does_not(study):
    def cv(transform):
        return {
            r.value for r in rows(study, "block_energy_cv", tensor="key", coordinates=transform)
        }

    (own,) = cv("identity")
    assert all(v == pytest.approx(own, rel=1e-5) for v in cv("quaternion_full"))
    assert all(abs(v - own) > 1e-3 * own for v in cv("rotor"))


def test_the_worst_layer_is_no_better_than_the_mean_and_all_cases_are_there(study):
    mean = {(r.seed, json.dumps(r.config)): r.value for r in rows(study, "nmse", section="real")}
    worst = rows(study, "nmse_worst_layer", section="real")
    assert len(worst) == len(mean) == 2 * 3 * 2  # tensors, transforms, seeds
    for r in worst:
        assert r.value >= mean[r.seed, json.dumps(r.config)]


def test_report_and_figure_are_written(study):
    report = (study / "table.md").read_text()
    assert "be told from the identity" in report and "IsoQuant (published)" in report
    assert (study / "figure.png").stat().st_size > 10_000


def test_a_killed_run_goes_on_and_neither_loses_nor_doubles_a_row(call, study, tmp_path):
    (tmp_path / "config.json").write_bytes((study / "config.json").read_bytes())
    lines = (study / "rows.jsonl").read_bytes()
    (tmp_path / "rows.jsonl").write_bytes(lines[: len(lines) * 19 // 20])
    call(stage1, *SMALL, out=tmp_path)
    again = rows(tmp_path)
    assert len({r.identity for r in again}) == len(again)
    assert {r.identity for r in again} == {r.identity for r in rows(study)}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--coordinates", "fourier"], "fourier"),
        (["--dims", "0"], "dim must be"),
        (["--dims", "172"], "172"),
        (["--bits", "9"], "bits"),
        (["--dtypes", "float8"], "float8"),
        (["--seeds", "0"], "seeds"),
        (["--vectors", "0"], "vectors"),
        (["--repeats", "0"], "repeats"),
        (["--model", "/no/such/model"], "/no/such/model"),
    ],
)
def test_bad_input_ends_in_one_clear_line_and_code_2(refuses, arguments, message):
    refuses(message, stage1, *arguments)


def test_a_dry_run_prints_the_configuration_and_writes_nothing(call, capsys, tmp_path):
    call(stage1, "--dry-run", "--quick", out=tmp_path / "out")
    settings = json.loads(capsys.readouterr().out)
    assert settings["experiment"] == "stage1" and settings["seeds"] == 3
    assert not (tmp_path / "out").exists()
