#!/usr/bin/env bash
# The main job on a fresh machine: install into .venv, then rotate or align the KV cache and the
# linear layers of a real model of 135 M parameters, at equal bits, and print what each loses.
# Needs python >= 3.11 and the package registry, nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
setup ""
compare() {
  isojax quantize --model "$1" --length 384 --seeds 1 --calibration-windows 4 --continuation 0 \
    --plans rotated-cache aligned rotated-inputs balanced-inputs | sed '/^## /,$d' ||
    return
  echo "$2"
  echo "Whole report and figure: results/quantize-$1/table.md and figure.png"
}
compare smollm2 "The weights of this model come from a 4-bit file: they lie on a 4-bit grid already." ||
  compare tiny "SmolLM2 could not be fetched. On the tiny model alignment gains nothing."
