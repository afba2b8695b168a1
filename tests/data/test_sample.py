import csv
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from saysee.data.manifest import SPLITS, Manifest, read_manifest
from saysee.data.sample import TRAINED_QUESTIONS, sample_manifest_path
from saysee.data.validate import validate

FOLDER = sample_manifest_path().parent
SCRIPT = Path(__file__).parents[2] / "scripts" / "make_sample_corpus.py"


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return read_manifest(sample_manifest_path())


def test_the_sample_corpus_has_no_faults(manifest: Manifest) -> None:
    assert validate(manifest) == []


def test_every_drawing_is_named_once_in_each_language(manifest: Manifest) -> None:
    assert manifest.split_by == "recording"
    captions = list(manifest.captions)  # parsed once
    assert len(captions) == 552
    voices = {image: sorted(str(c.speaker) for c in captions if c.image_id == image) for image in manifest.images()}
    assert len(voices) == 184
    assert all(names == ["en-art4apps", "es-art4apps", "fr-art4apps"] for names in voices.values())
    assert all(c.speaker == f"{c.language}-art4apps" for c in captions)


def test_splits_are_of_the_size_asked_for_and_all_drawings_are_in_training(manifest: Manifest) -> None:
    sizes = {split: len(manifest.of(split)) / 552 for split in SPLITS}
    # of 552 draws, 8 % and 17 % within three standard deviations
    assert sizes["dev"] == pytest.approx(0.08, abs=0.035)
    assert sizes["test"] == pytest.approx(0.17, abs=0.048)
    assert manifest.images("train").keys() == manifest.images().keys()


def test_demo_questions_were_not_in_training(manifest: Manifest) -> None:
    captions = {c.id: c for c in manifest.captions}
    asked = [captions[question] for question in TRAINED_QUESTIONS]
    assert [c.language for c in asked] == ["en", "es", "fr"]
    assert {c.split for c in asked} == {"test"}
    for question in asked:
        heard = {c.language for c in manifest.of("train") if c.image_id == question.image_id}
        assert heard
        assert question.language not in heard


def test_nothing_lies_in_the_folder_but_the_corpus_and_its_papers(manifest: Manifest) -> None:
    named = {c.audio for c in manifest.captions} | {c.image for c in manifest.captions}
    papers = {
        FOLDER / name for name in ("ATTRIBUTION.md", "LICENSE-CC-BY-SA-3.0.txt", "manifest.jsonl", "recordings.csv")
    }
    files = {path for path in FOLDER.rglob("*") if path.is_file()}
    assert files == named | papers
    assert sum(path.stat().st_size for path in files) <= 9_000_000


def test_attribution_and_licence() -> None:
    attribution = " ".join((FOLDER / "ATTRIBUTION.md").read_text("utf-8").split())
    for statement in ("https://www.art4apps.org", "CC BY-SA 3.0", "What was changed", "Selection", "300 x 300", "Opus"):
        assert statement in attribution
    licence = (FOLDER / "LICENSE-CC-BY-SA-3.0.txt").read_text("utf-8")
    assert "Attribution-ShareAlike 3.0 Unported" in licence
    assert "https://creativecommons.org/licenses/by-sa/3.0/legalcode" in licence
    assert "8. Miscellaneous" in licence  # the text is whole


def rebuilt(source: Path, into: Path) -> dict[str, str]:
    subprocess.run([sys.executable, SCRIPT, source, "--into", into], check=True, capture_output=True)
    return {
        path.relative_to(into).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in into.rglob("*")
        if path.is_file()
    }


def test_the_script_makes_the_same_bytes_again(tmp_path: Path) -> None:
    # the sample corpus is itself a picture-words folder in which every drawing qualifies
    again = rebuilt(FOLDER, tmp_path)
    papers = {"ATTRIBUTION.md", "LICENSE-CC-BY-SA-3.0.txt"}
    here = {path.relative_to(FOLDER).as_posix(): path for path in FOLDER.rglob("*") if path.is_file()}
    assert again == {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in here.items() if name not in papers
    }


def test_the_script_takes_drawings_of_all_three_voices_and_no_other_voice(tmp_path: Path) -> None:
    source, into = tmp_path / "source", tmp_path / "into"
    voices = {f"{n:02}": ["fr-gcompris", "fr-art4apps", "es-art4apps", "en-art4apps"] for n in range(40)}
    voices["only-two"] = ["en-art4apps", "es-art4apps", "fr-gcompris"]
    rows = [[f"images/{w}.jpg", f"audio/{v}/{w}.ogg", w, v[:2], v] for w, named in voices.items() for v in named]
    for path in {source / cell for row in rows for cell in row[:2]}:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    with (source / "recordings.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "audio", "word", "language", "speaker"], *rows])
    (into / "audio").mkdir(parents=True)
    (into / "audio" / "of an older selection.ogg").touch()
    (into / "ATTRIBUTION.md").write_text("by hand")
    files = rebuilt(source, into)
    assert sum(name.startswith("images/") for name in files) == 40
    assert sum(name.startswith("audio/") for name in files) == 120
    assert not any("gcompris" in name or "only-two" in name or "older" in name for name in files)
    assert (into / "ATTRIBUTION.md").read_text() == "by hand"
    assert len(read_manifest(into / "manifest.jsonl").captions) == 120
