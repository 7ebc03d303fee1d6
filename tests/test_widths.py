"""Studies on a model whose widths their own blocks and groups do not divide."""

import pytest
from small_models import TEXT, saved, small_config, small_model

from experiments.alignment import __main__ as alignment
from experiments.block_rotation import __main__ as block_rotation
from experiments.compare import __main__ as compare
from experiments.isotropic_tradeoff import __main__ as isotropic_tradeoff
from experiments.linear_layers import __main__ as linear_layers
from experiments.quantize import __main__ as quantize
from isojax.quantize import find_plan
from isojax.quantize.shapes import quantized_shapes, statistics_shapes
from isojax.report import read_rows, select

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    model = small_model(
        num_hidden_layers=1, hidden_size=80, num_attention_heads=4, head_dim=20,
        intermediate_size=88,
    )  # fmt: skip
    (folder / "text.txt").write_text(TEXT * 30)
    return saved(folder, model)


def found(folder, key):
    return {row.config.get(key) for row in read_rows(folder / "rows.jsonl")}


@pytest.mark.parametrize(
    "config, name, dims, want",
    [
        (compare.Config(), "coordinates", (320, 896, 64), "block_hadamard:32"),
        (compare.Config(), "coordinates", (80,), "mass_diff@block_hadamard:20"),
        (compare.Config(quick=True), "coordinates", (80, 88), "block_hadamard:8"),
        (isotropic_tradeoff.Config(), "granularities", (80,), "group:40"),
        (isotropic_tradeoff.Config(), "granularities", (80,), "group:20"),
        (linear_layers.Config(), "coordinates", (80, 176), "wush:16@block_hadamard:16"),
        (linear_layers.Config(), "coordinates", (80, 176), "cat:16@hadamard"),
    ],
)
def test_lengths_of_the_study_become_the_largest_that_divide(config, name, dims, want, capsys):
    made = config.dividing(name, *dims)
    assert want in made and len(made) == len(getattr(config, name))
    said = capsys.readouterr().out
    assert said.count("\n") == (want not in getattr(config, name))
    assert want in getattr(config, name) or f"{want} for " in said


def test_defaults_that_divide_keep_their_notation(capsys):
    config = linear_layers.Config()
    assert config.dividing("coordinates", 320, 896) == config.coordinates
    assert "smooth:0.5@hadamard" in config.dividing("coordinates", 80, 176)
    assert "smooth" not in capsys.readouterr().out


def test_lengths_of_the_command_line_stay():
    given = ("mass_diff@block_hadamard:32",)
    assert compare.Config(coordinates=given).dividing("coordinates", 80) == given


def test_the_tradeoff_runs_and_its_rows_say_the_groups(call, capsys):
    quick = ("--quick", "--bits", 3, "--seeds", 1, "--coordinates", "identity")
    weights = ("--weights", "weight:down_proj:0", "--weight-bits", 3)
    folder = call(isotropic_tradeoff, *quick, *weights)
    assert {40, 20, 44, 22} <= found(folder, "group") <= {0, 40, 20, 44, 22, None}
    said = capsys.readouterr().out
    assert "granularities, in lengths that divide 80: group:40 for group:64" in said


def test_heads_that_eight_does_not_divide_are_rounded_to_d4(call, capsys):
    given = ("--coordinates", "identity", "--bits", 2, "--windows", 1)
    folder = call(alignment, "--quick", "--layers", 1, *given)
    rows = select(read_rows(folder / "rows.jsonl"), "nmse")
    found = {(row.config["tensor"], row.config["coding"]) for row in rows}
    every = {"shannon", "fixed", "allocated", "entropy"}
    assert found == {("key", coding) for coding in every | {"lattice_d4"}} | {
        ("input:q_proj", coding) for coding in every | {"lattice"}
    }
    assert "key, identity: `lattice_d4` for `lattice`, whose blocks of 8" in capsys.readouterr().out
    assert "`lattice_d4`: 1 of 1 measured" in (folder / "table.md").read_text()


@pytest.mark.parametrize(
    "width, name", [(88, "mixquant:block=8"), (104, "mixquant:block=8"), (64, "mixquant")]
)
def test_mixquant_is_of_the_longest_block_that_divides(width, name, capsys):
    config = quantize.Config()
    plans = {given: find_plan(given) for given in config.plans}
    made = quantize.dividing(config, plans, width)
    assert made[name] == find_plan(name) and len(made) == len(plans)
    sizes = {"hidden_size": 80, "num_attention_heads": 4, "head_dim": 20}
    small = small_config(num_hidden_layers=1, intermediate_size=width, **sizes)
    quantized_shapes(made[name], small, statistics_shapes(small))
    assert (f"{name} for mixquant" in capsys.readouterr().out) == (width != 64)
    given = quantize.Config(plans=("mixquant",))
    assert quantize.dividing(given, plans, width) == plans


def test_block_rotations_are_of_the_longest_blocks_that_divide(call, capsys):
    folder = call(block_rotation, "--quick", "--permutations", "mass_diff")
    assert "mass_diff@block_hadamard:8" in found(folder, "coordinates")
    assert "blocks, in lengths that divide 88: 8 for 16" in capsys.readouterr().out


@pytest.mark.parametrize(
    "module, words, given",
    [
        (compare, "block must divide d=80", ("--coordinates", "mass_diff@block_hadamard:32")),
        (isotropic_tradeoff, "group must divide", ("--granularities", "group:64")),
        (block_rotation, "block must be one of 88", ("--blocks", 32)),
    ],
)
def test_lengths_of_the_command_line_that_do_not_divide_are_refused(module, words, given, refuses):
    refuses(words, module, *given, "--windows", 1)
