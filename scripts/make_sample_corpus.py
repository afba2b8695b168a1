"""Rebuild the sample corpus of the package from a picture-words folder: always the same bytes.

    python scripts/make_sample_corpus.py SOURCE [--into FOLDER]

SOURCE holds recordings.csv (image, audio, word, language, speaker), images/ and audio/. Taken are the drawings that
all three Art4Apps voices name, as they are. ATTRIBUTION.md and the licence in the folder are written by hand and stay.
"""

import argparse
import csv
import shutil
from pathlib import Path

from saysee.data.manifest import read_utf8, write_manifest
from saysee.data.picture_folder import prepare
from saysee.data.sample import sample_manifest_path
from saysee.files import atomic_path

VOICES = ("en-art4apps", "es-art4apps", "fr-art4apps")
# by recording, since a drawing has one recording in each language; the shares are ours
DEV, TEST, SEED = 0.08, 0.17, 0


def make_sample_corpus(source: Path, into: Path) -> list[str]:
    """Copy the selection from `source` to `into` and write its recordings.csv and manifest.jsonl.

    Args:
        source: a picture-words folder.
        into: the corpus's folder; images/ and audio/ in it are made anew.

    Returns:
        What was made, one line each.
    """
    rows = list(csv.DictReader(read_utf8(source / "recordings.csv").splitlines()))
    voices_of: dict[str, set[str]] = {}
    for row in rows:
        voices_of.setdefault(row["image"], set()).add(row["speaker"])
    chosen = [row for row in rows if row["speaker"] in VOICES and voices_of[row["image"]].issuperset(VOICES)]
    chosen.sort(key=lambda row: (row["image"], row["speaker"]))
    for name in ("images", "audio"):
        shutil.rmtree(into / name, ignore_errors=True)
    for path in sorted({row[column] for row in chosen for column in ("image", "audio")}):
        (into / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, into / path)
    with atomic_path(into / "recordings.csv") as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(chosen)
    prepared = prepare(into, split_by="recording", dev=DEV, test=TEST, seed=SEED)
    write_manifest(into / "manifest.jsonl", prepared.manifest)
    return prepared.notes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument("--into", type=Path, default=sample_manifest_path().parent, metavar="FOLDER")
    arguments = parser.parse_args()
    print("\n".join(make_sample_corpus(arguments.source, arguments.into)))
