"""The short form of the load benchmark: ten clients at a real server, one of them sending rubbish."""

import json
import subprocess
import sys
from pathlib import Path

LOAD = Path(__file__).parents[2] / "benchmarks" / "load.py"


def test_rubbish_beside_good_questions_brings_down_nothing() -> None:
    """It exits with 0 where no status came back that no client has earned, and the server ended as it was told to."""
    done = subprocess.run([sys.executable, LOAD, "--short"], check=False, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["statuses"]["good"]["200"] > 0
    assert sum(figures["statuses"]["rubbish"].values()) > 0
    assert figures["resident_mb"]["end"] < 1.5 * figures["resident_mb"]["start"]
