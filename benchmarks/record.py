"""What every benchmark does in the end: print one JSON line, and keep it in `results/<name>.json`."""

import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from saysee.files import write_text

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Describe what the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    described = {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        described["gpu"] = torch.cuda.get_device_name()
    return described


def commit() -> str:
    """Return the commit of the code, marked when it has changes that are not committed."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()


def keep(name: str, *, data: str, seed: int | list[int], figures: dict[str, Any]) -> None:
    """Write the record of this run and print it as the last line."""
    # where somebody keeps a corpus is nobody's business: a path stands there by its last name
    arguments = [Path(argument).name if Path(argument).exists() else argument for argument in sys.argv[1:]]
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments])
    record = {
        "benchmark": name,
        "command": command,
        "commit": commit(),
        "machine": machine(),
        "data": data,
        "seed": seed,
        "figures": figures,
    }
    write_text(RESULTS / f"{name}.json", json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))
