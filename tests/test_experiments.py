"""Experiments as their users run them: on a small random model, killed, and given bad input."""

import importlib
import json
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.alignment import __main__ as alignment
from experiments.block_rotation import __main__ as block_rotation
from experiments.common import run
from experiments.compare import __main__ as compare
from experiments.end_to_end import __main__ as end_to_end
from experiments.isotropic_tradeoff import __main__ as isotropic_tradeoff
from experiments.isotropic_tradeoff.measure import FIXED_RATE, Case
from experiments.kv_cache import __main__ as kv_cache
from experiments.kv_cache.methods import recipes
from experiments.perplexity import __main__ as perplexity
from experiments.quantize import __main__ as quantize
from experiments.stage1 import __main__ as stage1
from isojax.report import read_rows, select

pytestmark = pytest.mark.slow

SMALL = ("--windows", 2, "--seeds", 3, "--bits", 3, "--quantizers", "absmax", "--coordinates",
         "identity", "haar", "pca", "--granularities", "tensor", "group:8", "--weight-quantizers",
         "absmax", "--weights", "weight:q_proj:middle")  # fmt: skip


@pytest.fixture(scope="module")
def tradeoff(call):
    return call(isotropic_tradeoff, *SMALL)


def rows(folder):
    return read_rows(folder / "rows.jsonl")


def test_perplexity_is_the_exponential_of_the_mean_nll(call):
    out = call(perplexity, "--windows", 3)
    nll = [r.value for r in select(rows(out), "nll")]
    (total,) = select(rows(out), "perplexity")
    assert len(nll) == 3
    assert total.value == pytest.approx(math.exp(np.mean(nll)), rel=1e-6)
    for name in ("config.json", "table.md", "figure.png"):
        assert (out / name).stat().st_size > 50


def test_more_windows_go_on_from_those_that_are_there(call):
    out = call(perplexity, "--windows", 2)
    first = rows(out)
    more = rows(call(perplexity, "--windows", 3, out=out))
    assert more[: len(first)] == first
    assert sorted(r.config["window"] for r in select(more, "nll")) == [0, 1, 2]


def test_the_tradeoff_answers_its_six_questions(tradeoff):
    report = (tradeoff / "table.md").read_text()
    for answer in range(1, 7):
        assert f"\n{answer}. **" in report
    assert "2.2721" in report and (tradeoff / "figure.png").stat().st_size > 10_000


def test_the_tradeoff_has_a_row_for_every_case_and_seed(tradeoff):
    haar = select(
        rows(tradeoff), "mse", coordinates="haar", quantizer="absmax", tensor="hidden:final"
    )
    assert sorted(r.seed for r in haar) == [0, 0, 1, 1, 2, 2]
    assert {r.config["group"] for r in haar} == {0, 8}


def test_weights_are_measured_with_the_quantizers_and_bits_asked_for(call):
    few = {"--seeds": 1, "--windows": 1, "--coordinates": "haar", "--granularities": "tensor"}
    arguments = [x for pair in few.items() for x in pair]
    asked = ("--weight-bits", 2, 4, "--weight-quantizers", "minmax", "absmax_percentile")
    asked += ("--bits", 3, "--quantizers", "absmax")
    out = call(isotropic_tradeoff, *arguments, *asked, "--weights", "weight:q_proj:1")
    of_weight = select(rows(out), "nmse", tensor="weight:q_proj:1", coordinates="haar")
    assert {(r.config["quantizer"], r.config["bits"]) for r in of_weight} == {
        ("minmax", 2), ("minmax", 4), ("absmax_percentile", 2), ("absmax_percentile", 4),
    }  # fmt: skip
    table = (out / "table.md").read_text().partition("### weight:q_proj:1")[2]
    assert "| absmax_percentile | 4 |" in table


def test_every_range_of_the_uniform_quantizers_has_a_name_and_is_another_quantizer():
    y = jnp.asarray(np.random.default_rng(0).standard_t(4, (64, 32)), "f4")
    ends = {}
    for name in FIXED_RATE:
        case = Case(name, 4)
        quantizer = case.make(jax.random.key(0), y, {})
        ends[name] = float(jnp.abs(quantizer.decode(quantizer.encode(y))).max())
    deviations = 4 * float(y.std())
    assert ends["absmax"] == pytest.approx(float(jnp.abs(y).max()), rel=1e-5)
    assert ends["absmax_percentile"] == pytest.approx(np.quantile(np.abs(y), 0.999), rel=1e-5)
    assert ends["absmax_std"] == pytest.approx(deviations, rel=1e-5)
    uniform = {name: end for name, end in ends.items() if name.startswith(("absmax", "minmax"))}
    assert len(set(uniform.values())) == len(uniform) == 8
    assert Case("absmax_std", 4).config()["clip"] == 4


def test_a_text_too_short_for_pca_says_so_and_for_others_does_not(call, capsys, small):
    from isojax.data import load_text
    from isojax.models import encode, load_model

    tokens = encode(load_model(str(small)).tokenizer, load_text(str(small / "text.txt")))
    fits = len(tokens) // 64
    for kind, windows, said in (
        ("haar", fits + 1, f"at most {fits}:"),
        ("pca", fits + 1, f"at most {fits}:"),
        ("pca", fits, f"at most {fits // 2}, since axes are fitted"),
        ("pca", -1, "at least 1, got -1"),
    ):
        with pytest.raises(SystemExit):
            call(isotropic_tradeoff, "--windows", windows, "--coordinates", kind)
        error = capsys.readouterr().err
        assert said in error and ("fitted" in error) == ("fitted" in said)


@pytest.mark.parametrize("module", [perplexity, isotropic_tradeoff])
def test_a_folder_that_cannot_be_written_is_named_before_any_work(call, capsys, tmp_path, module):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SystemExit) as stop:
            call(module, "--model", "/no/such/model", out=out)
        assert stop.value.code == 2
        assert f"error: out must be a folder that can be written, got {out}" in (
            capsys.readouterr().err
        )


def test_a_killed_run_goes_on_with_more_seeds_and_loses_or_doubles_no_row(call, tradeoff, tmp_path):
    for name in ("config.json", "rows.jsonl"):
        (tmp_path / name).write_bytes((tradeoff / name).read_bytes())
    lines = (tmp_path / "rows.jsonl").read_bytes()
    (tmp_path / "rows.jsonl").write_bytes(lines[: len(lines) * 2 // 3])  # in the midst of a line
    more = [4 if i and SMALL[i - 1] == "--seeds" else s for i, s in enumerate(SMALL)]
    call(isotropic_tradeoff, *more, out=tmp_path)
    want = {r.identity: r.value for r in rows(tradeoff)}
    again = rows(tmp_path)
    assert len({r.identity for r in again}) == len(again)
    assert {r.identity for r in again if r.seed != 3} == set(want)
    for r in again:
        if r.seed != 3:
            assert r.value == pytest.approx(want[r.identity], rel=1e-3, abs=1e-6)
    seeded = len([r for r in again if r.seed == 0])
    assert len([r for r in again if r.seed == 3]) == seeded > 50


def test_the_controls_are_what_they_claim(tradeoff):
    found = rows(tradeoff)
    (zero,) = select(found, "nmse", quantizer="zero")
    assert zero.value == pytest.approx(1.0)
    (check,) = select(found, "check_value")
    (floor,) = select(found, "noise_floor_mse", quantizer="zero")
    assert check.value == pytest.approx(floor.value, rel=1e-4)
    haar = select(found, "noise_floor_mse", coordinates="haar", quantizer="absmax",
                  granularity="tensor", tensor="hidden:final")  # fmt: skip
    noise = {r.seed: r.value for r in select(found, "mse", quantizer="gaussian_noise")}
    target = {r.seed: r.value for r in haar if r.seed is not None}
    assert noise == pytest.approx(target, rel=0.1)


def test_entropy_coding_spends_the_rate_asked_for(tradeoff):
    coded = select(rows(tradeoff), "code_entropy_bits", quantizer="ecsq", matches="")
    assert len(coded) == 1 + 1 + 3  # identity, pca, three seeds of haar
    for r in coded:
        assert r.value == pytest.approx(3, abs=0.1)


def test_controls_match_the_haar_code_of_the_same_seed(tradeoff):
    matched = select(rows(tradeoff), "code_entropy_bits", quantizer="ecsq", matches="haar")
    by_seed = {}
    for r in matched:
        by_seed.setdefault(r.seed, []).append(r.value)
    assert sorted(by_seed) == [0, 1, 2]
    for values in by_seed.values():
        assert len(values) == 3 and np.ptp(values) < 0.1


def test_other_settings_in_the_same_folder_are_refused(call, tradeoff, capsys):
    before = (tradeoff / "rows.jsonl").read_bytes()
    with pytest.raises(SystemExit):
        call(isotropic_tradeoff, *SMALL, "--silent", "0.4", out=tradeoff)
    assert "silent (there 0.5, now 0.4)" in capsys.readouterr().err
    assert (tradeoff / "rows.jsonl").read_bytes() == before


def test_the_published_numbers_stand_in_the_rows(tradeoff):
    published = select(rows(tradeoff), "false_firings", model="Qwen2.5-1.5B (published)")
    assert [r.value for r in published] == [0, 367539]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--nonsense", "1"], "nonsense"),
        (["--windows", "many"], "--windows"),
        (["--windows", "-1"], "windows must be"),
        (["--length", "-5"], "length must be"),
        (["--windows", "5000"], "windows must be at most"),
        (["--model", "/no/such/model"], "/no/such/model"),
        (["--text", "/no/such/text"], "/no/such/text"),
    ],
)
@pytest.mark.parametrize("module", [perplexity, isotropic_tradeoff])
def test_bad_input_ends_in_one_clear_line_and_code_2(refuses, module, arguments, message):
    refuses(message, module, *arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--tensor", "hidden:99"], "hidden:99"),
        (["--coordinates", "haar", "fourier"], "fourier"),
        (["--granularities", "group:7"], "7"),
        (["--granularities", "group:x"], "group:x"),
        (["--bits", "1"], "bits must be one of 2, 3"),
        (["--bits", "9"], "got 9"),
        (["--seeds", "0"], "seeds must be"),
        (["--skip-tokens", "-1"], "skip_tokens must be at least 0"),
        (["--skip-tokens", "64"], "below length=64, got 64"),
        (["--quantizers", "absmin"], "absmin"),
        (["--weights", "q_proj"], "q_proj"),
        (["--coordinates", "haar:3"], "haar takes no arguments"),
        (["--quantizers", "ecsq"], "ecsq"),
        (["--tensor", "weight:q_proj:0"], "--weights"),
        (["--top", "99"], "top"),
    ],
)
def test_bad_settings_of_the_tradeoff_are_named(refuses, arguments, message):
    refuses(message, isotropic_tradeoff, "--seeds", "2", "--windows", "1", *arguments)


def test_a_dry_run_prints_the_configuration_and_writes_nothing(call, capsys, tmp_path):
    call(isotropic_tradeoff, "--dry-run", "--quick", out=tmp_path / "out")
    settings = json.loads(capsys.readouterr().out)
    assert settings["experiment"] == "isotropic_tradeoff" and settings["seeds"] == 2
    assert not (tmp_path / "out").exists()


def test_quick_leaves_what_the_command_line_says(call, capsys, tmp_path):
    call(isotropic_tradeoff, "--dry-run", "--quick", "--bits", 8, out=tmp_path / "out")
    settings = json.loads(capsys.readouterr().out)
    assert settings["bits"] == [3, 8] and settings["quantizers"] == ["absmax"]


def test_quick_leaves_what_the_command_line_says_where_that_is_the_default(call, capsys, tmp_path):
    seeds = isotropic_tradeoff.Config().seeds
    assert isotropic_tradeoff.Config().quickened()["seeds"] < seeds
    call(isotropic_tradeoff, "--dry-run", "--quick", "--seeds", seeds, out=tmp_path / "out")
    assert json.loads(capsys.readouterr().out)["seeds"] == seeds


@pytest.mark.parametrize("name", ["perplexity", "isotropic_tradeoff", "stage1"])
def test_a_dry_run_leaves_no_setting_open(monkeypatch, capsys, name):
    module = importlib.import_module(f"experiments.{name}.__main__")
    for model, length in (("tiny", 512), ("other", 2048)):
        monkeypatch.setattr("sys.argv", [name, "--model", model, "--dry-run"])
        run(module.main, module.Config, name, module.__doc__)
        settings = json.loads(capsys.readouterr().out)
        assert settings["length"] == length and settings["windows"] >= 1
        assert not [k for k, v in settings.items() if v is None or v == []]


def test_config_json_says_what_was_run(tradeoff):
    settings = json.loads((tradeoff / "config.json").read_text())
    found = [r for r in rows(tradeoff) if r.device != "published"]
    for setting, key in (("coordinates", "coordinates"), ("quantizers", "quantizer")):
        measured = {r.config[key] for r in found if key in r.config}
        controls = {"none", "ecsq", "zero", "gaussian_noise"} if key == "quantizer" else set()
        assert measured - controls == set(settings[setting])
    assert {r.config["windows"] for r in found} == {settings["windows"]}


def test_the_folder_of_a_run_has_the_model_in_its_name(monkeypatch, capsys):
    for model, name in (
        ("tiny", "tiny"), ("Qwen/Qwen2.5-0.5B@main", "Qwen2.5-0.5B"), ("/a/b.gguf", "b.gguf"),
    ):  # fmt: skip
        for quick, end in (((), ""), (("--quick",), "-quick")):
            monkeypatch.setattr("sys.argv", ["perplexity", "--model", model, "--dry-run", *quick])
            run(perplexity.main, perplexity.Config, "perplexity", perplexity.__doc__)
            out = json.loads(capsys.readouterr().out)["out"]
            assert out == f"results/perplexity-{name}{end}"


@pytest.mark.parametrize(
    "module, arguments",
    [
        (isotropic_tradeoff, ("--granularities", "group:7")),
        (isotropic_tradeoff, ("--coordinates", "haar", "rotor:7")),
        (kv_cache, ("--needles", 5)),
        (kv_cache, ("--methods", "block_hadamard:5/lloyd_max")),
        (block_rotation, ("--blocks", 7)),
        (block_rotation, ("--coordinates", "block_hadamard:5")),
        (alignment, ("--coordinates", "pca", "block_hadamard:5")),
        (compare, ("--coordinates", "block_hadamard:5")),
        (stage1, ("--dims", 128, 127)),
        (end_to_end, ("--starts", "hadamard", "block_hadamard:5")),
        (quantize, ("--plans", "input: block_hadamard:5/absmax bits=4")),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_cannot_be_run_is_refused_before_the_first_row(refuses, tmp_path, module, arguments):
    refuses("", module, "--windows", 1, *arguments, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_method_is_answered_by_the_nearest_names(refuses, capsys):
    refuses("haar+pre", kv_cache, "--methods", "har+pre")
    with pytest.raises(ValueError) as caught:
        recipes("har+pre")
    assert len(str(caught.value)) < 300


def test_a_run_begins_anew_where_asked_to(call):
    out = call(perplexity, "--windows", 1)
    with pytest.raises(SystemExit):
        call(perplexity, "--windows", 1, "--dtype", "bfloat16", out=out)
    call(perplexity, "--windows", 1, "--dtype", "bfloat16", "--overwrite", out=out)
    assert {r.config["dtype"] for r in rows(out)} == {"bfloat16"}


def test_a_stdout_that_is_closed_early_stops_no_run(small, tmp_path):
    command = [sys.executable, "-m", "experiments.perplexity", "--model", str(small), "--text",
               str(small / "text.txt"), "--length", "64", "--out", str(tmp_path)]  # fmt: skip
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 0 and "Error" not in done.stderr and "error" not in done.stderr
    assert (tmp_path / "table.md").exists()


def test_a_run_that_failed_leaves_no_settings_behind(call, tmp_path):
    with pytest.raises(SystemExit):
        call(perplexity, "--model", "/no/such/model", out=tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("module", [perplexity, isotropic_tradeoff])
def test_help_names_the_question_and_the_flags(call, capsys, module):
    with pytest.raises(SystemExit) as stop:
        call(module, "--help")
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert module.__doc__.splitlines()[0] in shown.replace("\n", " ")
    assert "--quick" in shown and "--out" in shown
