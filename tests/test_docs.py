"""What the documents say holds: tables come from rows, snippets run."""

import re
import subprocess
import sys
import types
from pathlib import Path

import isojax

ROOT = Path(__file__).parents[1]
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)


def test_the_tables_of_the_readme_are_made_from_its_rows():
    command = [sys.executable, ROOT / "scripts" / "update_docs.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_snippets_of_the_readme_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("mymodule")  # as one of them is called
    monkeypatch.setitem(sys.modules, "mymodule", module)
    scope = vars(module)
    for snippet in SNIPPETS:
        exec(snippet.replace("seeds=24", "seeds=2"), scope)
    assert len(SNIPPETS) == 6 and scope["x"].shape == (8192, 128)


def test_the_documents_name_the_version():
    newest = re.search(r"^## (\S+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), flags=re.M)
    assert newest and cited and newest[1] == cited[1] == isojax.__version__
