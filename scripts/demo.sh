#!/usr/bin/env bash
# The main job on a fresh machine: install into .venv, then one table of rotations and aligned axes
# on the model that ships with isojax. Needs python >= 3.11 and the package registry, nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
setup ""
isojax perplexity --quick
isojax compare --quick
echo
echo "Table and figure: results/compare-quick/table.md and figure.png"
