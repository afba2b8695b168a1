#!/usr/bin/env bash
# Build the wheel, install it into an empty environment in an empty folder, and run the demo there up to its page: no
# repository around it, so whatever the wheel lacks is missed.
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
scratch=$(mktemp -d)
demo=
trap 'test -z "$demo" || kill -KILL "$demo" 2>/dev/null || true; rm -rf "$scratch"' EXIT
"$repository/.venv/bin/python" -m build --wheel --outdir "$scratch/dist" "$repository" >"$scratch/build.log" 2>&1 ||
    { cat "$scratch/build.log"; exit 1; }
"$python" -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --constraint "$repository/constraints.txt" "$scratch"/dist/*.whl
cd "$scratch"
env -u PYTHONPATH "$scratch/venv/bin/saysee" demo --out "$scratch/demo" >demo.log 2>&1 &
demo=$!
for ((seconds = 0; seconds < 300; seconds++)); do
    if grep --quiet '^Ctrl-C' demo.log || ! kill -0 "$demo" 2>/dev/null; then break; fi
    sleep 1
done
cat demo.log
page=$(sed -n 's/^open //p' demo.log)
env no_proxy='*' "$scratch/venv/bin/python" - "$page" <<'EOF'
import json, sys, urllib.request
for path in ("", "page/main.js", "api/about"):
    content = urllib.request.urlopen(sys.argv[1] + path, timeout=30).read()
assert json.loads(content)["items"] == 184, content
EOF
kill -TERM "$demo"
timeout 60 tail --pid="$demo" -f /dev/null
wait "$demo"
demo=
test -s "$scratch/demo/answers.html"
echo "the demo runs from the wheel ($(du -m "$scratch"/dist/*.whl | cut -f1) MB)"
