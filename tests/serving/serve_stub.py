"""A real server process with small encoders: `search INDEX MODEL [HOLD]` or `record DIR MANIFEST [CERT KEY]`.

It prints the address, as the command does. HOLD seconds is how long the model takes for a question.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from command_line import stub_encoders
from saysee.models.retrieval_model import SpeechImageModel
from saysee.search.index import open_index
from saysee.search.question import Question
from saysee.search.searcher import EncodedQuestion, Searcher
from saysee.serving.limits import ServingLimits
from saysee.serving.server import Settings, serve_recording, serve_search

SETTINGS = Settings(port=0, limits=ServingLimits(drain_seconds=3))


def main(mode: str, *arguments: str) -> None:
    if mode == "record":
        folder, manifest, *tls = map(Path, arguments)
        cert, key = tls or (None, None)
        serve_recording(folder, manifest, replace(SETTINGS, cert=cert, key=key))
        return
    index, model, *hold = arguments
    with stub_encoders():
        searcher = Searcher(open_index(Path(index)), SpeechImageModel.from_pretrained(model))
    encode = searcher.encode

    def held(questions: Sequence[Question]) -> list[EncodedQuestion]:
        print("encoding", flush=True)
        time.sleep(float(hold[0]) if hold else 0.0)
        return encode(questions)

    searcher.encode = held  # type: ignore[method-assign]
    serve_search(searcher, SETTINGS)
