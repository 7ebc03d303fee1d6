"""Where the tests find what does not ship with isojax."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """The path of a file of the shared folder; skips the test where it is absent."""
    default = Path(__file__).parents[2] / "shared"
    root = Path(os.environ.get("ISOJAX_SHARED", default))

    def find(name: str) -> Path:
        if not (root / name).exists():
            pytest.skip(f"{root / name} is absent (set ISOJAX_SHARED)")
        return root / name

    return find
