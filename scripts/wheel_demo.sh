#!/usr/bin/env bash
# Build the wheel, install it into an empty environment in an empty folder, and run the demo there: no repository
# around it, so whatever the wheel lacks is missed.
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$repository/.venv/bin/python" -m build --wheel --outdir "$scratch/dist" "$repository" >"$scratch/build.log" 2>&1 ||
    { cat "$scratch/build.log"; exit 1; }
"$python" -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --constraint "$repository/constraints.txt" "$scratch"/dist/*.whl
cd "$scratch"
env -u PYTHONPATH "$scratch/venv/bin/saysee" demo --out "$scratch/demo"
test -s "$scratch/demo/answers.html"
echo "the demo runs from the wheel ($(du -m "$scratch"/dist/*.whl | cut -f1) MB)"
