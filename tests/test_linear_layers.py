"""The study of linear layers as its users run it, on a small random model."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.linear_layers import __main__ as study
from experiments.linear_layers.methods import COORDINATES, PLANS, cases, plan_of
from isojax.data import load_text, windows
from isojax.models import encode, forward, load_model
from isojax.quantize import Plan, calibrate, costs, quantize
from isojax.report import averaged, read_rows, select, summarize

pytestmark = pytest.mark.slow

GIVEN = (
    "--windows", 2, "--seeds", 2, "--calibration-windows", 2, "--rounding", "nearest",
    "--plans", "none", "quarot", "--coordinates", "balance@hadamard",
)  # fmt: skip


@pytest.fixture(scope="module")
def out(call):
    return call(study, *GIVEN)


@pytest.fixture(scope="module")
def found(out):
    return read_rows(out / "rows.jsonl")


def test_every_case_is_a_plan_that_prints():
    every = cases(
        tuple(PLANS), COORDINATES, ("W4A4", "W16A4", "W3A16"), ("int4", "mxfp4"), ("gptq",)
    )
    assert len(set(every)) == len(every) == 6 * (len(PLANS) + len(COORDINATES))
    for case in every:
        if case.format == "int4" or case.setting == "W4A4":
            plan = plan_of(case, 20)
            assert Plan.parse(str(plan)) == plan
            weights = [p for p in plan.places if p.startswith("weight:")]
            assert bool(weights) == (case.setting != "W16A4")


def test_every_seed_reads_all_windows_and_what_is_not_drawn_has_none(found):
    for plan, seeds in (("none", [None]), ("quarot", [0, 1]), ("inputs", [0, 1])):
        here = [(r.seed, r.config["window"]) for r in select(found, "delta_nll", plan=plan)]
        assert sorted(here, key=str) == [(s, i) for s in seeds for i in range(2)]
        assert len(select(found, "kl_p99", plan=plan)) == len(seeds)


def test_transforms_learned_on_the_loss_stand_beside_the_others(call, refuses):
    given = ("--rounding", "nearest", "--plans", "ostquant", "--coordinates", "hadamard",
             "learned_scales@hadamard", "--settings", "W4A4", "W4A16")  # fmt: skip
    few = ("--windows", 1, "--seeds", 1, "--calibration-windows", 2)
    rows = read_rows(call(study, *given, *few, "--steps", 10) / "rows.jsonl")
    for setting in ("W4A4", "W4A16"):
        found = select(rows, "delta_nll", setting=setting)
        assert len({row.config["coordinates"] for row in found}) == 3
        assert np.isfinite([row.value for row in found]).all()
    measured = {row.config["coordinates"] for row in select(rows, "sqnr_db")}
    assert measured == {"hadamard"}
    refuses("steps of learned must be a multiple of 10, got 15", study, *given, *few, "--steps", 15)


@pytest.mark.parametrize("there", [True, False])
def test_a_run_adds_later_seeds_to_a_folder_or_makes_them_elsewhere(call, out, tmp_path, there):
    folder = tmp_path / "more"
    if there:
        shutil.copytree(out, folder)
    few = ("--windows", 2, "--calibration-windows", 2, "--rounding", "nearest", "--no-layers")
    drawn = ("--plans", "quarot", "--coordinates", "balance@hadamard")
    call(study, *few, *drawn, "--seeds", 1, "--first-seed", 2, out=folder)
    rows = read_rows(folder / "rows.jsonl")
    seeds = [r.seed for r in select(rows, "delta_nll", plan="quarot", window=0)]
    assert sorted(seeds) == ([0, 1, 2] if there else [2])
    assert "| 2 |" in (folder / "table.md").read_text() and (folder / "figure.png").exists()


def test_losses_and_costs_are_those_of_the_model_of_the_plan(found, small):
    model = load_model(str(small))
    ids = windows(encode(model.tokenizer, load_text(str(small / "text.txt"))), 4, 64)
    plan = Plan.parse(
        "input: balance@hadamard/absmax:range=mse bits=4; weight: absmax:range=mse bits=4"
    )
    made = quantize(jax.random.key(1), model, plan, calibrate(model, ids[2:], plan))
    logits = jax.jit(lambda m, ids: forward_logits(m, ids))(made, jnp.asarray(ids[:1]))
    p = jax.nn.log_softmax(logits[0, :-1])
    want = -np.asarray(p)[np.arange(63), ids[0, 1:]].mean()
    (row,) = [r for r in select(found, "nll", plan="inputs", window=0) if r.seed == 1]
    assert row.value == pytest.approx(want, rel=1e-3)
    (fmas,) = select(found, "online_fmas", plan="inputs")
    assert fmas.value == costs(made, 1).online_fmas > 0
    (online,) = select(found, "online_transforms", plan="inputs")
    assert online.value == 4 == 2 * select(found, "online_transforms", plan="quarot")[0].value


def forward_logits(made, ids):
    hidden = forward(made.params, made.config, ids, hooks=made.hooks).hidden
    return hidden @ (made.params["head"] if "head" in made.params else made.params["embedding"].T)


def test_layers_are_looked_at_in_the_coordinates_of_each_case(found):
    for plan in ("none", "quarot", "inputs"):
        assert len(select(found, "alignment_db", plan=plan)) == 2 * 4
    # a rotation leaves the alignment: that of none and of quarot differ by the norms' scales alone,
    # and at o_proj, which reads no norm, not at all
    for layer in range(2):
        one, other = (
            select(found, "alignment_db", plan=plan, input="o_proj", layer=layer)[0].value
            for plan in ("none", "quarot")
        )
        assert one == pytest.approx(other, abs=1e-3)


def test_the_table_has_a_line_per_method_and_the_figure_is_drawn(out, found):
    table = (out / "table.md").read_text()
    for name in ("| none |", "| quarot |", "| inputs | balance@hadamard | input | 4 |"):
        assert table.count(name) >= 1
    loss = summarize(averaged(select(found, plan="inputs"), "seed"), "delta_nll")
    assert f"{loss.mean:.3f} ± {loss.sem:.3f}" in table
    assert (out / "figure.png").stat().st_size > 10_000


def test_a_killed_run_ends_as_if_undisturbed(call, out, tmp_path):
    lines = (out / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "config.json").write_bytes((out / "config.json").read_bytes())
    (tmp_path / "rows.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]) + b'{"exp')
    call(study, *GIVEN, out=tmp_path)
    whole, healed = (read_rows(folder / "rows.jsonl") for folder in (out, tmp_path))
    key = lambda r: str((sorted(r.config.items()), r.seed, r.metric))  # noqa: E731
    for a, b in zip(sorted(whole, key=key), sorted(healed, key=key), strict=True):
        assert key(a) == key(b) and a.value == pytest.approx(b.value, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("settings must read as W4A4", ("--settings", "W4")),
        ("settings must read as W4A4", ("--settings", "W1A16")),
        ("formats must be one of", ("--formats", "int5")),
        ("rounding must be one of", ("--rounding", "up")),
        ("plans must be one of", ("--plans", "quarrot")),
        ("coordinates must be one of haar, hadamard", ("--coordinates", "hadamart")),
        ("seeds must be", ("--seeds", 0)),
        ("first_seed must be at least 0", ("--first-seed", -1)),
    ],
)
def test_bad_input_ends_in_one_line(refuses, words, arguments):
    refuses(words, study, *arguments)
