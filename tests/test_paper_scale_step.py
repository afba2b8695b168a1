"""The benchmark of a step at full size runs, on small encoders: all its kinds, with a record that says what it should.

What a step costs on a GPU is measured with it by whoever has one: a benchmark that fails there costs hours.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.mark.usefixtures("benchmarks")
def test_all_kinds_of_step_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, record = importlib.import_module("paper_scale_step"), importlib.import_module("record")
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    options = ["--small", "--lengths", "flickr8k", "--batch", "6", "--steps", "1", "--precision", "fp32"]
    monkeypatch.setattr(sys, "argv", ["paper_scale_step.py", *options])
    step.main()

    (path,) = tmp_path.iterdir()
    assert path.name == "paper_scale_step_small.json"
    written = json.loads(path.read_text())
    assert written["machine"]["memory_gb"] > 0
    assert "Flickr8k-like lengths" in written["data"]
    figures: dict[str, Any] = written["figures"]
    assert (figures["shape"]["pairs"], figures["shape"]["precision"]) == (6, "fp32")
    assert figures["flop_counter_over_formula"] == 1.0
    kinds = figures["kinds"]
    assert list(kinds) == ["cached", "cached, checkpointed", "live"]
    backbones = {"speech backbone", "image backbone"}
    for kind, measured in kinds.items():
        parts = measured["parts"]
        assert (backbones <= parts.keys()) is (kind == "live")
        assert parts.keys() - backbones == {
            *("reading", "encoders", "momentum forward", "SIC", "SIM forward", "backward", "optimiser"),
            *("momentum update, enqueue", "other"),
        }
        assert len(measured["seconds_of_steps"]) == 1
        assert measured["pairs_per_second_without_waiting"] >= measured["pairs_per_second"] > 0
        assert sum(part["share_of_time"] for part in parts.values()) == pytest.approx(1, abs=0.02)
        assert sum(part["tflop"] for part in parts.values()) == pytest.approx(measured["tflop_per_step"], abs=1e-5)
        assert 0 < measured["padding"] < 0.1
        assert measured["bound_by"]
    # the encoders come on top of what the step itself takes, and checkpointing computes its forward part again
    cached, checkpointed, live = (measured["tflop_per_step"] for measured in kinds.values())
    encoding = sum(kinds["live"]["parts"][part]["tflop"] for part in backbones)
    assert live == pytest.approx(cached + encoding, abs=1e-5)
    assert encoding > 0
    assert 1.1 * cached < checkpointed < 1.5 * cached


@pytest.mark.usefixtures("benchmarks")
def test_a_record_of_a_gpu_does_not_replace_that_of_the_cpu() -> None:
    record_name = importlib.import_module("paper_scale_step").record_name
    assert record_name(torch.device("cpu"), small=False) == "paper_scale_step"
    for device, name in (("NVIDIA H200", "h200"), ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA A100-SXM4-80GB", "a100")):
        with mock.patch("torch.cuda.get_device_name", lambda _, device=device: device):
            assert record_name(torch.device("cuda"), small=False) == f"paper_scale_step_{name}"
            assert record_name(torch.device("cuda"), small=True) == f"paper_scale_step_{name}_small"


@pytest.mark.usefixtures("benchmarks")
def test_what_bounds_a_step_is_said_in_words() -> None:
    bound_by = importlib.import_module("paper_scale_clock").bound_by
    shares, rates = {"reading": 0.6, "backward": 0.3, "SIC": 0.1}, {"reading": 0.0, "backward": 0.7, "SIC": 0.1}
    assert bound_by(shares, rates, 0.0).startswith("matrix products of backward: 30% of the time, at 70% of the rate")
    assert bound_by(shares, rates, 0.5) == "reading: a step waits 50% of its time for its batch"
    slow = bound_by(shares, {**rates, "backward": 0.2}, 0.1)
    assert slow.startswith("backward: 30% of the time, at 20% of the rate")
    assert slow.endswith("by memory traffic and the starting of kernels")
