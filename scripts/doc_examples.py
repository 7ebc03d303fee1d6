"""Run the Python examples of the documentation pages, and compare or write what they print.

    python scripts/doc_examples.py                     # run all pages, report differences
    python scripts/doc_examples.py transforms cache    # these pages only
    python scripts/doc_examples.py --write             # replace the printed output in the pages

The ```python blocks of a page run one after the other in one namespace, which stands for the
module `__main__`, in an empty folder. A ```text block that directly follows a ```python block holds
what that block printed. `tests/test_docs.py` compares the two.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro

DOCS = Path(__file__).parents[1] / "docs"
PAGES = (
    "index", "transforms", "quantizers", "recipes", "plans", "cache", "linear_layers", "alignment",
    "implementations", "sweeps", "models", "your_own",
)  # fmt: skip
"""Pages with examples, in the order of the navigation."""
_BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.M | re.S)
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])")
TOLERANCE = 0.02


def blocks(page: str) -> list[tuple[str, str]]:
    """The Python blocks of a page, each with the output that the page shows below it, or ""."""
    return _BLOCK.findall((DOCS / f"{page}.md").read_text(encoding="utf-8"))


def run(page: str) -> tuple[dict[str, Any], list[str]]:
    """Run the blocks of a page; return their namespace and what each printed."""
    main, printed = types.ModuleType("__main__"), []
    scope, before, own = vars(main), Path.cwd(), sys.modules["__main__"]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        sys.modules["__main__"] = main
        try:
            for code, _ in blocks(page):
                out = io.StringIO()
                with contextlib.redirect_stdout(out):
                    exec(compile(code, f"docs/{page}.md", "exec"), scope)
                printed.append(out.getvalue())
        finally:
            sys.modules["__main__"] = own
            os.chdir(before)
    return scope, printed


def differences(page: str, printed: list[str]) -> Iterator[str]:
    """What of the output of a page differs from what it shows, one message per block."""
    for (code, shown), got in zip(blocks(page), printed, strict=True):
        if not alike(shown, got):
            yield f"{page}.md shows\n{shown}\nand this prints\n{got}\n{code}"


def alike(shown: str, got: str) -> bool:
    """Whether two outputs agree: words and whole numbers exactly, other numbers to a tolerance.

    The tolerance is 2%, or one unit of the last digit shown, whichever is larger; runs of spaces
    and of dashes count as one, since the width of a table follows its numbers.
    """
    words = [re.sub(r"[ -]+", " ", _NUMBER.sub(" # ", text)).split() for text in (shown, got)]
    if words[0] != words[1]:
        return False
    pairs = zip(_NUMBER.findall(shown), _NUMBER.findall(got), strict=True)
    return all(_close(*pair) for pair in pairs)


def _close(shown: str, got: str) -> bool:
    value, other = (float(text.replace(",", "")) for text in (shown, got))
    if not re.search(r"[.e]", shown):
        return value == other
    mantissa, _, exponent = shown.partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return abs(value - other) <= max(TOLERANCE * abs(value), 1.001 * unit)


def put(page: str, printed: list[str]) -> None:
    """Put what the blocks of a page printed below them."""
    rest, path = iter(printed), DOCS / f"{page}.md"

    def filled(match: re.Match[str]) -> str:
        out = next(rest)
        return f"```python\n{match[1]}```\n" + (f"\n```text\n{out}```\n" if out else "")

    text = _BLOCK.sub(filled, path.read_text(encoding="utf-8"))
    path.write_text(text, encoding="utf-8")


def main(
    pages: Annotated[tuple[str, ...], tyro.conf.Positional] = PAGES,
    write: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Run the examples.

    Args:
        pages: names of pages.
        write: replace the output in the pages, where it differs.
    """
    wrong: list[str] = []
    for page in pages:
        start = time.process_time()
        _, printed = run(page)
        found = list(differences(page, printed))
        print(f"{page}: {len(printed)} blocks, {time.process_time() - start:.1f} s of CPU time")
        if found and write:
            put(page, printed)
        elif found:
            wrong += found
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
