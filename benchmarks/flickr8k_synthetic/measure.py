"""One run: trained, measured, and put on record."""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.nn import functional as F

from flickr8k_synthetic.corpus import RUNS, VOICES
from flickr8k_synthetic.plan import FULL, Run, key_of, recipe_digest, trained_by
from record import RESULTS, commit, keep, machine, matrix_product_rate
from saysee.config import Config, SearchConfig
from saysee.data.manifest import Manifest, Split, SpokenCaption
from saysee.evaluation.metrics import recall_at
from saysee.evaluation.results import Results, write_results
from saysee.files import sole_process, write_text
from saysee.models.retrieval_model import SpeechImageModel
from saysee.search.reranker import match_prepared
from saysee.training.checkpoint import Progress
from saysee.workflows import choose_device, evaluate_on_manifest, train_on_manifest

Question = TypeVar("Question")

CURVE = (1, 2, 5, 10, 20, 50, 100)
"""K of the recall curves."""
MANY_CANDIDATES = 128  # [ALBEF on Flickr30k]
MEASURED_AT_MANY = Run(FULL, captions=5)
QUESTIONS = 20
"""Recordings whose questions are timed."""
COMMIT = commit()
"""Of the code that this program runs; the checkout may have gone on when the record of an hour later is written."""


def record_name(split: Split) -> str:
    """Return the name of the record: what is explored on dev stands in another than what is read on test."""
    return "flickr8k_synthetic" if split == "test" else f"flickr8k_synthetic_{split}"


def finished(split: Split) -> list[dict[str, Any]]:
    """Return the runs on record."""
    runs: list[dict[str, Any]] = on_record(split)["runs"]
    return runs


def on_record(split: Split) -> dict[str, Any]:
    """Return all figures of the record: `runs`; on test `gains` between them, on dev what `reranking` does in them."""
    path = RESULTS / f"{record_name(split)}.json"
    figures: dict[str, Any] = json.loads(path.read_text())["figures"] if path.exists() else {"runs": []}
    return figures


def put_on_record(split: Split, record: Mapping[str, Any]) -> None:
    """Keep a run's record, or add to it what is said anew; another program may have added others."""
    with sole_process(RUNS / "record.lock", "writing the record", wait=True):
        figures = on_record(split)
        others = [other for other in figures["runs"] if other["key"] != record["key"]]
        known: Mapping[str, Any] = next((other for other in figures["runs"] if other["key"] == record["key"]), {})
        _keep(split, {**figures, "runs": [*others, {**known, **record}]})


def put_figures_on_record(split: Split, name: str, figures: Sequence[Mapping[str, Any]]) -> None:
    """Keep figures that are no run's own, in the place of those that had the name before."""
    with sole_process(RUNS / "record.lock", "writing the record", wait=True):
        _keep(split, {**on_record(split), name: figures})


def _keep(split: Split, figures: dict[str, Any]) -> None:
    keep(
        record_name(split),
        data=f"Flickr8k photographs, synthetic speech, {split}: {', '.join(VOICES[split])}",
        seed=sorted({run["key"]["seed"] for run in figures["runs"]}),
        figures=figures,
    )


def model_folder(run: Run, config: Config) -> Path:
    """Return where a run's model lies: a recipe that has changed trains into another folder.

    How it is searched with is no part of a training: another rule is tried on the same model.
    """
    return RUNS / "models" / f"{run.name}-{recipe_digest(trained_by(run, config))}".replace(" ", "-")


def carry_out(run: Run, config: Config, manifest: Manifest, split: Split, device: str) -> dict[str, Any]:
    """Train a run, or end its training, and measure it; return its record."""
    out = model_folder(run, config)
    begun = begin(out, choose_device(device))
    progress = train_on_manifest(trained_by(run, config), manifest, out, device=device)
    model = SpeechImageModel.from_pretrained(out, choose_device(device))
    results = evaluate_on_manifest(model, manifest, split, search=config.search, about={"run": run.name})
    record = {**trained(run, config, progress, out, begun), **measured(results)}
    if split == "test":
        write_results(results_file(run, config), results)
        record["explored_on_dev"] = [
            trial["key"]["changes"] for trial in finished("dev") if trial["key"]["row"] == run.row
        ]
    if run == MEASURED_AT_MANY:
        search = SearchConfig(MANY_CANDIDATES, config.search.fusion)
        record["many_candidates"] = measured(evaluate_on_manifest(model, manifest, split, search=search))
    return record


def results_file(run: Run, config: Config) -> Path:
    """Return where the ranks of a run on test lie, question by question: beside the record, for others to compare."""
    return RESULTS / "flickr8k_synthetic" / f"{run.name}-{key_of(run, config)['recipe']}.json.xz".replace(" ", "-")


def begin(out: Path, device: torch.device) -> dict[str, Any]:
    """Return what a training into `out` is done with: code, machine and threads as they were when it began.

    A record may be written by another program than the one that trained: on test, of a model that was tried on dev.
    """
    path = out / "begun.json"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"commit": COMMIT, **computed_on(device)}))
    begun: dict[str, Any] = json.loads(path.read_text())
    return begun


def computed_on(device: torch.device) -> dict[str, Any]:
    """Return what was computed with: the GPU, or the processor and its speed; torch, and the threads of the process."""
    described = machine()
    shared = {"torch": described["torch"], "threads": described["threads"]}
    if device.type == "cuda":
        return {"machine": described["gpu"], **shared}
    rate = round(matrix_product_rate(torch.float32) / 1e9)
    return {"machine": described["cpu"], **shared, "matrix_product_gflop_per_second": rate}


def trained(run: Run, config: Config, progress: Progress, out: Path, begun: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record says of a training, whose model lies in `out` and which was `begun` so."""
    return {
        "key": key_of(run, config),
        **begun,
        "steps": config.training.steps,
        "best_step": progress.best_step,
        "dev": round(progress.best_metric, 4),
        **training_time(out, config.training.batch_size),
        "course": course(out),
    }


def measured(results: Results) -> dict[str, Any]:
    """Return what a record says of an evaluation: each recall with its interval, and the curve of each ranking."""
    return {
        **{name: results.about[name] for name in ("images", "captions", "rerank", "fusion") if name in results.about},
        "recall": {
            name: [round(number, 4) for number in (metric.value, metric.low, metric.high)]
            for name, metric in results.intervals().items()
            if "R@" in name
        },
        "coarse_recall_at_k": {name: round(value, 4) for name, value in results.coarse_recall_at_k.items()},
        "curve": {
            ranking.name: [round(float(recall_at(ranking.counts, k).mean()), 4) for k in CURVE]
            for ranking in results.stages
        },
    }


def training_time(out: Path, batch_size: int) -> dict[str, float]:
    """Return seconds a step, their median, and seconds of all steps, evaluations left out; from the run's own log.

    A run that was killed and went on has the steps of both parts in its log.
    """
    seconds = [batch_size / line["pairs_per_second"] for line in _log(out) if line["kind"] == "train"]
    return {"seconds_a_step": round(statistics.median(seconds), 4), "seconds_of_training": round(sum(seconds), 1)}


def course(out: Path) -> list[dict[str, float]]:
    """Return how a training went, from its own log: at each measuring of dev, and means over the steps before it."""
    followed: list[dict[str, float]] = []
    steps: list[Mapping[str, float]] = []
    for line in _log(out):
        if line["kind"] == "train":
            steps.append(line)
        elif steps:
            means = {
                name: round(statistics.mean(step[name] for step in steps), 4)
                for name in ("sic", "sim", "matching_accuracy", "temperature")
                if steps[0].get(name) is not None
            }
            dev = {name.rpartition("/")[2]: round(line[name], 4) for name in line if name.startswith("coarse/mean/")}
            followed.append({"step": line["step"], **means, **dev})
            steps = []
    return followed


def question_time(model: SpeechImageModel, captions: Sequence[SpokenCaption]) -> dict[str, Any]:
    """Time the parts of a spoken question, one at a time; the median over `QUESTIONS` of them.

    Returns:
        Milliseconds to `hear` a recording (decoding, both encoders), to `rank` the gallery by similarity, and to
        `match` it with the best k, whose keys and values are kept, as search keeps them; and what it was computed on.
    """
    asked = captions[:QUESTIONS]
    paths = list(dict.fromkeys(caption.image for caption in captions))
    gallery = F.normalize(torch.randn(len(paths), model.config.model.embedding_dim), dim=1)
    heard = [model.encode_speech(caption.audio) for caption in asked]
    k = model.config.search.rerank
    times = {
        "hear": milliseconds(lambda caption: model.encode_speech(caption.audio), asked),
        "rank": milliseconds(lambda speech: (speech.embedding @ gallery.T).topk(min(k, len(paths))), heard),
    }
    if model.multimodal_encoder is not None:
        with torch.inference_mode():
            pictures = model.multimodal_encoder.prepare_images(model.encode_image(paths[:k]).hidden)
        times["match"] = milliseconds(lambda speech: match_prepared(model, speech, pictures), heard)
    return {**times, **computed_on(model.device)}


def measure_zero_shot(model: SpeechImageModel, out: Path, words: Manifest) -> dict[str, Any]:
    """Ask a model, whose folder is `out`, about picture-words; return what its record says of that."""
    return measured(evaluate_on_manifest(model, words, "test", unseen_by=out))


def milliseconds(ask: Callable[[Question], object], questions: Sequence[Question]) -> float:
    """Return the median of what each question takes."""
    seconds = []
    for question in questions:
        started = time.perf_counter()
        ask(question)
        seconds.append(time.perf_counter() - started)
    return round(1000 * statistics.median(seconds), 2)


def _log(out: Path) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines())
