"""Say it, see it: real servers, a real browser, a voice in its microphone.

The voice says a word in a recording that was not in training. What the page shows is what `saysee search` says of the
same recording. Then a manifest is made with the recording page, and trained on.
"""

import base64
import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Playwright, expect, sync_playwright

from command_line import finish, saysee, start
from media import raw_wav
from saysee.config import Config, LossConfig, ModelConfig, TrainingConfig
from saysee.data.manifest import Manifest, SpokenCaption, read_manifest
from saysee.data.sample import sample_manifest_path
from saysee.features.audio import load_waveform
from saysee.workflows import train_on_manifest
from serving.browser import choose_file, chromium, hold_to_speak, likeness, visit

SAYSEE = ("-m", "saysee")
CONFIG = Config(
    ModelConfig(width=32, embedding_dim=16, heads=2, multimodal_layers=1),
    LossConfig(queue_size=32, distillation_ramp_steps=10),
    TrainingConfig(steps=20, batch_size=8, warmup_steps=5, evaluate_every=10, checkpoint_every=10),
)
PICTURES = 12

# the browser's driver does not tell what a page sends when it is a Blob
OVERHEAR = """() => {
  const original = window.fetch;
  window.fetch = async (address, options) => {
    if (options?.body instanceof Blob) {
      const bytes = new Uint8Array(await options.body.arrayBuffer());
      window.overheard = btoa(bytes.reduce((text, byte) => text + String.fromCharCode(byte), ""));
    }
    return original(address, options);
  };
}"""


@pytest.fixture(scope="module")
def captions() -> tuple[SpokenCaption, ...]:
    """Recordings of twelve drawings; one in test, which nothing is trained on."""
    found = [caption for caption in read_manifest(sample_manifest_path()).captions if caption.language != "fr"]
    chosen = found[: 2 * PICTURES]
    splits = {0: "test", 3: "dev", 6: "dev"}
    return tuple(replace(caption, split=splits.get(n, "train")) for n, caption in enumerate(chosen))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(captions: tuple[SpokenCaption, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model, and an index of the drawings."""
    folder = tmp_path_factory.mktemp("speak")
    train_on_manifest(CONFIG, Manifest("recording", captions), folder / "model")
    (folder / "pictures").mkdir()
    for image in {caption.image for caption in captions}:
        (folder / "pictures" / image.name).write_bytes(image.read_bytes())
    built = saysee("index", "build", folder / "pictures", "--model", folder / "model", "--into", folder / "index")
    assert built.status == 0, built.err
    return folder


@pytest.fixture(scope="module")
def microphone(captions: tuple[SpokenCaption, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is said: the recording that was not in training, with half a second of silence before it."""
    path: Path = tmp_path_factory.mktemp("microphone") / "said.wav"
    said = np.concatenate([np.zeros(8_000, np.float32), load_waveform(captions[0].audio), np.zeros(8_000, np.float32)])
    path.write_bytes(raw_wav((said * 32_767).astype(np.int16)))
    return path


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as running:
        yield running


@contextmanager
def serving(*arguments: object) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Run a command that serves, on a free port, and end it as a user does."""
    process = start(SAYSEE, *arguments, "--port", "0")
    assert process.stdout is not None
    lines = []
    while not (line := process.stdout.readline()).startswith("open "):
        lines.append(line)
        assert line, (lines, finish(process))
    try:
        yield line.removeprefix("open ").strip(), process
    finally:
        process.send_signal(signal.SIGINT)
        ended = finish(process)
        assert (ended.status, ended.err) == (0, ""), ended


def test_what_is_spoken_is_seen_as_the_command_line_ranks_it(
    playwright: Playwright, folder: Path, microphone: Path, captions: tuple[SpokenCaption, ...], tmp_path: Path
) -> None:
    said = load_waveform(captions[0].audio)
    with (
        serving("serve", folder / "index") as (url, _),
        chromium(playwright, microphone) as browser,
        visit(browser, url) as page,
    ):
        page.evaluate(OVERHEAR)
        hold_to_speak(page, len(said) / 16_000 + 1.2)
        expect(page.locator(".card")).to_have_count(PICTURES, timeout=30_000)
        shown = [text.split()[1] for text in page.locator(".card").all_inner_texts()]
        page.locator(".card").first.click()
        expect(page.locator("dialog img").first).to_be_visible()
        recording = base64.b64decode(page.evaluate("window.overheard"))
    assert likeness(load_waveform(recording), said) > 0.9
    question = tmp_path / "question.webm"
    question.write_bytes(recording)
    searched = saysee("search", folder / "index", question, "--json", "--top", PICTURES)
    ranked = [Path(answer["path"]).name for answer in json.loads(searched.out)["answers"]]
    assert shown == ranked
    # the picture that it names has the same rank on both sides
    assert shown.index(captions[0].image.name) == ranked.index(captions[0].image.name)


def test_a_language_is_recorded_and_trained_on(
    playwright: Playwright, folder: Path, microphone: Path, captions: tuple[SpokenCaption, ...], tmp_path: Path
) -> None:
    """Stopped in the middle and gone on with; what comes out validates, and a model is trained on it."""
    pictures, manifest = folder / "pictures", tmp_path / "captions.jsonl"

    def record(count: int, by_microphone: bool) -> None:
        with (
            serving("record", pictures, "--out", manifest) as (url, _),
            chromium(playwright, microphone) as browser,
            visit(browser, url) as page,
        ):
            page.fill("#speaker", "Ana")
            page.fill("#language", "nah")
            page.get_by_role("button", name="Begin").click()
            expect(page.locator("#studio")).to_be_visible()
            for turn in range(count):
                name = page.locator("#subject").get_attribute("src")
                if by_microphone:
                    hold_to_speak(page, 1.0 + 0.5 * turn)  # of different lengths, since copies are refused
                else:
                    choose_file(page, captions[2 * turn].audio.read_bytes())
                page.locator("#keep").click()
                page.wait_for_function("before => subject.getAttribute('src') !== before || !end.hidden", arg=name)
            if count == PICTURES - 3:
                expect(page.locator("#end")).to_be_visible()

    record(3, by_microphone=True)
    record(PICTURES - 3, by_microphone=False)
    checked = saysee("validate", manifest)
    assert checked.status == 0, checked.err
    recorded = read_manifest(manifest).captions
    assert len({caption.image for caption in recorded}) == len(recorded) == PICTURES
    assert {(caption.speaker, caption.language) for caption in recorded} == {("Ana", "nah")}
    train = ["train", "tiny", "--data", manifest, "--out", tmp_path / "model", "--cache", tmp_path / "cache"]
    trained = saysee(*train, "--training.steps", "2", "--training.batch_size", "4", "--training.evaluate_every", "2")
    assert trained.status == 0, trained.err
