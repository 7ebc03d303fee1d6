"""A transform and a quantizer of someone's own, in whole plans and in studies, nothing edited."""

import sys

import jax
import pytest
from small_models import random_tokens, small_model

from experiments.block_rotation import __main__ as block_rotation
from experiments.kv_cache import __main__ as kv_cache
from isojax.quantize import Plan, calibrate, quantize, score
from isojax.report import read_rows, select

pytestmark = pytest.mark.slow

OWN = """
import jax, jax.numpy as jnp
from isojax import quantizers, transforms


def mirror(key, samples, sign: float = -1.0):
    u = jax.random.normal(key, (samples.dim,))
    u = u / jnp.linalg.norm(u)
    return transforms.Dense(sign * (jnp.eye(samples.dim) - 2 * jnp.outer(u, u)))


def coarse(samples, bits, clip: float = 0.9):
    return quantizers.absmax(bits, "token", clip=clip)


def five(samples, bits):
    return quantizers.absmax(5)


def wrong(key, samples):
    return jnp.eye(samples.dim)
"""
TURN = "outside_own:mirror:1.0"


@pytest.fixture(scope="module", autouse=True)
def own(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "outside_own.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield
    sys.modules.pop("outside_own", None)


def test_a_whole_plan_is_of_members_from_outside():
    turn, levels = TURN, "outside_own:coarse:0.99"
    plan = Plan.parse(
        f"residual: {turn}; values: {turn}; queries_keys: {turn}; input: {turn}/{levels} bits=8; "
        f"weight: {turn}/{levels} bits=8 rounding=gptq; cache: {turn}/{levels} bits=8 sinks=2"
    )
    assert Plan.parse(str(plan)) == plan
    model, tokens = small_model(num_hidden_layers=2), random_tokens(2, 16)
    made = quantize(jax.random.key(0), model, plan, calibrate(model, tokens, plan))
    assert len(made.codes) == 7 and len(made.inputs) == 4 and made.stores
    lost = score(made, tokens).nll.mean() - score(model, tokens).nll.mean()
    assert 0 < abs(float(lost)) < 1


@pytest.mark.parametrize("place", ["weight", "input", "cache"])
def test_levels_of_more_bits_than_the_plan_says_are_refused(place):
    model, tokens = small_model(num_hidden_layers=1), random_tokens(1, 16)
    for bits in (4, 5):
        plan = Plan.parse(f"{place}: identity/outside_own:five bits={bits}")
        stats = calibrate(model, tokens, plan)
        if bits == 5:
            quantize(jax.random.key(0), model, plan, stats)
            continue
        with pytest.raises(ValueError, match=r"five must have .* bits=4, got codes of 5 bits"):
            quantize(jax.random.key(0), model, plan, stats)


def test_the_study_of_the_cache_takes_them(call, refuses):
    out = call(
        kv_cache, "--methods", f"{TURN}/outside_own:coarse", "--coordinates", TURN, "--bits", 3,
        "--targets", "KV", "--windows", 2, "--calibration-windows", 1, "--needles",
        "--induction", 0,
    )  # fmt: skip
    rows = select(read_rows(out / "rows.jsonl"), "delta_nll", coordinates=TURN)
    assert {r.config["quantizer"] for r in rows} == {"outside_own:coarse", "lloyd_max"}
    assert [r.seed for r in rows] == [0, 1, 0, 1]
    assert TURN in (out / "table.md").read_text()
    for name, words in (
        ("outside_own:wrong", "outside_own:wrong must return a Transform of length 8"),
        ("outside_own:gone", "module outside_own has no gone"),
    ):
        refuses(words, kv_cache, "--coordinates", name, "--methods", "kivi", "--windows", 1)


def test_the_study_of_block_rotations_takes_them(call, refuses):
    out = call(
        block_rotation, "--settings", "A4-down", "--blocks", 8, "--permutations", "none",
        "--coordinates", TURN, f"zigzag:8@{TURN}", "--windows", 2, "--seeds", 1,
        "--calibration-windows", 1,
    )  # fmt: skip
    rows = read_rows(out / "rows.jsonl")
    for turn in (TURN, f"zigzag:8@{TURN}"):
        assert len(select(rows, "delta_nll", coordinates=turn)) == 2
        assert select(rows, "relative_error", coordinates=turn)
    refuses("outside_own has no gone", block_rotation, "--coordinates", "outside_own:gone")
