"""Plans carried out: what is merged and undone changes nothing."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from plan_models import FORMS, inputs_of, logits_of, made, model_of, refuses

from isojax.quantize import unquantized
from isojax.quantize.parts import PLACES

pytestmark = pytest.mark.slow

OWN = """
import jax, jax.numpy as jnp
from isojax import quantizers, transforms


def oblique(key, samples, condition: float = 10.0):
    left, right = (transforms.haar(k, samples.dim).entries for k in jax.random.split(key))
    size = jnp.geomspace(condition**-0.5, condition**0.5, samples.dim)
    return transforms.Oblique((left * size) @ right, (right.T / size) @ left.T)


def mirror(key, samples):
    u = jax.random.normal(key, (samples.dim,))
    u = u / jnp.linalg.norm(u)
    return transforms.Dense(jnp.eye(samples.dim) - 2 * jnp.outer(u, u))


def coarse(samples, bits):
    return quantizers.absmax(bits, "token", clip=0.9)
"""


@pytest.fixture(scope="module", autouse=True)
def own(tmp_path_factory):
    """A module of members that are not of this package."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "plans_own.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield
    sys.modules.pop("plans_own", None)


def same_logits(got, form, within=1e-4):
    exact = logits_of(model_of(form))
    assert np.abs(logits_of(got) - exact).max() < within * np.abs(exact).max()


OBLIQUE = ("values", "queries_keys", *(p for p in PLACES if p.startswith("input:")))
EXACT = {
    **{f"oblique at {place}": f"{place}: plans_own:oblique" for place in OBLIQUE},
    "oblique everywhere": "\n".join(f"{p}: plans_own:oblique" for p in OBLIQUE),
    "smooth": "input: smooth; values: random_permutation",
    "standardize": "input:q_proj: standardize; input:gate_proj: standardize",
    "a permutation": "input:down_proj: random_permutation",
    "mass_diff": "input:down_proj: mass_diff@block_hadamard:8",
    "a chain": "input:down_proj: standardize@random_permutation@pca@plans_own:oblique",
    "permutations that do not merge": "input: random_permutation@block_hadamard:8",
    "residual of one's own": "residual: plans_own:mirror",
    "residual, fitted": "residual: pca",
    "isometries": "residual: hadamard; values: hadamard; queries_keys: hadamard; input: haar",
    "residual and smooth": "residual: haar; input: smooth@hadamard; values: pca",
    "aligned": "values: aligned; queries_keys: aligned; input: aligned",
    "balance": "values: haar; input: balance@smooth@hadamard",
    "awq": "input: awq:steps=4@hadamard; input:down_proj: awq:4:8:4@mass_diff@block_hadamard:8",
    "wush": "values: wush; queries_keys: wush; input: wush@hadamard",
    "wush in blocks": "input: wush:8@block_hadamard:8; input:down_proj: mass_diff@cat:8@hadamard",
    "flatquant": "input: balance_search:steps=2@flatquant:steps=2:rate=0.01",
    "kron_wush": "residual: hadamard; input: kron_wush@hadamard; input:q_proj: kron_wush:4",
}  # fmt: skip
ALL_FORMS = (
    "balance",
    "wush",
    "kron_wush",
    "oblique everywhere",
    "smooth",
    "a chain",
    "isometries",
    "residual and smooth",
)
CASES = [(form, name) for name in EXACT for form in FORMS if form == "qwen2" or name in ALL_FORMS]


@pytest.mark.parametrize(("form", "name"), CASES)
def test_what_is_merged_and_undone_changes_no_logits(form, name):
    got = made(form, EXACT[name])
    same_logits(got, form)
    leaves = jax.tree.leaves((got.inputs, got.turn))
    moved = [
        np.abs(np.asarray(a) - np.asarray(b)).max()
        for a, b in zip(
            jax.tree.leaves(got.params["layers"]),
            jax.tree.leaves(model_of(form).params["layers"]),
            strict=True,
        )
    ]
    assert leaves or max(moved) > 1e-2  # something was done


MERGES = {
    "input:q_proj: smooth": None,
    "input:gate_proj: standardize": None,
    "input:down_proj: smooth@random_permutation": None,
    "input:down_proj: smooth@random_permutation@hadamard": "Hadamard",
    "input:q_proj: smooth@hadamard": "Hadamard",
    "input:q_proj: random_permutation": "Permutation",
    "input:o_proj: smooth": None,
    "input:o_proj: balance@hadamard": "Hadamard",
    "input:o_proj: hadamard@balance": "Composed",
    "input:o_proj: wush:8@block_hadamard:8": "Composed",
    "values: haar; input:o_proj: balance@smooth": None,
    "values: haar": None,
    "residual: haar": None,
}  # fmt: skip


@pytest.mark.parametrize("text", MERGES)
def test_what_merges_does_not_run(text):
    got = made("qwen2", text)
    if MERGES[text] is None:
        assert not got.inputs and got.turn is None
    else:
        (each,) = got.inputs.values()
        assert type(each.stacks[0].transform).__name__ == MERGES[text]


def test_transforms_stand_where_they_should():
    """The input of down_proj is the plain one through the whole chain, as a quantizer sees it."""
    got = made("llama", "input:down_proj: standardize@random_permutation@block_hadamard:8")
    before, after = (inputs_of(m)["input:down_proj"] for m in (unquantized(model_of("llama")), got))
    online = got.inputs["input:down_proj"]
    for i, merged in enumerate(got.shared["input:down_proj"]):
        turn = merged @ online.of(i).transform
        assert_allclose(turn.apply(before[i]), after[i], atol=2e-4 * float(jnp.abs(after).max()))


@pytest.mark.parametrize("turn", ["plans_own:oblique", "aligned", "standardize", "haar@smooth"])
def test_the_residual_stream_takes_isometries_alone(turn):
    words = (
        "residual must be turned by an isometry" if turn not in ("aligned", "haar@smooth") else ""
    )
    refuses(words, "qwen2", f"residual: {turn}")


@pytest.mark.parametrize("place", ["residual", *OBLIQUE])
def test_padded_transforms_are_refused(place):
    form = "qwen2"
    refuses(f"{place} must keep its length", form, f"{place}: rotor")
