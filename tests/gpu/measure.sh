#!/bin/sh
# On a machine with a GPU, in at most 8 minutes: is it right, and how fast is it? Writes the benchmarks' numbers:
#   tests/gpu/measure.sh tests/benchmarks/results/DATE-gpu.json
set -eu
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python}
"$PYTHON" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "torch finds no GPU here")'
timeout 150 "$PYTHON" -m pytest -q -m gpu tests/gpu
timeout 330 "$PYTHON" tests/benchmarks/run.py --device cuda style network "training step ViT-L" --json "$1"
