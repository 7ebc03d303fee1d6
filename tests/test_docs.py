"""What the documents say holds: tables come from rows, examples run, names are listed."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import isojax
from isojax.quantize import PLACES
from isojax.quantize.presets import PLANS
from isojax.recipes import COORDINATES, LEVELS, WRAPPERS

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("doc_examples", ROOT / "scripts" / "doc_examples.py")
assert SPEC and SPEC.loader
doc_examples = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(doc_examples)
IDEAS = [page for page in doc_examples.PAGES if page not in ("index", "your_own")]


def test_the_tables_of_the_readme_are_made_from_its_rows():
    command = [sys.executable, ROOT / "scripts" / "update_docs.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_snippets_of_the_readme_run_one_after_the_other():
    _, printed = doc_examples.run("../README")
    assert len(printed) == 2
    for name in ("hadamard", "__main__:dealt_blocks"):
        assert f"{name} {{'delta_nll'" in printed[0]


@pytest.mark.slow
@pytest.mark.shared
def test_the_notebook_runs_and_comes_to_its_finding(shared, tmp_path):
    model = shared("models/SmolLM2-135M-Instruct.Q4_1.gguf")
    (tmp_path / "isojax").mkdir()
    (tmp_path / "isojax" / model.name).symlink_to(model.resolve())
    cells = json.loads((ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    few = code
    for given, less in (
        ("windows[:4], windows[4:12]", "windows[:1], windows[1:3]"),
        ('("rotated-inputs", "balanced-inputs")', '("balanced-inputs",)'),
    ):
        assert few.count(given) == 1
        few = few.replace(given, less)
    assert few.startswith("%pip install")
    # KL of all distributions, since the loss of a single window is mostly noise
    losses = "{name: summary(scores)['kl_mean'] for name, scores in losses.items()}"
    few = few.partition("\n")[2] + f"\nimport json\nprint(json.dumps({losses}))"
    own = {"XDG_CACHE_HOME": str(tmp_path), "MPLBACKEND": "agg"}
    # it computes more than other tests do: with no optimization at all it takes twice as long
    flags = os.environ["XLA_FLAGS"].replace("optimization_level=0", "optimization_level=1")
    environment = os.environ | own | {"XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", few], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    loss = json.loads(done.stdout.splitlines()[-1])
    assert loss["aligned:2"] < 0.9 * loss["rotated-cache:2"]
    most = {name: 6 if name == "sorted_blocks" else 3 for name in loss}  # a control
    assert len(loss) == 4 and all(1e-3 < value < most[name] for name, value in loss.items())


@pytest.mark.slow
@pytest.mark.parametrize("page", doc_examples.PAGES)
def test_the_examples_of_a_page_print_what_it_shows(page):
    _, printed = doc_examples.run(page)
    assert printed and any(printed)
    assert not list(doc_examples.differences(page, printed))


@pytest.mark.parametrize("page", IDEAS)
def test_a_page_of_an_idea_has_a_figure_that_is_small(page):
    found = re.findall(r"!\[.+\]\((figures/.+?)\)", (ROOT / "docs" / f"{page}.md").read_text())
    assert found == [f"figures/{page}.svg"]
    assert 0 < (ROOT / "docs" / found[0]).stat().st_size < 60_000


@pytest.mark.parametrize(
    "shown, got, alike",
    [
        ("NMSE 0.1000", "NMSE 0.1019", True),
        ("NMSE 0.1000", "NMSE 0.1021", False),
        ("loss 0.02 of  7", "loss 0.03 of 7", True),  # one unit of the last digit
        ("loss 0.02", "loss 0.04", False),
        ("1.5e-05", "1.52e-05", True),
        ("7 tokens", "8 tokens", False),
        ("1,024.0 bytes", "1030.0 bytes", True),
        ("gain 1.0 dB", "loss 1.0 dB", False),
        ("a 1.0", "a 1.0 2.0", False),
        ("-1.0", "1.0", False),
    ],
)
def test_outputs_are_alike_to_two_percent(shown, got, alike):
    assert doc_examples.alike(shown, got) == alike


def test_the_pages_list_every_name():
    def listed(page):
        text = (ROOT / "docs" / f"{page}.md").read_text()
        words = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
        return {word.partition(":")[0] for word in words} | set(words)

    recipes, plans = listed("recipes"), listed("plans")
    for family in (COORDINATES, LEVELS, WRAPPERS):
        own = {n for n, m in family.members.items() if m.make.__module__.startswith("isojax.")}
        assert own and not own - recipes
    assert not set(PLANS.members) - plans
    named = {place for place in PLACES if not place.startswith("weight:")}
    assert not named - plans and {"weight:q_proj", "weight:down_proj"} <= plans


def test_the_documents_name_the_version():
    newest = re.search(r"^## (\S+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), flags=re.M)
    assert newest and cited and newest[1] == cited[1] == isojax.__version__
