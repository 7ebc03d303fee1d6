"""The documentation site builds without a warning, complete, and asks no other server."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = [p.parent.name for p in sorted((ROOT / "isojax").glob("[a-z]*/__init__.py"))]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder


def test_every_public_name_is_in_the_reference(site):
    for package in PACKAGES:
        tree = ast.parse((ROOT / "isojax" / package / "__init__.py").read_text())
        (names,) = (
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        )
        page = (site / "api" / package / "index.html").read_text()
        headings = {i.rsplit(".", 1)[-1] for i in re.findall(r'<h2 id="(isojax\.[^"]+)"', page)}
        elsewhere = set(re.findall(r"<code>(\w+)</code> is described at", page))
        modules = {"learn": {"coordinates"}, "recipes": {"learn"}}  # have pages of their own
        assert set(names) - headings - elsewhere == modules.get(package, set()), package


def test_pages_load_nothing_from_other_servers_and_link_to_files_that_are_there(site):
    for file in site.rglob("*.html"):
        text = file.read_text()
        loaded = re.findall(r'<(?:script|img|iframe)[^>]+src="([^"]+)"', text)
        loaded += re.findall(r'<link[^>]+rel="stylesheet"[^>]+href="([^"]+)"', text)
        loaded += re.findall(r'<link[^>]+href="([^"]+)"[^>]+rel="stylesheet"', text)
        assert loaded
        for link in loaded:
            assert not link.startswith(("http", "//")), (file, link)
            start = site if link.startswith("/") else file.parent
            assert (start / link.lstrip("/").partition("?")[0]).is_file(), (file, link)


def test_rows_and_results_that_no_page_links_to_are_left_out(site):
    assert not list(site.rglob("rows.jsonl"))
    docs = ROOT / "docs"
    pages = [p for p in docs.rglob("*.md") if p.relative_to(docs).parts[0] != "results"]
    links = re.findall(r"(results/[^)#\s]+\.(?:png|md))", "".join(p.read_text() for p in pages))
    shown = {link.replace("table.md", "table/index.html") for link in links}
    built = {str(f.relative_to(site)) for f in (site / "results").rglob("*") if f.is_file()}
    assert built == shown
