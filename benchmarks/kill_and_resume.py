"""Kill -9 at random moments of extraction and of training: the same command then ends with the same tensors.

    python benchmarks/kill_and_resume.py

The sample corpus, the two bundled encoders, a small recipe with every part of the method. First everything runs
undisturbed. Then extraction (two workers) is killed ten times, each time after a random part of a third of the
undisturbed time, so that the kills fall on all of it, and run to its end; then training likewise. A run that ends
before its kill does not count: what it made is removed, and it begins anew. Killed is the whole process group, as a
failing machine would; how many shards or steps there were then is on record. Compared are every stored feature, every
tensor of model and checkpoint, and every figure of results.json, bit for bit.

The rival is the undisturbed run: the ratio is what ten kills cost in time.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from record import keep
from saysee.data.sample import sample_manifest_path
from saysee.features.store import FeatureStore

RECIPE = """\
model: {speech_backbone: {layers: [4, 6], pool: 3}, width: 64, embedding_dim: 32, heads: 4, multimodal_layers: 2}
loss: {queue_size: 128, distillation_ramp_steps: 20}
training: {steps: 700, batch_size: 16, warmup_steps: 10, evaluate_every: 100, checkpoint_every: 10, bucket_batches: 4}
search: {rerank: 8}
"""


MADE = {"extract": "cache", "train": "model"}
"""The folder that a command makes."""
UNITS = {"extract": "shards", "train": "steps"}
"""What tells how far a command has come."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="of extraction, and again of training (default: 10)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipe.yaml").write_text(RECIPE)
        whole, killed = folder / "whole", folder / "killed"
        seconds = {part: run(command) for part, command in commands(folder, whole).items()}
        disturbed: dict[str, dict[str, Any]] = {}
        for part in ("extract", "train"):
            command = commands(folder, killed)[part]
            begun = time.perf_counter()
            fell: list[int] = []
            while len(fell) < options.kills:
                if kill(command, moments.uniform(0, seconds[part] / 3)):
                    fell.append(done(part, killed))
                else:
                    shutil.rmtree(killed / MADE[part])
            run(command)
            disturbed[part] = {
                "killed": len(fell),
                f"{UNITS[part]}_at_each_kill": fell,
                f"{UNITS[part]}_in_the_end": done(part, killed),
                "seconds": round(time.perf_counter() - begun, 1),
            }
        run(commands(folder, killed)["evaluate"])
        figures: dict[str, Any] = {
            "kills_asked": options.kills,
            **disturbed,
            "undisturbed_seconds": {part: round(value, 1) for part, value in seconds.items()},
            "disturbed_over_undisturbed": {
                part: round(float(disturbed[part]["seconds"]) / seconds[part], 2) for part in disturbed
            },
            "features": features_equal(whole / "cache", killed / "cache"),
            "model_equal": tensors_equal(whole / "model/model.safetensors", killed / "model/model.safetensors"),
            "checkpoint_equal": tensors_equal(
                whole / "model/training/last.safetensors", killed / "model/training/last.safetensors"
            ),
            "metrics_equal": metrics(whole) == metrics(killed),
        }
    keep("kill_and_resume", data="sample corpus (Art4Apps, human voices)", seed=options.seed, figures=figures)
    held = figures["features"]["different"] == 0 and all(
        figures[name] for name in ("model_equal", "checkpoint_equal", "metrics_equal")
    )
    sys.exit(0 if held else 1)


def commands(folder: Path, where: Path) -> dict[str, list[str]]:
    recipe, data = str(folder / "recipe.yaml"), ["--data", str(sample_manifest_path())]
    cache, model = ["--cache", str(where / "cache")], str(where / "model")
    return {
        "extract": ["extract", recipe, *data, *cache, "--workers", "2"],
        "train": ["train", recipe, *data, *cache, "--out", model],
        "evaluate": ["evaluate", model, *data, *cache],
    }


def start(command: list[str]) -> "subprocess.Popen[bytes]":
    # one thread a process: the last bits depend on the number of threads
    return subprocess.Popen(
        [sys.executable, "-m", "saysee", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def run(command: list[str]) -> float:
    begun = time.perf_counter()
    status = start(command).wait()
    assert status == 0, (command, status)
    return time.perf_counter() - begun


def kill(command: list[str], seconds: float) -> bool:
    """Kill a run after some seconds; returns whether it was still running."""
    process = start(command)
    time.sleep(seconds)
    running = process.poll() is None
    if running:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return running


def done(part: str, where: Path) -> int:
    """Count the shards that are there, or return the last step in the log; 0 where there is nothing yet."""
    if part == "extract":
        return len(list((where / "cache").glob("*/*.safetensors")))
    log = where / "model/training/log.jsonl"
    whole = [line for line in log.read_text().split("\n")[:-1] if line] if log.exists() else []
    return max((int(json.loads(line)["step"]) for line in whole), default=0)


def features_equal(a: Path, b: Path) -> dict[str, int]:
    """Compare all entries of all backbones."""
    compared = different = 0
    for folder in sorted(path for path in a.iterdir() if path.is_dir()):
        stores = FeatureStore(a, folder.name), FeatureStore(b, folder.name)
        assert len(stores[0]) == len(stores[1]), folder.name
        for entry in range(len(stores[0])):
            compared += 1
            same_file = stores[0].key(entry) == stores[1].key(entry)
            different += not (same_file and torch.equal(stores[0].read(entry), stores[1].read(entry)))
    return {"compared": compared, "different": different}


def tensors_equal(a: Path, b: Path) -> bool:
    first, second = load_file(a), load_file(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def metrics(where: Path) -> Any:
    return json.loads((where / "model/results.json").read_text())["metrics"]


if __name__ == "__main__":
    main()
