"""Recipes fitted to samples: members from outside, what is lacking, traced arguments."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import message
from numpy.testing import assert_allclose

from isojax import quantizers
from isojax.quantize import Plan
from isojax.recipes import (
    COORDINATES,
    LEVELS,
    Coordinates,
    Levels,
    Recipe,
    Samples,
)

KEY = jax.random.key(0)
DIM = 12
X = jax.random.normal(KEY, (300, DIM)) * jnp.geomspace(0.2, 3, DIM) + 1
METRIC = jnp.diag(jnp.geomspace(2, 0.1, DIM))
WEIGHT = jax.random.normal(jax.random.key(1), (DIM, 5))
SAMPLES = Samples(X, METRIC, WEIGHT, moment=X.T @ X / len(X))


OWN = """
import jax, jax.numpy as jnp
from isojax import transforms, quantizers

number = 3


def flip(key, samples, sign: float = -1.0):
    return transforms.Diagonal(jnp.full(samples.dim, sign))


def swap(key, samples, shift: int):
    order = jnp.roll(jnp.arange(samples.dim), shift)
    return transforms.Permutation(order)


def loose(key, samples, shift=1, **more):
    return swap(key, samples, shift)


def coarse(samples, bits, clip: float = 1.0):
    return quantizers.absmax(bits, "token", clip=clip)


def matrix(key, samples):
    return jnp.eye(samples.dim)


def short(key, samples):
    return transforms.identity(samples.dim - 1)


def fails(key, samples):
    return {}["scale"]


def few(key):
    return transforms.identity(4)


def step(samples, bits):
    return 0.5
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The name of a module that is not of this package."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "notation_own.py").write_text(OWN)
    (folder / "notation_broken.py").write_text("import no_such_module\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield "notation_own"
    sys.modules.pop("notation_own", None)


def test_members_from_outside_are_read_as_they_print_and_used(own):
    for text in (f"{own}:flip", f"haar@{own}:flip:-2.0", f"{own}:swap:3@{own}:flip"):
        it = Coordinates.parse(text)
        assert str(it) == text and Coordinates.parse(str(it)) == it
        assert it.random and it.needs == {"x", "metric", "weight", "moment"}
    recipe = Recipe.parse(f"{own}:flip:-2/{own}:coarse:0.9@sparse:0.1")
    assert Recipe.parse(str(recipe)) == recipe
    codec = recipe.fit(KEY, SAMPLES, 4)
    assert_allclose(codec.rotate(X), -2 * X, rtol=1e-6)
    assert float(codec.quantizer.inner.clip) == pytest.approx(0.9)
    order = Coordinates.parse(f"{own}:swap:2").fit(KEY, SAMPLES)
    assert_allclose(order.apply(X), np.roll(X, 2, -1))
    for text in (f"{own}:loose:2", f"{own}:loose:shift=2"):  # no annotation: that of the default
        assert_allclose(Coordinates.parse(text).fit(KEY, SAMPLES).apply(X), np.roll(X, 2, -1))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no_such_module:flip", "or package.module:name for your own; got 'no_such_mod"),
        ("OWN:flap", "module OWN has no flap"),
        ("OWN:number", "OWN:number must be a function, got 3"),
        ("OWN:swap", "OWN:swap takes the arguments shift; shift is missing"),
        ("OWN:swap:a", "OWN:swap: shift must be of type int, got 'a'"),
        ("notation_broken:flip", "notation_broken cannot be imported: ModuleNotFoundError"),
        ("builtins:print", "coordinates builtins:print"),
    ],
)
def test_members_from_outside_that_are_none_are_refused(own, text, words):
    text, words = text.replace("OWN", own), words.replace("OWN", own)

    def read():
        Coordinates.parse(text).fit(KEY, SAMPLES)

    assert words in message(read)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("OWN:matrix", "coordinates OWN:matrix must return a Transform of length 12, got Array"),
        ("haar@OWN:short", "OWN:short must return a Transform of length 12, got one of length 11"),
        ("OWN:fails", "OWN:fails raised KeyError: 'scale'"),
        ("OWN:few", "OWN:few raised TypeError"),
        ("identity/OWN:step", "levels OWN:step must return a Quantizer, got float"),
    ],
)
def test_what_members_from_outside_return_is_checked(own, text, words):
    recipe = Recipe.parse(text.replace("OWN", own))
    found = message(recipe.fit, KEY, SAMPLES, 4).replace("ArrayImpl", "Array")
    assert words.replace("OWN", own) in found


FITTED = [n for n, m in COORDINATES.members.items() if m.facts["fitted"]]


@pytest.mark.parametrize("name", FITTED)
def test_what_is_fitted_says_what_it_lacks(name):
    block = ":4" if "block" in COORDINATES.members[name].arguments else ""
    it = Coordinates.parse(name + block)
    for lacking in it.needs:
        given = {n: getattr(SAMPLES, n) for n in it.needs - {lacking}}
        samples = Samples(**{"x": None} | given, size=DIM)
        assert "must" in message(it.fit, KEY, samples)
    assert "is fitted on samples" in message(it.draw, KEY, DIM)


def test_permutations_for_blocks_need_blocks():
    for name in ("mass_diff", "co_activation", "zigzag"):
        assert f"{name} must come before blocks" in message(
            Coordinates.parse(f"{name}@haar").fit, KEY, SAMPLES
        )
        before = Coordinates.parse(f"{name}@block_hadamard:4").fit(KEY, SAMPLES).factors[0]
        given = Coordinates.parse(f"{name}:4").fit(KEY, SAMPLES)
        assert_allclose(before.indices, given.indices)


def test_stages_are_fitted_on_what_the_one_before_returns():
    whole = Coordinates.parse("standardize@pca").fit(KEY, SAMPLES)
    first = Coordinates.parse("standardize").fit(KEY, SAMPLES)
    second = Coordinates.parse("pca").fit(KEY, Samples(first.apply(X)))
    assert_allclose(whole.matrix(), first.matrix() @ second.matrix(), atol=1e-5)
    moment = np.cov(np.asarray(whole.apply(X)).T, bias=True)
    assert np.abs(moment - np.diag(np.diag(moment))).max() < np.diag(moment).max()


SWEPT = {
    "power": ("aligned", (0.25, 0.5, 0.75)), "alpha": ("smooth", (0.25, 0.5, 0.75)),
    "exponent": ("balance", (0.25, 0.5, 0.75)), "damping": ("wush", (0.01, 0.1, 1.0)),
}  # fmt: skip


@pytest.mark.parametrize("name", SWEPT)
def test_traced_arguments_are_swept_as_in_a_loop(name):
    member, values = SWEPT[name]

    def fit(value):
        stage = COORDINATES.members[member].stage(**{name: value})
        return Recipe(Coordinates((stage,)), Levels.parse("absmax")).fit(KEY, SAMPLES, 4)

    swept = jax.vmap(fit)(jnp.asarray(values))
    for i, value in enumerate(values):
        one = fit(value)
        got = jax.tree.map(lambda a, i=i: a[i], swept.transform).matrix()
        assert_allclose(got, one.transform.matrix(), rtol=2e-4, atol=2e-5)


def test_arguments_that_may_be_traced_are_leaves_and_others_are_structure():
    traces = []

    @jax.jit
    def fit(recipe):
        traces.append(recipe)
        return recipe.fit(KEY, SAMPLES, 4).transform.matrix()

    seen = [fit(Recipe.parse(f"aligned:{power}/absmax")) for power in (0.25, 0.5)]
    assert len(traces) == 1 and float(jnp.abs(seen[0] - seen[1]).max()) > 1e-3
    fit(Recipe.parse("aligned:0.5:log/absmax"))
    fit(Recipe.parse("aligned:0.5/absmax:range=mse"))
    assert len(traces) == 3
    plan = Plan.parse("input: smooth:0.2/absmax bits=4; weight: absmax bits=4 rounding=gptq:0.1")
    assert jax.tree.leaves(plan) == [0.2, 0.1]
    other = jax.tree.map(lambda a: 2 * a, plan)
    assert str(other) == str(plan).replace("0.2", "0.4").replace("0.1", "0.2")
    assert other == Plan.parse(str(other)) != plan
    assert hash(other) == hash(Plan.parse(str(other)))
    assert len({plan, other, Plan.parse(str(plan))}) == 2
    assert jax.tree.structure(plan) == jax.tree.structure(other)
    bits = Plan.parse(str(plan).replace("bits=4", "bits=3"))
    assert jax.tree.structure(plan) != jax.tree.structure(bits)


@pytest.mark.parametrize("name", [*COORDINATES.members, *LEVELS.members])
def test_members_with_the_same_arguments_are_equal(name):
    family = COORDINATES if name in COORDINATES.members else LEVELS
    block = ":4" if name == "block_hadamard" else ""
    one, two = family.parse(name + block), family.parse(name + block)
    assert one == two and hash(one) == hash(two) and len({one, two}) == 1


def test_groups_divide_the_vector_or_are_all_of_it():
    for text, group in (("absmax:group:4", 4), ("minmax:group:12", 12), ("fp4:group:128", 12)):
        assert Levels.parse(text).fit(Samples(None, size=12), 4).group == group
    found = message(Levels.parse("absmax:group:5").fit, Samples(None, size=12), 4)
    assert "group must divide 12, the length of vectors, as 4 does; got 5" in found


def test_a_clip_cuts_the_range_and_none_is_that_of_the_rule():
    clipped = Recipe.parse("identity/absmax:clip=0.5").fit(KEY, SAMPLES, 4)
    want = quantizers.absmax(4, "token", clip=0.5).roundtrip(X)
    assert_allclose(clipped.roundtrip(X), want)
    for rule in ("max", "percentile", "std"):
        for name, make in (("absmax", quantizers.absmax), ("minmax", quantizers.minmax)):
            plain = Recipe.parse(f"identity/{name}:range={rule}").fit(KEY, SAMPLES, 4)
            levels = {"levels": "affine"} if name == "minmax" else {}
            want = make(4, "token", range_rule=rule, **levels).roundtrip(X)
            assert_allclose(plain.roundtrip(X), want)
    for clip in ("1.5", "0.0"):
        levels = Levels.parse(f"minmax:clip={clip}")
        assert "clip must be above 0" in message(levels.fit, SAMPLES, 4)
    assert Recipe.parse("identity/absmax:clip=0.5").words["clip"] == 0.5
    assert "clip" not in Recipe.parse("identity/absmax").words  # rows of before keep their identity
