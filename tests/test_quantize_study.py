"""The study of plans as its users run it, on a small random model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from experiments.quantize import __main__ as study
from experiments.quantize.measure import Reader, peak, reset_peak
from isojax.data import load_text, windows
from isojax.models import Site, encode, forward, load_model
from isojax.quantize import Plan, calibrate, costs, load_quantized, quantize
from isojax.report import read_rows, select

pytestmark = pytest.mark.slow

MINE = "residual: haar\nweight: absmax bits=4\ncache:keys: haar/lloyd_max bits=3\n"
FEW = ("--windows", 3, "--seeds", 2, "--calibration-windows", 2, "--continuation", 4)


def rows(folder):
    return read_rows(folder / "rows.jsonl")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    file = tmp_path_factory.mktemp("plans") / "my.plan"
    file.write_text(MINE)
    saved = tmp_path_factory.mktemp("saved")
    return (*FEW, "--plans", "smoothquant:4", file, "--errors", "--save", saved)


@pytest.fixture(scope="module")
def out(call, given):
    return call(study, *given)


def test_a_drawn_plan_reads_each_window_with_a_seed_of_its_own(out):
    found = rows(out)
    for plan, seeds in (("smoothquant:4", [None] * 3), ("my.plan", [0, 1, 0])):
        mine = {r.config["window"]: r.seed for r in select(found, "delta_nll", plan=plan)}
        assert [mine[i] for i in range(3)] == seeds
        assert len(select(found, "weight_bits", plan=plan)) == 1
    assert {r.config["rules"] for r in select(found, plan="my.plan")} == {
        "; ".join(str(Plan.parse(MINE)).splitlines())
    }


def test_losses_are_paired_with_the_model_as_it_is(out):
    found = rows(out)
    exact = {r.config["window"]: r.value for r in select(found, "nll", plan="unquantized")}
    for row in select(found, "delta_nll"):
        (nll,) = [r for r in select(found, "nll", **row.config) if r.seed == row.seed]
        difference = nll.value - exact[row.config["window"]]  # of means in fp32
        assert row.value == pytest.approx(difference, abs=3e-5)
        assert row.value != 0


def test_costs_and_errors_are_those_of_the_model(out, small):
    model = load_model(str(small))
    ids = windows(encode(model.tokenizer, load_text(str(small / "text.txt"))), 5, 64)
    plan = Plan.parse(MINE)
    made = quantize(jax.random.key(0), model, plan, calibrate(model, ids[3:], plan))
    want, found = costs(made, 64), rows(out)
    for metric, value in (
        ("weight_bits", want.weight_bits), ("cache_bits", want.cache_bits),
        ("bytes_per_token", want.cache_bytes), ("online_fmas", want.online_fmas),
    ):  # fmt: skip
        (row,) = select(found, metric, plan="my.plan")
        assert row.value == pytest.approx(value)
    for layer in range(2):
        ends, tokens = (Site("hidden", layer + 1),), jnp.asarray(ids[:1])
        exact = forward(model.params, model.config, tokens, capture=ends).captured["hidden"][0, 0]
        given = {"hooks": made.hooks, "cache": made.cache(1, 64), "capture": ends}
        turned = forward(made.params, made.config, tokens, **given).captured["hidden"][0, 0]
        error = np.asarray(turned @ made.shared["residual"].matrix().T - exact)
        (row,) = select(found, "relative_error", plan="my.plan", layer=layer)
        error = np.linalg.norm(error, axis=-1) / np.linalg.norm(exact, axis=-1)
        assert row.value == pytest.approx(error.mean(), rel=0.02)


def test_what_is_saved_is_what_was_measured(out, given):
    folder = given[-1]
    assert {f.name for f in folder.iterdir()} == {"smoothquant_4", "my.plan"}
    made = load_quantized(folder / "my.plan")
    (row,) = select(rows(out), "weight_bits", plan="my.plan")
    assert costs(made, 64).weight_bits == pytest.approx(row.value)


def test_it_goes_on_after_a_cut_and_says_what_it_found(call, out, given, capsys):
    want, lines = rows(out), (out / "rows.jsonl").read_text().splitlines(keepends=True)
    (out / "rows.jsonl").write_text("".join(lines[: len(lines) // 2]) + lines[-1][:20])
    capsys.readouterr()
    call(study, *given, out=out)
    again = rows(out)
    assert {r.identity for r in again} == {r.identity for r in want} and len(again) == len(want)
    values = {r.identity: r.value for r in want if r.metric != "peak_rss_bytes"}
    for row in again:
        if row.identity in values:
            assert_allclose(row.value, values[row.identity], rtol=1e-3, atol=1e-5)
    report = (out / "table.md").read_text()
    assert "| my.plan |" in report and "after each layer" in report
    assert (out / "figure.png").stat().st_size > 10_000
    shown = capsys.readouterr().out
    for name in ("unquantized", "smoothquant:4", "my.plan"):
        assert f"\n{name}: '" in shown


def test_a_plan_that_changed_is_measured_anew(call, out, given, tmp_path):
    file = tmp_path / "my.plan"
    file.write_text("weight: absmax bits=8")
    for name in ("config.json", "rows.jsonl"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    call(study, *FEW, "--plans", file, out=tmp_path)
    bits = [r.value for r in select(rows(tmp_path), "weight_bits", plan="my.plan")]
    assert len(bits) == 2 and bits[0] < 5 < 8 < bits[1]
    table = (tmp_path / "table.md").read_text().partition("## Parts")[0]
    assert table.count("| my.plan |") == 1 and "smoothquant" not in table


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("plan must be one of quarot", ("--plans", "quarott")),
        ("no.plan: no such file", ("--plans", "no.plan")),
        ("place must be one of weight", ("--plans", "wait: absmax bits=4")),
        ("residual must be turned by an isometry", ("--plans", "residual: standardize")),
        ("residual must be turned by an isometry", ("--plans", "residual: balance@hadamard")),
        ("residual and values of all layers", ("--plans", "residual: learned")),
        ("different names", ("--plans", "gptq", "gptq")),
        ("seeds must be", ("--seeds", 0)),
        ("continuation must be at least 0", ("--continuation", -1)),
    ],
)
def test_bad_input_ends_in_one_line(refuses, words, arguments):
    few = FEW[:2] + FEW[4:6]
    refuses(words, study, *few, *arguments)


def test_plans_have_names_that_tell_them_apart():
    for given, name in (
        ("results/my.plan", "my.plan"), ("smoothquant:alpha=0.3", "smoothquant:alpha=0.3"),
        ("input: smooth:0.5/absmax bits=4", "input: smooth:0.5/absmax bits=4"),
        ("residual: haar\nvalues: haar/0.5", "residual: haar; values: haar/0.5"),
    ):  # fmt: skip
        assert study._name(given) == name


def test_the_peak_of_memory_begins_anew():
    reset_peak()
    before = peak()
    block = np.ones(2**24)  # 128 MiB
    assert peak() - before > 0.9 * block.nbytes
    del block
    reset_peak()
    assert peak() < before + 2**26


def test_the_peak_is_of_all_windows(small, monkeypatch):
    model = load_model(str(small))
    ids = windows(encode(model.tokenizer, load_text(str(small / "text.txt"))), 3, 64)
    plan, read = Plan.parse("weight: absmax bits=4"), []
    reader = Reader(model, ids, ids, [plan], "", 0, None)
    entries = list(study.jobs(
        study.Config(seeds=1, windows=3), reader, {}, {"rounded": plan}
    ))[1].entries  # fmt: skip
    (last,) = [e for e in entries if "peak_rss_bytes" in e.units]
    score = reader.read
    monkeypatch.setattr(reader, "read", lambda made, i: read.append(i) or score(made, i))
    list(reader.values("rounded", plan, 0, [last]))  # as after a run that was cut before it
    assert read == [0, 1, 2]


def test_errors_of_the_model_as_it_is_are_none(small):
    model = load_model(str(small))
    ids = windows(encode(model.tokenizer, load_text(str(small / "text.txt"))), 2, 64)
    plan = Plan.parse("residual: haar; values: haar")
    reader = Reader(model, ids, ids, [plan], "", 0, None)
    entries = [e for e in study.jobs(
        study.Config(errors=True, seeds=1, windows=2), reader, {}, {"turned": plan}
    )][1].entries  # fmt: skip
    found = [v for v in reader.values("turned", plan, 0, entries) if "relative_error" in v]
    assert len(found) == 2 and max(v["relative_error"] for v in found) < 1e-4
