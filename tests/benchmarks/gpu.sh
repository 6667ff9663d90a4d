#!/usr/bin/env bash
# The GPU table of docs/benchmarks.md: one command, at most 8 minutes on one GPU. Prints it and writes it to OUT (default
# gpu.md). Uses the python that has torch and transformers; give another one with PYTHON=.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=${PYTHON:-python3}
[[ -z "${PYTHON:-}" && -x .venv/bin/python ]] && python=.venv/bin/python
PYTHONPATH=. exec timeout 480 "$python" tests/benchmarks/gpu.py --output "${OUT:-.}/gpu.md" "$@"
