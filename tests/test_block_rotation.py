"""The study of block rotations as its users run it, on a small random model."""

import shutil

import jax
import jax.numpy as jnp
import pytest
from small_models import random_tokens, small_model

from experiments.block_rotation import __main__ as block_rotation
from experiments.block_rotation.answers import share
from experiments.block_rotation.measure import Reader
from experiments.block_rotation.points import (
    DOWN,
    FORMATS,
    PERMUTATIONS,
    SMOOTH,
    Point,
    coordinates_of,
    own_plan,
    parts,
    shared_plan,
)
from isojax.models import WEIGHTS
from isojax.quantize import Plan, calibrate, quantize, score
from isojax.report import read_rows, select

pytestmark = pytest.mark.slow

GIVEN = ("--settings", "A4-down", "W4A4", "--rounding", "gptq", "--blocks", 8, "--permutations",
         "none", "random_permutation", "mass_diff", "--windows", 3, "--seeds", 2,
         "--calibration-windows", 1, "--gptq-windows", 2)  # fmt: skip
TURNS = ("identity", "hadamard", "block_hadamard:8", "random_permutation@block_hadamard:8",
         "mass_diff@block_hadamard:8", SMOOTH)  # fmt: skip
GROUPS = (("A4-down", "none"), ("W4A4", "gptq"))


@pytest.fixture(scope="module")
def study(call):
    return call(block_rotation, *GIVEN)


def rows(folder):
    return read_rows(folder / "rows.jsonl")


def test_every_point_has_all_windows_each_with_its_seed(study):
    found = select(rows(study), "delta_nll")
    for setting, rounding in GROUPS:
        for turn in TURNS:
            mine = select(found, setting=setting, rounding=rounding, coordinates=turn)
            assert sorted((r.config["window"], r.seed) for r in mine) == [(0, 0), (1, 1), (2, 0)]
    assert len(found) == len(GROUPS) * len(TURNS) * 3


def test_losses_are_paired_with_the_model_as_it_is(study):
    found = rows(study)
    exact = {r.config["window"]: r.value for r in select(found, "nll", setting="exact")}
    for row in select(found, "delta_nll"):
        (nll,) = [r for r in select(found, "nll", **row.config) if r.seed == row.seed]
        difference = nll.value - exact[row.config["window"]]  # of means in fp32
        assert row.value == pytest.approx(difference, abs=3e-5)
        assert row.value != 0


def test_it_goes_on_and_says_what_it_found(call, study):
    before = (study / "rows.jsonl").read_bytes()
    call(block_rotation, *GIVEN, out=study)
    assert (study / "rows.jsonl").read_bytes() == before
    report = (study / "table.md").read_text()
    assert "## W4A4, gptq, int4" in report and "| mass_diff |" in report and "37.6" in report
    assert (study / "figure.png").stat().st_size > 10_000


def test_formats_stand_side_by_side_with_their_bits(call, study, tmp_path):
    for name in ("config.json", "rows.jsonl"):
        shutil.copy(study / name, tmp_path / name)
    few = ("--settings", "A4-down", *GIVEN[3:7], "--permutations", "none")
    given = [*few, *GIVEN[GIVEN.index("--windows") :], "--formats", *FORMATS]
    out = call(block_rotation, *given, out=tmp_path)
    report = (out / "table.md").read_text()
    table = report[report.index("## Formats of down_proj's input") :]
    # 1 of 64 elements kept in 16 bits and a byte; scales of 16 bits per token, of 8 per 32 or 16
    bits = {"int4": 4.25, "int4sparse": 4.62, "int4g64": 4.25, "fp4": 4.25, "mxfp4": 4.25}
    for form, value in bits.items():
        assert f"| {form} | {value:.2f} | " in table, form
    assert "| nvfp4 | 4.5" in table


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--settings", "W2A2"), ("--permutations", "sorted"), ("--blocks", 7), ("--formats", "int3"),
     ("--rounding", "up"), ("--coordinates", "hadamar"), ("--seeds", 0)],
)  # fmt: skip
def test_it_refuses_what_it_does_not_know(refuses, flag, value):
    refuses(str(value), block_rotation, flag, value)


def test_coordinates_are_their_parts():
    for permutation in PERMUTATIONS:
        assert parts(coordinates_of(permutation, 8)) == (8, permutation)
    assert parts("identity") == (0, "none") and parts("hadamard") == (float("inf"), "none")


TOKENS = random_tokens(4, 64)
POINTS = [Point(s, "none", "int4", t) for s in ("A4-down", "W16A4") for t in (*TURNS, "zigzag:8")]
POINTS += [Point("W4A4", r, "int4", t) for r in ("nearest", "gptq") for t in TURNS[-2:]]


@pytest.fixture(scope="module")
def model():
    return small_model(num_hidden_layers=2)


@pytest.fixture(scope="module")
def stats(model):
    plans = [make(point) for point in POINTS for make in (shared_plan, own_plan)]
    return calibrate(model, TOKENS[2:], plans, samples=64)


def quantized(model, stats, *plans):
    for plan in plans:
        model = quantize(jax.random.key(1), model, plan, stats)
    return model


@pytest.mark.parametrize("point", POINTS[:-4], ids="-".join)
def test_what_is_merged_changes_no_likelihood(model, stats, point):
    made = quantized(model, stats, shared_plan(point), own_plan(point)).weights_only()
    got, want = (score(m, TOKENS[:1]).nll for m in (made, model))
    assert float(jnp.abs(got - want).max()) < 1e-4 * float(want.max())


@pytest.mark.parametrize("point", POINTS[-4:], ids="-".join)
def test_weights_rounded_once_for_all_permutations_are_those_rounded_after_each(
    model, stats, point
):
    """What the study shares between coordinates is what one plan of all makes."""
    shared, own = shared_plan(point), own_plan(point)
    got, want = quantized(model, stats, shared, own), quantized(model, stats, shared + own)
    for name in WEIGHTS:
        here, there = (m.params["layers"][name]["kernel"] for m in (got, want))
        assert jnp.isclose(here, there, atol=1e-5).mean() > 0.99, name
        for a, b in zip(got.codes[name], want.codes[name], strict=True):
            assert jnp.mean(a.values == b.values) > 0.99, name


def test_weights_alone_have_the_codes_of_weights_and_inputs(model, stats):
    texts, turn = random_tokens(2, 64), TURNS[2]
    both = [Point(setting, "nearest", "int4", turn) for setting in ("W4A16", "W4A4")]
    plans = [make(point) for point in both for make in (shared_plan, own_plan)]
    made = Reader(model, texts, TOKENS[2:], plans, samples=64).models(both, 1)
    weights = "\n".join(f"weight:{n}: identity/absmax:range=mse bits=4" for n in WEIGHTS)
    alone = Plan.parse(f"residual: hadamard; values: hadamard; {DOWN}: {turn}\n{weights}")
    got, want = (score(m, texts).nll for m in (made["W4A16"], quantized(model, stats, alone)))
    assert float(jnp.abs(got - want).max()) < 1e-3
    assert float(jnp.abs(got - score(made["W4A4"], texts).nll).max()) > 1e-2


def test_smoothing_levels_the_inputs(model, stats):
    smooth = quantized(model, stats, Plan.parse(f"{DOWN}: {SMOOTH}; input:q_proj: {SMOOTH}"))
    peaks = []
    for each in (model, smooth):
        plan = Plan.parse(f"{DOWN}: pca; input:o_proj: pca")
        if each is smooth:
            each = type(model)("smooth", smooth.config, smooth.params, model.tokenizer)
        layers = calibrate(each, TOKENS[2:], plan, samples=128).layers
        peaks.append(
            {n: abs(x[f"samples:{n}"]).max() for x in layers for n in (DOWN, "input:o_proj")}
        )
    assert peaks[1][DOWN] < peaks[0][DOWN]
    assert peaks[1]["input:o_proj"] == pytest.approx(peaks[0]["input:o_proj"], rel=1e-4)


def test_recovery_is_the_share_of_the_gap_with_its_jackknife_error():
    windows = range(4)
    none = {i: 1.0 + 0.1 * i for i in windows}
    full = {i: 0.2 for i in windows}
    mine = {i: (none[i] + full[i]) / 2 for i in windows}
    assert share(none, mine, full) == "50% ± 0%"
    assert share(none, none, full) == "0% ± 0%"
    assert share({0: 1.0}, {0: 0.5}, {0: 0.2}) == "-"
    assert share(none, mine, {i: none[i] - (-1) ** i for i in windows}) == "-"
