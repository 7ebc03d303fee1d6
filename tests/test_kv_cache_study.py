"""The study of the KV cache as its users run it, on a small random model."""

import pytest

from experiments.kv_cache import __main__ as kv_cache
from experiments.kv_cache.report import figure
from isojax.report import Study, read_rows, select

pytestmark = pytest.mark.slow


def rows(folder):
    return read_rows(folder / "rows.jsonl")


KV = ("--methods", "kivi", "haar", "aligned", "--bits", 3, "--targets", "K", "KV",
      "--windows", 2, "--calibration-windows", 1, "--needles", "--induction", 1)  # fmt: skip


@pytest.fixture(scope="module")
def kv(call):
    return call(kv_cache, *KV)


def test_the_cache_has_a_row_for_every_window_with_rotations_of_its_own(kv):
    found = rows(kv)
    for method, seeds in (("kivi", [None] * 2), ("haar", [0, 1]), ("aligned", [None] * 2)):
        for target in ("K", "KV"):
            for metric in ("delta_nll", "logit_error"):
                mine = select(found, metric, method=method, target=target, bits=3)
                assert [(r.seed, r.config["window"]) for r in mine] == list(
                    zip(seeds, (0, 1), strict=True)
                )


def test_what_a_cache_loses_is_paired_with_the_exact_one(kv):
    found = rows(kv)
    exact = {r.config["window"]: r.value for r in select(found, "nll", method="none")}
    for row in select(found, "delta_nll"):
        same = {**row.config, "window": row.config["window"]}
        (nll,) = [r for r in select(found, "nll", **same) if r.seed == row.seed]
        difference = nll.value - exact[row.config["window"]]  # of means in fp32
        assert row.value == pytest.approx(difference, abs=3e-5)
        assert row.value != 0


def test_bytes_of_the_cache_are_those_of_its_arrays(kv):
    found = select(rows(kv), "bytes_per_token", method="haar", target="KV")
    layers, heads, dim = 2, 2, 8  # of the small model
    assert {r.value for r in found} == {2 * layers * heads * (3 * dim / 8 + 2)}
    (half,) = {r.value for r in select(rows(kv), "bytes_per_token", method="haar", target="K")}
    assert half == layers * heads * (3 * dim / 8 + 2 + 2 * dim)


def test_the_figure_draws_the_best_at_each_number_of_bits_and_counts_the_rest(tmp_path):
    study, units = Study("kv_cache", tmp_path, {}), {"nll": "nats per token"}
    units |= {"delta_nll": "nats per token", "rate_bits": "bits per element"}
    for i in range(12):  # those that are good at 2 bit are bad at 4
        for bits, loss in ((2, 1.0 + i), (4, 12.0 - i)):
            own = {"model": "m", "method": f"m{i}", "bits": bits, "target": "KV"}
            for window in (0, 1):
                values = {"nll": 5 + loss, "delta_nll": loss + window / 8}
                study.add(own | {"window": window}, None, values, units)
            study.add(own, None, {"rate_bits": bits + 0.25}, units)
    (panel,) = figure(study, {"model": "m"}, 2).axes
    assert drawn(panel) == {f"m{i}" for i in (0, 1, 2, 9, 10, 11)}
    assert "6 others are in the table" in panel.get_title()
    assert len(panel.collections) == 6  # each with the spread over windows


def drawn(panel):
    return {line.get_label() for line in panel.lines}


def test_a_cache_study_goes_on_and_says_what_it_found(call, kv):
    before = (kv / "rows.jsonl").read_bytes()
    call(kv_cache, *KV, out=kv)
    assert (kv / "rows.jsonl").read_bytes() == before
    report = (kv / "table.md").read_text()
    assert "## KV at 3 bit" in report and "| aligned |" in report and "induction" in report
    assert (kv / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("flag", "value"), [("--methods", "spin"), ("--targets", "Q"), ("--bits", 9)]
)
def test_the_cache_study_refuses_what_it_does_not_know(refuses, flag, value):
    refuses(str(value), kv_cache, flag, value)
