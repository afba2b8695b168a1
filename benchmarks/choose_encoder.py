"""Which of two frozen Whisper encoders goes into the package? Decided on dev speakers, before either is committed.

    python benchmarks/choose_encoder.py PICTURE_WORDS

Contrast-only models (SIC within the batch), the same recipe and steps for both encoders, two seeds; trained without
the dev speakers (read here) and the test speaker (not read here) of `picture_words_data`. The encoders are
whisper-tiny.en in float16 and whisper-base with int8 matrices, as `scripts/make_encoder_weights.py` makes them into
`src/saysee/assets/weights`; only the better one is committed.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import mean

from picture_words_data import DEV_SPEAKERS, by_voice
from record import keep
from saysee.config import Config
from saysee.data.manifest import Manifest
from saysee.models.retrieval_model import SpeechImageModel
from saysee.workflows import evaluate_on_manifest, train_on_manifest

ENCODERS = ("whisper-tiny.en", "whisper-base")
METRICS = ("coarse/speech_to_image/R@1", "coarse/speech_to_image/R@10", "coarse/mean/R@1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture_words", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    manifest = by_voice(options.picture_words)
    figures: dict[str, object] = {}
    for encoder in ENCODERS:
        dev = [measure(encoder, seed, options.steps, manifest) for seed in options.seeds]
        figures[encoder] = {name: [round(metrics[name], 4) for metrics in dev] for name in METRICS}
        print(encoder, figures[encoder], flush=True)
    best = max(ENCODERS, key=lambda encoder: mean(figures[encoder]["coarse/mean/R@1"]))  # type: ignore[index]
    data = f"picture-words by human voices, measured on the dev speakers {', '.join(DEV_SPEAKERS)}"
    keep(
        "choose_encoder", data=data, seed=options.seeds, figures={"steps": options.steps, "dev": figures, "best": best}
    )


def measure(encoder: str, seed: int, steps: int, manifest: Manifest) -> dict[str, float]:
    """Train one model and return its metrics on the dev speaker."""
    config = Config.from_dict(
        {
            "model": {"speech_backbone": {"checkpoint": f"bundled:{encoder}", "pool": 2}},
            "loss": {"matching": False, "queue_size": 0, "distillation_alpha": 0.0},
            "training": {"steps": steps, "seed": seed, "evaluate_every": steps, "checkpoint_every": steps},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model"
        train_on_manifest(config, manifest, out)
        return evaluate_on_manifest(SpeechImageModel.from_pretrained(out), manifest, "dev").metrics()


if __name__ == "__main__":
    main()
