"""The studies on the command line: `isojax STUDY`, or `python -m isojax STUDY`."""

from __future__ import annotations

import ast
import os
import runpy
import sys
from pathlib import Path

from isojax import __doc__ as about
from isojax import __version__
from isojax._core.checks import nearest

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Run the study named by the first argument with the other arguments, or list all studies."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    studies = find_studies()
    try:
        if name in ("-h", "--help"):
            print(overview(studies), flush=True)
        elif name == "--version":
            print(f"isojax {__version__}", flush=True)
        elif (name := name.replace("_", "-")) in studies:
            del sys.argv[1]
            run_study(studies[name])
        else:
            like = ", ".join(nearest(name, studies, 1))
            said = f"there is no study {name!r}; nearest: {like} (`isojax --help` lists all)"
            print(f"error: {said}", file=sys.stderr)
            raise SystemExit(2)
    except BrokenPipeError:  # the reader may stop early, as in `isojax --help | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def find_studies() -> dict[str, Path]:
    """Folders of the studies by name: inside the installed package, or next to it in a clone."""
    folders = (HERE / "experiments", HERE.parent / "experiments")
    found = next((f for f in folders if (f / "__init__.py").is_file()), folders[0])
    files = sorted(found.glob("*/__main__.py"))
    return {file.parent.name.replace("_", "-"): file.parent for file in files}


def overview(studies: dict[str, Path]) -> str:
    """The usage line, and the question of each study: the first line of its docstring."""
    lines = [
        (about or "").splitlines()[0],
        "",
        "usage: isojax STUDY [options]      `isojax STUDY --help` lists the options",
        "",
    ]
    for name, folder in studies.items():
        tree = ast.parse((folder / "__main__.py").read_text(encoding="utf-8"))
        lines.append(f"  {name:20}{(ast.get_docstring(tree) or '').splitlines()[0]}")
    return "\n".join(lines)


def run_study(folder: Path) -> None:
    """Run a study as `python -m` would; modules in the working directory can be imported."""
    if not sys.flags.safe_path:
        sys.path.insert(0, os.getcwd())
    if folder.parent.parent == HERE:
        package = "isojax.experiments"
    else:
        package = "experiments"
        sys.path.insert(0, str(HERE.parent))  # before any other module of this name
    runpy.run_module(f"{package}.{folder.name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
