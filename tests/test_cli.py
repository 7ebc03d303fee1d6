"""The studies as an installed isojax runs them, and what a wheel holds."""

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from experiments.perplexity import __main__ as perplexity
from isojax.__main__ import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
STUDIES = sorted(p.parent.name for p in (ROOT / "experiments").glob("*/__main__.py"))


@pytest.fixture
def say(monkeypatch, capsys):
    """What `isojax` with these arguments prints, and its exit code."""

    def say(*arguments):
        monkeypatch.setattr("sys.argv", ["isojax", *arguments])
        monkeypatch.setattr("sys.path", [*sys.path])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return say


def test_help_lists_every_study_with_its_question(say):
    code, out, _ = say("--help")
    assert code == 0 and say()[1] == out
    for name in STUDIES:
        (line,) = (
            line for line in out.splitlines() if line.split()[:1] == [name.replace("_", "-")]
        )
        assert len(line.split()) > 5 and len(line) <= 120
    assert perplexity.__doc__.splitlines()[0] in out


def test_an_unknown_study_is_one_line_with_the_nearest_name(say):
    code, out, err = say("kv-cahe", "--quick")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "'kv-cahe'" in err and "nearest: kv-cache " in err


@pytest.mark.parametrize("name", ["kv-cache", "kv_cache"])
def test_a_study_is_run_with_the_arguments_after_its_name(say, name):
    code, out, _ = say(name, "--dry-run", "--bits", "2")
    assert code == 0 and '"experiment": "kv_cache"' in out and '"bits": [2]' in out
    code, out, _ = say(name, "--help")
    assert code == 0 and "usage: isojax kv-cache " in out
    code, _, err = say(name, "--bits", "two")
    assert code == 2 and err.count("\n") == 1


def test_a_wheel_puts_isojax_alone_into_site_packages(tmp_path, monkeypatch):
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
        opened.extractall(tmp_path / "site")
    assert {name.split("/")[0].split("-")[0] for name in names} == {"isojax"}
    for folder, mapped in (("isojax", "isojax"), ("experiments", "isojax/experiments")):
        for path in (ROOT / folder).rglob("*.py"):
            assert f"{mapped}/{path.relative_to(ROOT / folder)}" in names
    tiny = "isojax/models/tiny"
    assert {"isojax/py.typed", f"{tiny}/model.safetensors", f"{tiny}/heldout.txt"} <= names
    done = subprocess.run(
        [sys.executable, "-m", "isojax", "perplexity", "--dry-run"],
        cwd=tmp_path / "site", env={"PATH": "", "HOME": str(tmp_path)}, text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    assert '"experiment": "perplexity"' in done.stdout
