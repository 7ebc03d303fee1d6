"""Recipes, plans and their parts in words: read, printed, refused, hashed, swept."""

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import message

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
)

# beartype draws which elements it checks, within strategies too
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

KEY = jax.random.key(0)
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
        (Rule.parse, "weight: centre@haar/absmax bits=4", "weight:q_proj must not be centred"),
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
