"""The study of block rotations as its users run it, on a small random model."""

import shutil

import jax
import jax.numpy as jnp
import pytest
from small_models import random_tokens, small_model

from experiments import block_merge, block_rotation
from experiments.block_answers import share
from experiments.block_points import DOWN, FORMATS, PERMUTATIONS, SITES, Point, quantizer_of
from experiments.block_trial import Trial
from isojax import learn
from isojax.models import WEIGHTS, Site, forward
from isojax.models.hooks import INPUTS
from isojax.models.rotate import rotate_down_online
from isojax.report import read_rows, select

GIVEN = ("--settings", "D4", "W4A4-gptq", "--blocks", 8, "--permutations", "none", "random",
         "massdiff", "--windows", 3, "--seeds", 2, "--calibration-windows", 1,
         "--gptq-windows", 2)  # fmt: skip


@pytest.fixture(scope="module")
def study(call):
    return call(block_rotation, *GIVEN)


@pytest.fixture(scope="module")
def trial():
    tokens = random_tokens(4, 64)
    return Trial(small_model(num_hidden_layers=2), tokens[:2], tokens[2:], fitted=1)


def rows(folder):
    return read_rows(folder / "rows.jsonl")


def test_every_point_has_all_windows_each_with_its_seed(study):
    found = select(rows(study), "delta_nll")
    points = [(0, "none"), (64, "none"), (8, "none"), (8, "random"), (8, "massdiff"), (0, "smooth")]
    for setting in ("D4", "W4A4-gptq"):
        for block, permutation in points:
            mine = select(found, setting=setting, block=block, permutation=permutation)
            assert sorted((r.config["window"], r.seed) for r in mine) == [(0, 0), (1, 1), (2, 0)]
    assert len(found) == 2 * len(points) * 3


def test_losses_are_paired_with_the_model_as_it_is(study):
    found = rows(study)
    exact = {r.config["window"]: r.value for r in select(found, "nll", setting="exact")}
    for row in select(found, "delta_nll"):
        (nll,) = [r for r in select(found, "nll", **row.config) if r.seed == row.seed]
        assert row.value == pytest.approx(nll.value - exact[row.config["window"]], abs=1e-9)
        assert row.value != 0


def test_it_goes_on_and_says_what_it_found(call, study):
    before = (study / "rows.jsonl").read_bytes()
    call(block_rotation, *GIVEN, out=study)
    assert (study / "rows.jsonl").read_bytes() == before
    report = (study / "table.md").read_text()
    assert "## W4A4-gptq, int4" in report and "| massdiff |" in report and "37.6" in report
    assert (study / "figure.png").stat().st_size > 10_000


def test_formats_stand_side_by_side_with_their_bits(call, study, tmp_path):
    for name in ("config.json", "rows.jsonl"):
        shutil.copy(study / name, tmp_path / name)
    out = call(block_rotation, *GIVEN[:1], "D4", *GIVEN[3:], "--formats", *FORMATS, out=tmp_path)
    report = (out / "table.md").read_text()
    table = report[report.index("## Formats of down_proj's input") :]
    # 1 of 64 numbers kept at 16 bits and a byte; scales of 16 bits a token, 8 bits for 32, 16
    bits = {"int4": 4.25, "int4sparse": 4.62, "int4g64": 4.25, "fp4": 4.25, "mxfp4": 4.25}
    for form, value in bits.items():
        assert f"| {form} | {value:.2f} | " in table, form
    assert "| nvfp4 | 4.5" in table


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--settings", "W2A2"), ("--permutations", "sorted"), ("--blocks", 7), ("--formats", "int3"),
     ("--seeds", 0)],
)  # fmt: skip
def test_it_refuses_what_it_does_not_know(refuses, flag, value):
    refuses(str(value), block_rotation, flag, value)


@pytest.mark.parametrize("permutation", [*PERMUTATIONS, "smooth"])
@pytest.mark.parametrize("setting", ["D4", "W16A4"])
def test_what_is_merged_changes_no_likelihood(trial, setting, permutation):
    point = Point(setting, "int4", 0 if permutation == "smooth" else 8, permutation)
    params, online = trial.quantized(point, 1)
    got = trial.nll_of(point._replace(setting="exact"), params, online, 0)
    assert got == pytest.approx(trial.nll(0), rel=1e-5)


@pytest.mark.parametrize("setting", ["W4A16", "W4A16-gptq"])
def test_weights_rounded_once_for_all_permutations_are_those_rounded_after_each(trial, setting):
    point = Point(setting, "int4", 8, "massdiff")
    got, online = trial.quantized(point, 0)
    exact, _ = trial.quantized(point._replace(setting="W16A4"), 0)  # merged, not rounded
    hooks = rotate_down_online(trial.config, online)
    sites = tuple(Site(site, layer) for site in SITES for layer in range(2))
    seen = forward(exact, trial.config, trial.calibration, hooks=hooks, capture=sites).captured
    want = exact
    for name in WEIGHTS:
        read = seen[f"input:{INPUTS[name]}"].reshape(2, -1, want["layers"][name]["kernel"].shape[1])
        hessian = jax.vmap(learn.second_moment)(read) if setting == "W4A16-gptq" else None
        want = block_merge.round_weights(want, quantizer_of("int4", True), (name,), hessian)
    for name in WEIGHTS:
        here, there = (params["layers"][name]["kernel"] for params in (got, want))
        same = jnp.isclose(here, there, atol=1e-5).mean()
        assert same > 0.99, name  # ties and the last bit of a Gram matrix


def test_smoothing_levels_the_inputs(trial):
    def peak(params):
        ids = trial.calibration[0]
        seen = block_merge.capture(params, trial.config, ids, SITES)
        return {site: float(jnp.abs(x).max()) for site, x in seen.items()}

    smoothed, _ = trial.quantized(Point("W16A4", "int4", 0, "smooth"), 0)
    plain, smooth = peak(trial.params), peak(smoothed)
    assert smooth[DOWN] < plain[DOWN]
    assert smooth["input:o_proj"] == pytest.approx(plain["input:o_proj"], rel=1e-5)


def test_gptq_loses_less_than_rounding_to_nearest(trial):
    lost = {}
    for setting in ("W4A16", "W4A16-gptq"):
        point = Point(setting, "int4", 8, "none")
        losses = [trial.nll_of(point, *trial.quantized(point, s), 0) - trial.nll(0) for s in (0, 1)]
        lost[setting] = sum(losses)
    assert lost["W4A16-gptq"] < lost["W4A16"]


def test_recovery_is_the_share_of_the_gap_with_its_jackknife_error():
    windows = range(4)
    none = {i: 1.0 + 0.1 * i for i in windows}
    full = {i: 0.2 for i in windows}
    mine = {i: (none[i] + full[i]) / 2 for i in windows}
    assert share(none, mine, full) == "50% ± 0%"
    assert share(none, none, full) == "0% ± 0%"
    assert share({0: 1.0}, {0: 0.5}, {0: 0.2}) == "-"
    assert share(none, mine, {i: none[i] - (-1) ** i for i in windows}) == "-"
