"""How long a spoken question takes, part by part, and against what others would do with the same vectors.

    python benchmarks/search.py
    python benchmarks/search.py --rows 20000 --pictures 1000    # a look

1. A query on an index of 1,000 and of 100,000 pictures: decode, encode, coarse, fine. The model is the recipe
   `picture_words` untrained (its size decides the time, not its weights), the question a recording of the sample
   corpus, the pictures' embeddings and tokens are drawn at random.
2. The coarse stage at 1,000,000 x 256, vectors in clumps that vary in 64 directions, questions that have a cosine of
   0.45 with some vector: exact against FAISS IndexFlatIP, approximate against FAISS IndexIVFFlat with the number of
   cells that gives the same recall. One question at a time, the same threads.
3. The fine stage at k = 128: with what belongs to the pictures prepared once, against the same model batched with
   nothing prepared (tokens read, keys and values of every picture projected for every question), and against a loop as
   in ALBEF's evaluation (Li et al. 2021, `Retrieval.py`: the whole multimodal encoder over k pairs, the recording
   repeated k times).
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from record import keep
from saysee.config import load_config
from saysee.data.sample import sample_manifest_path
from saysee.models.retrieval_model import SpeechImageModel
from saysee.models.speech_encoder import SpeechEncoding
from saysee.search.index import Description, Index
from saysee.search.question import read_question
from saysee.search.reranker import match_logits
from saysee.search.searcher import Searcher
from saysee.search.stores.approximate import ApproximateRows, build_approximate, likely_questions
from saysee.search.stores.base import EncodedItem, Item
from saysee.search.stores.embedded import EmbeddedStore
from saysee.search.stores.rows import Rows

QUESTION = sample_manifest_path().parent / "audio" / "en-art4apps" / "back.ogg"
K, TOP = 128, 100
LATENT = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100_000, help="of the larger index (default: 100,000)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the coarse comparison (default: 1,000,000)")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=15, help="of every time; the median counts (default: 15)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    faiss.omp_set_num_threads(torch.get_num_threads())
    model = SpeechImageModel.from_config(load_config("picture_words")).eval()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = {
            "query": {
                str(count): query(model, folder / str(count), count, options.repeats, options.seed)
                for count in sorted({1_000, options.pictures})
            },
            "coarse": coarse(folder, options.rows, options.dim, options.repeats, options.seed),
            "fine": fine(model, options.repeats),
        }
    keep(
        "search",
        data="random vectors and tokens; one recording of the sample corpus",
        seed=options.seed,
        figures=figures,
    )


def milliseconds(function: Callable[[], object], repeats: int) -> float:
    function()
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        function()
        taken.append(time.perf_counter() - begun)
    return round(1000 * median(taken), 2)


# ---- a whole query


def query(
    model: SpeechImageModel, folder: Path, count: int, repeats: int, seed: int, recording: Path = QUESTION
) -> dict[str, Any]:
    """Time a question over an index of random pictures, by part."""
    store = random_store(model, folder, count, seed)
    sizes = model.config.model
    fine = model.multimodal_encoder is not None
    description = Description(folder, "picture", folder, model.fingerprint, sizes.embedding_dim, fine)
    searcher = Searcher(Index(folder, description, store), model)
    parts: dict[str, list[float]] = {"decode": [], "encode": [], "coarse": [], "fine": []}
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        question = read_question(recording)
        parts["decode"].append(time.perf_counter() - begun)
        for part, seconds in searcher.search(question, rerank=K if fine else None).seconds.items():
            parts[part].append(seconds)
    figures: dict[str, Any] = {f"{part}_ms": round(1000 * median(times[1:]), 2) for part, times in parts.items()}
    figures["first_fine_ms"] = round(1000 * parts["fine"][0], 2)  # nothing is prepared yet
    figures["total_ms"] = round(sum(figures[f"{part}_ms"] for part in parts), 2)
    figures["k"], figures["seconds_of_speech"] = K if fine else 0, round(read_question(recording).seconds, 2)
    store.close()
    return figures


def random_store(model: SpeechImageModel, folder: Path, count: int, seed: int) -> EmbeddedStore:
    random = np.random.default_rng(seed)
    sizes, tokens = model.config.model, model.image_backbone.num_tokens
    store = EmbeddedStore.create(folder, sizes.embedding_dim, keeps_hidden=True)
    for start in range(0, count, 2_000):
        vectors = unit(random.standard_normal((min(2_000, count - start), sizes.embedding_dim), np.float32))
        hidden = random.standard_normal((tokens, sizes.width), np.float32).astype(np.float16)
        store.write(
            [
                EncodedItem(
                    Item(f"{start + row}.jpg", 1, 1, 1, f"{start + row:064x}"), vector, np.roll(hidden, row), b""
                )
                for row, vector in enumerate(vectors)
            ]
        )
    return store


# ---- coarse


def coarse(folder: Path, rows: int, dim: int, repeats: int, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    # embeddings of pictures vary in fewer directions than they have numbers, and lie in clumps
    directions = random.standard_normal((LATENT, dim), np.float32)
    centres = random.standard_normal((2_000, LATENT), np.float32)
    vectors = np.empty((rows, dim), np.float32)
    for start in range(0, rows, 100_000):
        count = min(100_000, rows - start)
        around = random.standard_normal((count, LATENT), np.float32)
        vectors[start : start + count] = unit(
            (centres[random.integers(len(centres), size=count)] + around) @ directions
        )
    path = folder / "embeddings-0.f32"
    path.write_bytes(vectors.tobytes())
    mapped = np.memmap(path, np.float32, "r", shape=(rows, dim))
    alive, ids = np.ones(rows, bool), np.zeros(rows, "S32")
    ours = Rows(0, 0, ids, alive, mapped, np.zeros((0, 0), np.float16))
    questions = likely_questions(vectors, np.arange(rows), 50)
    asked = [questions[n : n + 1] for n in range(repeats)]

    flat = faiss.IndexFlatIP(dim)
    flat.add(vectors)
    exact = [set(found.tolist()) for found in flat.search(questions, TOP)[1]]
    same = [set(found.tolist()) for found, _ in ours.exact(questions, TOP, None)]
    figures: dict[str, Any] = {
        "rows": rows,
        "dim": dim,
        "top": TOP,
        "exact": compare(
            lambda question: ours.exact(question, TOP, None), lambda question: flat.search(question, TOP), asked
        )
        | {"recall": recall(same, exact), "rival": "FAISS IndexFlatIP"},
    }
    begun = time.perf_counter()
    build_approximate(folder, 0, mapped, alive)
    figures["approximate_built_s"] = round(time.perf_counter() - begun, 1)
    found = ApproximateRows.newest(folder, 0)
    assert found is not None
    approximate = Rows(0, 0, ids, alive, mapped, np.zeros((0, 0), np.float16), found)
    reached = recall([set(best.tolist()) for best, _ in approximate.nearest(questions, TOP, None)], exact)
    inverted = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, found.cells, faiss.METRIC_INNER_PRODUCT)
    inverted.cp.niter = 10
    inverted.train(vectors[:: max(1, rows // (32 * found.cells))])
    inverted.add(vectors)
    inverted.nprobe = 1
    while inverted.nprobe < inverted.nlist:
        hits = recall([set(best.tolist()) for best in inverted.search(questions, TOP)[1]], exact)
        if hits >= reached:
            break
        inverted.nprobe = min(inverted.nlist, max(inverted.nprobe + 1, round(1.15 * inverted.nprobe)))
    figures["approximate"] = compare(
        lambda question: approximate.nearest(question, TOP, None),
        lambda question: inverted.search(question, TOP),
        asked,
    ) | {
        "recall": reached,
        "rival_recall": hits,
        "rival": "FAISS IndexIVFFlat",
        "cells": found.cells,
        "cells_looked_at": found.cells_looked_at,
        "rival_cells_looked_at": inverted.nprobe,
    }
    return figures


def compare(
    ours: Callable[[NDArray[np.float32]], object],
    rival: Callable[[NDArray[np.float32]], object],
    questions: list[NDArray[np.float32]],
) -> dict[str, Any]:
    """Time both on the same questions in turn, so that whatever else the machine does falls on both."""
    times: tuple[list[float], list[float]] = ([], [])
    for question in [questions[0], *questions]:
        for search, taken in zip((ours, rival), times, strict=True):
            begun = time.perf_counter()
            search(question)
            taken.append(1000 * (time.perf_counter() - begun))
    mine, theirs = (median(taken[1:]) for taken in times)
    return {"ms": round(mine, 2), "rival_ms": round(theirs, 2), "ratio": round(mine / theirs, 3)}


def recall(found: list[set[int]], exact: list[set[int]]) -> float:
    return round(sum(len(got & best) for got, best in zip(found, exact, strict=True)) / sum(map(len, exact)), 4)


def unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


# ---- fine


@torch.inference_mode()
def fine(model: SpeechImageModel, repeats: int) -> dict[str, Any]:
    from saysee.search.reranker import PreparedPictures, match_prepared

    waveform = read_question(QUESTION).waveform
    assert waveform is not None
    speech = model.encode_speech(waveform)
    hidden = torch.randn(K, model.image_backbone.num_tokens, model.config.model.width).half()
    rows, contents = torch.arange(K), [str(n) for n in range(K)]
    prepared = PreparedPictures(model.require_multimodal_encoder())
    prepared.prepare({content: hidden[n].float() for n, content in enumerate(contents)}, together=K)

    def with_all_prepared() -> Tensor:
        return match_prepared(model, speech, prepared.select(contents))

    def with_nothing_prepared() -> Tensor:
        return match_logits(model, speech, hidden, torch.zeros_like(rows), rows)

    def as_albef() -> Tensor:
        return whole_encoder(model, speech, hidden.float())

    scores = with_all_prepared()
    for other in (with_nothing_prepared, as_albef):
        torch.testing.assert_close(scores, other(), atol=1e-3, rtol=1e-3)
    mine = milliseconds(with_all_prepared, repeats)
    figures: dict[str, Any] = {"k": K, "ms": mine}
    for name, rival in (("nothing_prepared", with_nothing_prepared), ("albef_loop", as_albef)):
        figures[f"{name}_ms"] = milliseconds(rival, repeats)
        figures[f"ratio_to_{name}"] = round(mine / figures[f"{name}_ms"], 3)
    return figures


def whole_encoder(model: SpeechImageModel, speech: SpeechEncoding, hidden: Tensor) -> Tensor:
    """Every layer for every pair, the recording repeated, all of its frames in the last layer too."""
    encoder = model.require_multimodal_encoder()
    count = len(hidden)
    x, mask = speech.hidden.repeat(count, 1, 1), speech.mask.repeat(count, 1)
    for layer in encoder.layers:
        keys, values = layer.cross_attention.project_keys(hidden)  # type: ignore[union-attr,operator]
        x = layer(x, mask, keys, values, False)
    not_matched, matched = encoder.head(encoder.output_norm(x[:, 0])).unbind(-1)
    return torch.sub(matched, not_matched)


if __name__ == "__main__":
    main()
