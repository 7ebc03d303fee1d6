#!/usr/bin/env bash
# The whole check on a fresh machine: install into .venv, lint, types, tests.
# Arguments go to pytest. Tests that need data which does not ship look in $ISOJAX_SHARED.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
setup "[test]"
ruff check .
ruff format --check .
basedpyright --pythonpath "$(command -v python)"
python -m pytest -n 2 --dist loadfile --all "$@"
