"""Recipes, plans and their parts in words: read, printed, refused, hashed, swept."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from isojax.kvcache.recipe import OFFSETS, StoreRecipe
from isojax.quantize import Plan, Rule
from isojax.quantize.parts import CACHES, GROUPS, INPUT_PLACES, PLACES, TURNS
from isojax.recipes import (
    COORDINATES,
    LEVELS,
    ROUNDINGS,
    WRAPPERS,
    Coordinates,
    Levels,
    Recipe,
    Samples,
)

# beartype draws which elements it checks, within strategies too
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

KEY = jax.random.key(0)
DIM = 12
X = jax.random.normal(KEY, (300, DIM)) * jnp.geomspace(0.2, 3, DIM) + 1
METRIC = jnp.diag(jnp.geomspace(2, 0.1, DIM))
WEIGHT = jax.random.normal(jax.random.key(1), (DIM, 5))
SAMPLES = Samples(X, METRIC, WEIGHT, moment=X.T @ X / len(X))
VALUES = {
    "int": st.integers(1, 64),
    "float": st.floats(1e-3, 100, allow_nan=False),
    "bool": st.booleans(),
    "str": st.sampled_from(["mse", "fitted", "token", "log"]),
}


def kind(argument):
    return argument.annotation.partition(" ")[0]


@st.composite
def stages(draw, family):
    """Any member of a family, with some of its arguments set."""
    member = draw(st.sampled_from(list(family.members.values())))
    chosen = {
        name: draw(VALUES[kind(a)])
        for name, a in member.arguments.items()
        if a.default is a.empty or draw(st.booleans())
    }
    return member.stage(**chosen)


levels = st.builds(Levels, stages(LEVELS), st.lists(stages(WRAPPERS), max_size=2).map(tuple))
chains = st.lists(stages(COORDINATES), max_size=3).map(Coordinates.of)
recipes = st.builds(Recipe, chains, levels, st.booleans())
layer_lists = st.sampled_from(["", "0", "-1", "1:", ":2", "0,-1", "::2"])


@st.composite
def stores(draw):
    recipe = draw(recipes)
    by_channel = recipe.levels.member.arguments.get("granularity") == "channel"
    return StoreRecipe(
        recipe,
        offset=draw(st.sampled_from(OFFSETS)),
        rope="after" if "metric" in recipe.needs else draw(st.sampled_from(["after", "before"])),
        page=draw(st.integers(2, 64)) if by_channel else 1,
        sinks=draw(st.integers(0, 8)),
        recent=draw(st.integers(0, 8)),
        scale_dtype=draw(st.sampled_from(["float16", "float32"])),
    )


@st.composite
def rules(draw):
    """Any place, narrowed where it may be, with any part that may stand there, in words."""
    place = draw(st.sampled_from([*PLACES, *GROUPS]))
    first = GROUPS.get(place, (place,))[0]
    narrow = first not in ("residual", "embedding", "head")
    where = place + (f"[{draw(layer_lists)}]" if narrow and draw(st.booleans()) else "")
    where = where.removesuffix("[]")
    if draw(st.integers(0, 9)) == 0:
        return f"{where}: none"
    if first in TURNS:
        return f"{where}: {draw(chains)}"
    if first in CACHES:
        what = draw(stores())
        member, words = what.recipe.levels.member, str(what)
    else:
        what = Recipe(draw(chains), draw(levels))
        member, words = what.levels.member, str(what)
    allowed = member.member.facts.get("bits")
    if member.name not in ("none", "zero"):
        bits = draw(st.sampled_from(list(allowed)) if allowed else st.floats(0.5, 8))
        words += f" bits={bits}"
    if first not in CACHES and first not in INPUT_PLACES:
        rounding = "nearest" if not narrow else str(draw(stages(ROUNDINGS)))
        words += f" rounding={rounding}"
    return f"{where}: {words}"


quickly = settings(max_examples=60, deadline=None)


@quickly
@given(chains)
def test_coordinates_are_read_as_they_print(it):
    assert Coordinates.parse(str(it)) == it


@quickly
@given(levels)
def test_levels_are_read_as_they_print(it):
    assert Levels.parse(str(it)) == it


@quickly
@given(recipes)
def test_recipes_are_read_as_they_print(it):
    assert Recipe.parse(str(it)) == it


@quickly
@given(stores())
def test_recipes_of_stores_are_read_as_they_print(it):
    assert StoreRecipe.parse(str(it)) == it


@settings(max_examples=150, deadline=None)
@given(st.lists(rules(), max_size=3))
def test_rules_and_plans_are_read_as_they_print(texts):
    for text in texts:
        rule = Rule.parse(text)
        assert Rule.parse(str(rule)) == rule
    plan = Plan.parse("\n".join(texts))
    assert Plan.parse(str(plan)) == plan == Plan.parse(";".join(texts))
    assert len(plan.rules) == len(texts)


def test_every_chain_of_two_is_read_as_it_prints():
    names = [n if n != "block_hadamard" else "block_hadamard:4" for n in COORDINATES.members]
    for first in names:
        for second in names:
            it = Coordinates.parse(f"{first}@{second}")
            kept = [n for n in (first, second) if n != "identity"]
            assert str(it) == ("@".join(kept) or "identity")
            assert Coordinates.parse(str(it)) == it == Coordinates.parse(f"{first} @ {second}")


def test_whole_numbers_are_numbers():
    stage = COORDINATES.members["aligned"].stage
    assert stage(1) == stage(1.0) == stage() == Coordinates.parse("aligned:1").stages[0]
    assert str(stage(2)) == "aligned:2.0"


UNKNOWN = {
    "haar": (Coordinates.parse, "har", "har"),
    "block_hadamard": (Coordinates.parse, "haar@blok_hadamard:4", "blok"),
    "mass_diff": (Recipe.parse, "massdiff@block_hadamard:4/absmax", "massdiff"),
    "absmax": (Recipe.parse, "haar/absmx", "absmx"),
    "lloyd_max": (Levels.parse, "loyd_max:fitted", "loyd_max"),
    "sparse": (Levels.parse, "absmax@sparce", "sparce"),
    "gptq": (Plan.parse, "weight: absmax bits=4 rounding=gtpq", "gtpq"),
    "input": (Plan.parse, "inputs: haar", "inputs"),
    "input:down_proj": (Plan.parse, "input:down: haar", "input:down'"),
    "offset": (StoreRecipe.parse, "haar/lloyd_max ofset=pre_rope", "ofset"),
}


def message(read, *args):
    with pytest.raises(ValueError) as caught:
        read(*args)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500, text
    return text


@pytest.mark.parametrize(("nearest", "case"), UNKNOWN.items(), ids=UNKNOWN)
def test_unknown_names_are_refused_with_the_nearest(nearest, case):
    read, text, wrong = case
    found = message(read, text)
    assert nearest in found and wrong in found


@pytest.mark.parametrize(
    ("read", "text", "words"),
    [
        (Coordinates.parse, "", "coordinates must be one of"),
        (Coordinates.parse, "haar@", "coordinates must be one of"),
        (Coordinates.parse, "haar:4", "haar takes no arguments; got 1 values"),
        (Coordinates.parse, "haar:size=4", "haar takes no arguments; got size=4"),
        (Coordinates.parse, "block_hadamard", "block_hadamard takes the arguments block; block is"),
        (Coordinates.parse, "block_hadamard:four", "block must be of type int, got 'four'"),
        (Coordinates.parse, "aligned:0.5:log:3", "takes the arguments power=1.0, spectrum=power"),
        (Coordinates.parse, "aligned:0.5:power=0.5", "power=0.5"),
        (Coordinates.parse, "aligned:spectrum=log:0.5", "values must come before spectrum=..."),
        (Levels.parse, "absmax:token:range=mse:levels=full:shape=2", "got shape=2"),
        (Levels.parse, "absmax@haar", "a wrapper of levels must be one of"),
        (Recipe.parse, "haar/", "levels must be one of"),
        (Recipe.parse, "haar/absmax/absmax", "levels must be one of"),
        (Rule.parse, "input haar", "a rule must read as PLACE: RECIPE, got 'input haar'"),
        (Rule.parse, "input[x]: haar", "layers must be as in [0,-1] or [2:5], got [x]"),
        (Rule.parse, "input[::0]: haar", "layers must be as in [0,-1] or [2:5], got [::0]"),
        (Rule.parse, "input[]: haar", "layers must be as in [0,-1] or [2:5], got []"),
        (Rule.parse, "residual[0]: haar", "residual must be set for all layers together, got "),
        (Rule.parse, "input: haar/absmax", "bits must be given for absmax, as in bits=4"),
        (Rule.parse, "input: haar/absmax bits=9", "bits of absmax must be one of 2, 3"),
        (Rule.parse, "input: haar/absmax bits=four", "bits must be a number, got 'four'"),
        (Rule.parse, "input: haar/ecsq bits=nan", "bits must be above 0, got nan"),
        (Rule.parse, "input: haar/none bits=4", "none takes no bits, got bits=4"),
        (Rule.parse, "input: haar/absmax 4", "settings must be name=value, each once; got '4'"),
        (Rule.parse, "input: absmax bits=4 bits=4", "each once; got 'bits=4'"),
        (Rule.parse, "input: absmax bits=4 rounding=gptq", "setting of input:q_proj must be"),
        (Rule.parse, "residual: haar bits=4", "residual takes no settings, got bits"),
        (Rule.parse, "input: centre@haar/absmax bits=4", "input:q_proj must not be centred"),
        (Rule.parse, "embedding: absmax bits=4 rounding=gptq", "rounding of embedding must"),
        (Rule.parse, "cache: minmax:channel bits=4", "page must be above 1 for a range per"),
        (Rule.parse, "cache: haar/lloyd_max bits=3 sinks=few", "sinks must be a whole number"),
        (Rule.parse, "cache: haar/lloyd_max bits=3 rope=later", "rope must be one of"),
        (StoreRecipe.parse, "haar/lloyd_max sinks", "settings must be name=value, got 'sinks'"),
        (Plan.parse, "# all\ninput: haar\ninput: hair", "plan, line 3: recipe must be"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_in_one_line(read, text, words):
    assert words in message(read, text)


def test_a_plan_in_a_file_names_the_file_and_the_line(tmp_path):
    path = tmp_path / "plan.txt"
    path.write_text("# comment\n\nresidual: hadamard\n")
    assert Plan.load(path) == Plan.parse("residual: hadamard")
    path.write_text("residual: hadamard\nvalues: hadmard\n")
    assert f"{path}: plan, line 2" in message(Plan.load, path)


def test_later_rules_count_and_none_leaves_a_place_as_it_is():
    plan = Plan.parse("input: haar; input:o_proj[1:]: none; input:k_proj[-1]: hadamard")
    assert [str(p) for p in plan.at("input:o_proj", 3)] == ["haar/none", "None", "None"]
    assert [str(p) for p in plan.at("input:q_proj", 3)] == ["haar/none"] * 2 + ["hadamard/none"]
    assert message(Plan.parse("values[3]: haar").at, "values", 3).startswith("layers must be from")


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
