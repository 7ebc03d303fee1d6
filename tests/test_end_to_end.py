"""Rotations learned by the loss of the whole model: the divergence, the trial, and the study."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from small_models import small_model

import experiments.end_to_end.__main__ as end_to_end
from experiments.end_to_end.measure import SETTINGS, Reader
from isojax import quantizers
from isojax.models import Hooks, forward, logits, token_kl, token_nll
from isojax.quantize import quantize, score
from isojax.quantize.turns import turned_inputs
from isojax.report import read_rows, select

pytestmark = pytest.mark.slow

TOKENS = np.random.default_rng(0).integers(0, 60, (3, 24))
GIVEN = ("--starts", "haar", "--seeds", 2, "--steps", 10, "--rate", 0.02, "--windows", 2,
         "--calibration-windows", 2)  # fmt: skip


INT4 = quantizers.absmax(4, "token")


@pytest.fixture(scope="module")
def reader():
    return Reader(small_model(num_hidden_layers=2), TOKENS[:2], TOKENS[2:])


def test_divergence_is_that_of_the_whole_distributions(reader):
    def shift(name, layer, x):
        return x + 0.3 * jnp.sin(jnp.arange(x.shape[-1])) if name == "input:q_proj" else x

    ids, hooks = jnp.asarray(TOKENS), Hooks(activation=shift)
    args = (reader.params, reader.config)
    exact = forward(*args, ids).hidden
    p, q = (
        np.asarray(jax.nn.log_softmax(logits(reader.params, h)), float)
        for h in (exact, forward(*args, ids, hooks=hooks).hidden)
    )
    got = token_kl(*args, exact, ids, hooks, chunk=7)
    assert_allclose(got, np.sum(np.exp(p) * (p - q), -1), rtol=1e-3, atol=1e-6)
    assert np.max(got) > 1e-4
    assert_allclose(token_kl(*args, exact, ids), 0, atol=1e-6)
    with pytest.raises(ValueError, match="hidden must have shape"):
        token_kl(*args, exact[..., 1:], ids)


def test_merged_rotations_read_as_the_hooks_they_were_learned_by(reader):
    turns = reader.start("haar", 0)
    hooks = turned_inputs(reader.config, turns, INT4)
    want = token_nll(reader.params, reader.config, jnp.asarray(TOKENS[2:]), hooks).mean()
    made = quantize(jax.random.key(0), reader.model, SETTINGS["W16A4"], turns.stats(2))
    got = float(score(made, TOKENS[2:]).nll.mean())
    lost = abs(float(want - reader.exact[0].mean()))
    assert lost > 1e-4
    # in fp32 an element may fall on the other side of a border
    assert got == pytest.approx(float(want), abs=0.1 * lost)


def test_learning_lowers_the_divergence_and_keeps_rotations(reader):
    start = reader.start("haar", 1)
    learned, told = reader.learned(start, 1, 20, 0.02)
    assert [*told] == [0, *range(2, 21, 2)]
    ids = jnp.asarray(TOKENS[:2])
    exact = forward(reader.params, reader.config, ids).hidden
    before, after = (
        float(token_kl(reader.params, reader.config, exact, ids, hooks).mean())
        for hooks in (turned_inputs(reader.config, r, INT4) for r in (start, learned))
    )
    assert after < 0.9 * before
    assert after == pytest.approx(min(told.values()), rel=0.02)
    assert before == pytest.approx(reader.divergence(start), rel=0.02)
    for turned, first in zip(learned[:2], start[:2], strict=True):
        m = np.asarray(turned.entries, float)
        eye = np.broadcast_to(np.eye(m.shape[-1]), m.shape)
        assert_allclose(m @ m.swapaxes(-1, -2), eye, atol=1e-5)
        assert np.abs(m - np.asarray(first.entries)).max() > 1e-3


def test_the_study_compares_each_start_with_what_it_became_and_resumes(call):
    out = call(end_to_end, *GIVEN)
    rows = read_rows(out / "rows.jsonl")
    scored = select(rows, "delta_nll")
    descent = [r for r in select(rows, "kl_mean") if "step" in r.config]
    assert len(scored) == 2 * 2 * 2 * 2  # seeds, settings, before and after, windows
    assert sorted(r.config["step"] for r in descent if r.seed == 1) == [*range(11)]
    lines = (out / "rows.jsonl").read_text().splitlines(keepends=True)
    (out / "rows.jsonl").write_text("".join(lines[:-3]))  # as a killed run leaves it
    call(end_to_end, *GIVEN, out=out)
    again = read_rows(out / "rows.jsonl")
    assert again[:-3] == rows[:-3] and [r.identity for r in again] == [r.identity for r in rows]
    assert_allclose([r.value for r in again], [r.value for r in rows], rtol=1e-4)
    for seed in (0, 1):
        first, *later = [r.value for r in descent if r.seed == seed]
        assert min(later) < first, (first, later)
    assert "W4A4, learned" in (out / "table.md").read_text()
    assert (out / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "words, arguments",
    [
        ("steps must be a multiple of 10, got 15", ("--steps", 15)),
        ("pca is fitted on samples", ("--starts", "pca")),
        ("rate must be above 0", ("--rate", 0)),
    ],
)
def test_bad_input_ends_in_one_line(refuses, words, arguments):
    refuses(words, end_to_end, *arguments)
