"""The pages on papers name what exists: functions, commands, files, sections, measured figures."""

import json
import pkgutil
import re
import sys
import types
from pathlib import Path

import pytest

from isojax.__main__ import main

ROOT = Path(__file__).parents[1]
PAGES = {page.stem: page for page in sorted((ROOT / "docs" / "papers").glob("*.md"))}
VERDICTS = {"reproduced", "not reproduced", "not comparable", "beyond", "not tried"}
CLAIMS = ["claim", "published", "measured here", "verdict", "command"]
NUMBER = re.compile(r"(?<![\w.,])[-+]?\d+(?:[.,]\d+)*%?(?: ± \d+(?:[.,]\d+)*%?)?")
LINK = re.compile(r"\]\(([^)]*)\)")

every_page = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)


def spans(text):
    """What stands in backticks, code blocks aside."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"(?s)```.*?```", "", text))


def commands():
    """Commands of all pages, each once: in backticks, and lines of code blocks."""
    found = {}
    for page in PAGES.values():
        text = page.read_text()
        blocks = re.findall(r"(?s)```bash\n(.*?)```", text)
        lines = [line for b in blocks for line in b.replace("\\\n", " ").splitlines()]
        for line in [*spans(text), *lines]:
            if line.startswith("isojax "):
                found[" ".join(line.split())] = page.stem
    return found


def claims(page):
    """Rows of the tables of claims, as dictionaries by column."""
    rows, columns = [], []
    for line in page.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            columns = []
        elif not columns:
            columns = cells
            assert "verdict" not in columns or columns == CLAIMS
        elif columns == CLAIMS and set(line) - set("|-: "):
            rows.append(dict(zip(columns, cells, strict=True)))
    return rows


def anchors(page):
    """Sections of a page as links name them."""
    titles = re.findall(r"(?m)^#+ (.*)$", page.read_text())
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def sources(page, cell):
    """Files that a cell links to, and files of the repository that it names in backticks."""
    linked = [page.parent / link.partition("#")[0] for link in LINK.findall(cell)]
    return linked + [ROOT / name for name in spans(cell) if (ROOT / name).is_file()]


def test_there_is_a_page_for_each_paper():
    assert set(PAGES) == {"alignment", "isoquant", "isotropic_tradeoff", "linear", "mixquant"}


@every_page
def test_what_a_page_names_exists(page):
    text = page.read_text()
    names = [name for name in spans(text) if re.fullmatch(r"isojax(\.\w+)+", name)]
    for name in names:
        assert "._" not in name, f"{name} is not public"
        holder, _, last = name.rpartition(".")
        listed = getattr(pkgutil.resolve_name(holder), "__all__", (last,))
        found = pkgutil.resolve_name(name)  # or an error
        assert last in listed or isinstance(found, types.ModuleType), f"{name} is not public"
    files = re.findall(r"\b(?:tests|scripts|experiments|docs)/[\w/.]+", "\n".join(spans(text)))
    assert len(names) > 10 and all((ROOT / name).exists() for name in files)


@every_page
def test_links_lead_somewhere(page):
    links = [link for link in LINK.findall(page.read_text()) if not link.startswith("http")]
    for link in links:
        name, _, section = link.partition("#")
        to = page.parent / name
        assert to.is_file(), link
        assert not section or section in anchors(to), link
    assert any(link.startswith("../findings/") for link in links)


@every_page
def test_measured_figures_are_those_of_the_files_they_link_to(page):
    rows = claims(page)
    assert len(rows) > 5
    for row in rows:
        assert row["verdict"] in VERDICTS, row
        if row["verdict"] == "not tried":
            continue
        cell = row["measured here"]
        files = sources(page, cell)
        text = " ".join(" ".join(file.read_text() for file in files).split())
        assert files, f"no source: {cell}"
        for number in NUMBER.findall(LINK.sub("]", re.sub(r"`[^`]*`", "", cell))):
            found = re.search(rf"(?<![\w.,]){re.escape(number)}(?![.,]?\d)", text)
            assert found, f"{number} is not in {[str(f) for f in files]}: {cell}"


def test_commands_are_understood(monkeypatch, capsys):
    found = commands()
    assert set(found.values()) == set(PAGES)
    for command in found:
        monkeypatch.setattr("sys.path", [*sys.path])
        monkeypatch.setattr("sys.argv", [*command.split(), "--dry-run"])
        try:
            main()
        except SystemExit:
            pytest.fail(f"{command}: {capsys.readouterr().err}")
        settings = json.loads(capsys.readouterr().out)
        assert settings["dry_run"] and settings["experiment"]


def test_the_page_on_linear_layers_knows_whether_its_study_has_rows():
    rows = (ROOT / "docs" / "rows.jsonl").read_text()
    none = '"experiment": "linear_layers"' not in rows
    assert ("no rows are committed" in PAGES["linear"].read_text()) == none
