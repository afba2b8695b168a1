"""What every benchmark does in the end: print one JSON line, and keep it in `results/<name>.json`."""

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
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


def matrix_product_rate(dtype: torch.dtype) -> float:
    """Measure the processor's FLOP/s in (4096 x 1024) times (1024 x 1024), the median of 20.

    It tells machines apart whose processors give the same name, and kernels of one processor.
    """
    a, b = torch.randn(4096, 1024).to(dtype), torch.randn(1024, 1024).to(dtype)
    seconds = []
    for _ in range(22):
        started = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - started)
    return 2 * 4096 * 1024 * 1024 / statistics.median(seconds[2:])


def commit() -> str:
    """Return the commit of the code, marked when it has changes that are not committed.

    Records are no code: a benchmark of many runs writes them between two of its runs.
    """
    code = [":(top)", ":(top,exclude)benchmarks/results"]
    try:
        named = _git("rev-parse", "--short=12", "HEAD").strip()
        return named + "-dirty" if _git("status", "--porcelain", "--untracked-files=no", "--", *code) else named
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


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


def _git(*arguments: str) -> str:
    folder = Path(__file__).parent
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout
