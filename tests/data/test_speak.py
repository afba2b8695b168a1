"""Written captions to recordings: who speaks, what is checked, what is made again, and a kill on the way."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from command_line import contents, saysee
from media import write_image
from saysee.data import speak as module
from saysee.data import speech_synthesis
from saysee.data.manifest import ManifestError, Split, read_manifest
from saysee.data.speak import Delivery, Spoken, parse_voices, require_speech, speak, spoken_letters
from saysee.data.speech_synthesis.base import SynthesisError, Voice
from saysee.data.validate import validate
from saysee.data.written_captions import WrittenCaption
from saysee.errors import SayseeError
from saysee.features.audio import SAMPLE_RATE, load_waveform

WORD = Path(str(resources.files("saysee"))) / "assets" / "art4apps" / "audio" / "en-art4apps" / "alligator.ogg"
needs_flite = pytest.mark.skipif(
    shutil.which("flite") is None and os.environ.get("CI") != "true", reason="the program flite is not installed"
)


class FakeEngine:
    """Says `alligator` in a real voice, unless certain words make it fail, and keeps what it was asked."""

    version = "fake 1"

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, float, float]] = []

    def voice(self, name: str) -> Voice:
        return Voice({"maria": "es", "john": "en-gb"}.get(name, "en-us"), f"licence of {name}")

    def speak(self, text: str, voice: str, speed: float, pitch: float) -> tuple[NDArray[np.float32], int]:
        self.asked.append((text, voice, speed, pitch))
        if "refused" in text:
            raise SynthesisError("it will not say that")
        if "silence" in text:
            return np.zeros(SAMPLE_RATE, np.float32), SAMPLE_RATE
        if "hiss" in text:
            return np.random.default_rng(0).standard_normal(SAMPLE_RATE, np.float32) / np.float32(10), SAMPLE_RATE
        if "at length" in text:
            return np.tile(load_waveform(WORD), 9), SAMPLE_RATE
        if "fast ones" in text and speed < 1:
            return np.zeros(SAMPLE_RATE, np.float32), SAMPLE_RATE
        # what it is asked for can be heard, in another rate than 16 kHz
        return load_waveform(WORD) * np.float32(20 if "loud" in text else 1), round(SAMPLE_RATE * speed)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    fake = FakeEngine()
    speech_synthesis.load_engine.cache_clear()
    monkeypatch.setitem(speech_synthesis._ENGINES, "fake", lambda: fake)
    yield fake
    speech_synthesis.load_engine.cache_clear()


def captions_of(folder: Path, *texts: str, split: Split = "train", language: str | None = None) -> list[WrittenCaption]:
    return [
        WrittenCaption(f"i{n}.png#0", f"i{n}.png", write_image(folder / f"i{n}.png"), text, language, split)
        for n, text in enumerate(texts)
    ]


def many(count: int) -> list[WrittenCaption]:
    return [WrittenCaption(f"c{n}", f"i{n}", Path(f"/i{n}.png"), "an alligator", None, "train") for n in range(count)]


def everyone(*speakers: str) -> Mapping[Split, list[str]]:
    return {"train": list(speakers), "dev": list(speakers), "test": list(speakers)}


# ---- recordings and manifest


def test_captions_become_recordings_and_a_manifest(engine: FakeEngine, tmp_path: Path) -> None:
    captions = [
        *captions_of(tmp_path, "An alligator .", "loud alligators"),
        dataclasses.replace(captions_of(tmp_path, "alligator")[0], id="i0.png#1", split="train"),
        WrittenCaption("d", "d.png", write_image(tmp_path / "d.png", colour="blue"), "cocodrilo", "es-MX", "dev"),
        WrittenCaption("t", "t.png", write_image(tmp_path / "t.png", colour="green"), "an alligator", "en", "test"),
    ]
    voices: Mapping[Split, list[str]] = {
        "train": ["fake:ann"],
        "dev": ["fake:ann", "fake:maria"],
        "test": ["fake:john"],
    }
    spoken = speak(captions, voices, tmp_path / "out")
    assert spoken.left_out == []
    assert spoken.manifest == read_manifest(tmp_path / "out" / "manifest.jsonl")
    assert [(c.id, c.text, c.speaker, c.language, c.split) for c in spoken.manifest.captions] == [
        ("i0.png#0", "An alligator .", "fake:ann", "en", "train"),
        ("i1.png#0", "loud alligators", "fake:ann", "en", "train"),
        ("i0.png#1", "alligator", "fake:ann", "en", "train"),
        ("d", "cocodrilo", "fake:maria", "es-MX", "dev"),
        ("t", "an alligator", "fake:john", "en", "test"),
    ]
    assert engine.asked[0][0] == "An alligator."
    for caption in spoken.manifest.captions:
        about = soundfile.info(caption.audio)
        assert (about.format, about.subtype, about.samplerate, about.channels) == ("FLAC", "PCM_16", 16_000, 1)
    loud = load_waveform(spoken.manifest.captions[1].audio)
    assert np.abs(loud).max() == pytest.approx(1, abs=0.01)
    assert (np.abs(loud) > 0.98).sum() < 10  # made quieter, not clipped
    # the fake says one word whatever it is given, at different speeds: no two recordings are the same
    assert validate(spoken.manifest) == []
    assert spoken.notes == [
        "4 pictures, 5 recordings (train 3, dev 1, test 1), split by image",
        "made 5 recordings, 0 were there already",
        "no voice of dev or test is heard in training",
    ]


def test_the_record_beside_the_manifest_says_who_spoke_and_how(engine: FakeEngine, tmp_path: Path) -> None:
    captions = [
        *captions_of(tmp_path, "alligator", "silence"),
        WrittenCaption("t", "t", tmp_path, "x y z", None, "test"),
    ]
    speak(captions, parse_voices(["fake:ann", "test=fake:john"]), tmp_path, seed=7, delivery=Delivery(0.2, 0.0))
    assert json.loads((tmp_path / "speech.json").read_text("utf-8")) == {
        "speech": "synthetic",
        "saysee": "0.1.0",
        "seed": 7,
        "speed": 0.2,
        "pitch": 0.0,
        "tries": 3,
        "voices_per_caption": 1,
        "recordings": 2,
        "left_out": 1,
        "engines": {"fake": "fake 1"},
        "voices": [
            {
                "voice": "fake:ann",
                "language": "en-us",
                "licence": "licence of ann",
                "recordings": {"train": 1, "dev": 0},
            },
            {"voice": "fake:john", "language": "en-gb", "licence": "licence of john", "recordings": {"test": 1}},
        ],
    }


# ---- who speaks, how fast, how high


def assignment(spoken: Spoken) -> dict[str, tuple[str | None, str]]:
    return {caption.id: (caption.speaker, caption.audio.name) for caption in spoken.manifest.captions}


@pytest.mark.usefixtures("engine")
def test_voices_depend_on_seed_and_caption_and_on_no_order(tmp_path: Path) -> None:
    captions, speakers = many(40), [f"fake:{name}" for name in "abcd"]
    first = assignment(speak(captions, everyone(*speakers), tmp_path / "1", seed=1))
    assert assignment(speak(captions[::-1], everyone(*speakers[::-1]), tmp_path / "2", seed=1)) == first
    assert assignment(speak(captions[:7], everyone(*speakers), tmp_path / "3", seed=1)) == {
        caption.id: first[caption.id] for caption in captions[:7]
    }
    assert {speaker for speaker, _ in first.values()} == set(speakers)
    assert assignment(speak(captions, everyone(*speakers), tmp_path / "4", seed=2)) != first
    for recordings in (tmp_path / "2", tmp_path / "3"):
        for path in recordings.rglob("*.flac"):
            assert path.read_bytes() == (tmp_path / "1" / path.relative_to(recordings)).read_bytes()


def test_voices_are_drawn_evenly_and_a_new_one_moves_none_between_the_others() -> None:
    captions, three = many(3000), [f"fake:{name}" for name in "abc"]
    known = dict.fromkeys([*three, "fake:d"], Voice("en", ""))
    before = [chosen for (chosen,) in module._choose_speakers(captions, everyone(*three), known, 0, 1)]
    assert all(900 < count < 1100 for count in Counter(before).values())
    after = [chosen for (chosen,) in module._choose_speakers(captions, everyone(*three, "fake:d"), known, 0, 1)]
    assert {new for old, new in zip(before, after, strict=True) if old != new} == {"fake:d"}
    assert 650 < after.count("fake:d") < 850


@pytest.mark.usefixtures("engine")
def test_several_voices_say_a_caption(tmp_path: Path) -> None:
    voices: Mapping[Split, list[str]] = {"train": [f"fake:{name}" for name in "abc"], "dev": [], "test": []}
    spoken = speak(many(6), voices, tmp_path, voices_per_caption=2)
    assert [caption.id for caption in spoken.manifest.captions[:2]] == [
        f"c0/{caption.speaker}" for caption in spoken.manifest.captions[:2]
    ]
    by_caption = Counter(caption.id.split("/")[0] for caption in spoken.manifest.captions)
    assert set(by_caption.values()) == {2}
    assert len({caption.id for caption in spoken.manifest.captions}) == 12
    assert len(speak(many(6), voices, tmp_path, voices_per_caption=9).manifest.captions) == 18


@given(st.floats(0, 0.5), st.floats(0, 6), st.integers(0, 99), st.text(max_size=5))
def test_speed_and_pitch_stay_within_what_is_asked_for(speed: float, pitch: float, seed: int, name: str) -> None:
    drawn = Delivery(speed, pitch).draw(seed, name)
    assert abs(drawn[0] - 1) <= speed
    assert abs(drawn[1]) <= pitch
    assert Delivery(speed, pitch).draw(seed, name) == drawn


def test_speed_and_pitch_are_spread_and_have_nothing_to_do_with_each_other() -> None:
    drawn = np.array([Delivery(0.2, 3.0).draw(0, str(number)) for number in range(2000)])
    assert drawn.min(0) == pytest.approx([0.8, -3], abs=0.03)
    assert drawn.max(0) == pytest.approx([1.2, 3], abs=0.03)
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.06


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.6, 1.0, 3), "speed varies by 0.6; allowed: from 0 to 0.5"),
        ((0.1, -1.0, 3), "pitch varies by -1; allowed: from 0 to 6"),
        ((0.1, 1.0, 0), "tries is 0; give 1 or more"),
    ],
)
def test_a_delivery_that_is_not_speech_is_refused(values: tuple[float, float, int], message: str) -> None:
    with pytest.raises(SayseeError, match=re.escape(message)):
        Delivery(*values)


def test_voices_are_read_for_all_splits_or_for_one() -> None:
    given = ["flite:slt, espeak-ng:en-us+f3", "test=hibari:heart"]
    assert parse_voices(given) == {
        "train": ["flite:slt", "espeak-ng:en-us+f3"],
        "dev": ["flite:slt", "espeak-ng:en-us+f3"],
        "test": ["hibari:heart"],
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["flite:slt", "flite:rms"], "voices are given twice to all splits; join them by commas"),
        (["dev=flite:slt", "dev=flite:rms"], "voices are given twice to dev"),
        (["valid=flite:slt"], "'valid=flite:slt' gives voices to 'valid'; allowed: train, dev, test"),
        (["slt"], "'slt' is no voice; give ENGINE:VOICE, as flite:slt"),
        (["flite:slt,"], "'' is no voice"),
        (["flite:slt,flite:slt"], "the voice flite:slt stands twice in"),
    ],
)
def test_voices_that_cannot_be_meant_are_refused(given: list[str], message: str) -> None:
    with pytest.raises(SayseeError, match=re.escape(message)):
        parse_voices(given)


@pytest.mark.usefixtures("engine")
def test_captions_that_nobody_can_say_are_counted_before_anything_is_spoken(tmp_path: Path) -> None:
    captions = [
        *captions_of(tmp_path, "ein Hund", "eine Katze", language="de"),
        dataclasses.replace(captions_of(tmp_path, "a dog")[0], id="x", split="dev"),
    ]
    with pytest.raises(ManifestError) as caught:
        speak(captions, {"train": ["fake:ann"]}, tmp_path / "out")
    assert caught.value.faults == [
        "2 captions of train have no voice in the language 'de'",
        "1 captions of dev have no voice",
    ]
    assert not (tmp_path / "out").exists()


# ---- what is not sound


def test_a_recording_that_is_not_sound_is_made_again_by_another_draw(engine: FakeEngine, tmp_path: Path) -> None:
    captions = captions_of(tmp_path, *(f"fast ones, number {number}" for number in range(20)))
    spoken = speak(captions, everyone("fake:ann"), tmp_path / "out", delivery=Delivery(tries=8))
    again = len(engine.asked) - 20
    assert spoken.left_out == []
    assert again > 3
    several = sum(count > 1 for count in Counter(text for text, *_ in engine.asked).values())
    listed = tmp_path / "out" / "made-again.txt"
    said = f"made again by another draw, because the first was not sound: {several}; which and why stands in {listed}"
    assert said in spoken.notes
    asked = Counter(text for text, *_ in engine.asked)
    lines = dict(line.split(" by fake:ann: ") for line in listed.read_text("utf-8").splitlines())
    assert {name: reasons.count("it: is silent throughout") for name, reasons in lines.items()} == {
        caption.id: asked[caption.text] - 1 for caption in captions if asked[caption.text] > 1
    }
    assert len({(speed, pitch) for *_, speed, pitch in engine.asked}) == len(engine.asked)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("refused", "it will not say that"),
        ("silence", "it: is silent throughout"),
        ("hiss hiss hiss hiss", "no speech is heard in it"),
        ("at length", "its text should take 0.3 to 3."),
        (
            "a caption of so many words that nobody could say it in a second, not even in a great hurry",
            "its text should take 2.",
        ),
    ],
)
def test_what_stays_unsound_is_named_and_the_rest_is_kept(
    engine: FakeEngine, tmp_path: Path, text: str, reason: str
) -> None:
    captions = captions_of(tmp_path, "alligator", text, "alligators")
    spoken = speak(captions, everyone("fake:ann"), tmp_path / "out")
    (line,) = spoken.left_out
    assert line.startswith("i1.png#0 by fake:ann: ")
    assert reason in line
    assert (tmp_path / "out" / "left-out.txt").read_text("utf-8") == f"{line}\n"
    assert [caption.id for caption in spoken.manifest.captions] == ["i0.png#0", "i2.png#0"]
    assert sum(asked == text for asked, *_ in engine.asked) == 3

    # asked again, it is tried again; what could be made is not
    engine.asked.clear()
    speak(captions, everyone("fake:ann"), tmp_path / "out")
    assert {asked for asked, *_ in engine.asked} == {text}
    speak([captions[0]], everyone("fake:ann"), tmp_path / "out")
    assert not (tmp_path / "out" / "left-out.txt").exists()


@pytest.mark.usefixtures("engine")
def test_nothing_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SayseeError, match="none of 2 recordings could be made; the first: i0"):
        speak(captions_of(tmp_path, "refused", "refused"), everyone("fake:ann"), tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.jsonl").exists()


def test_how_long_a_text_takes_counts_what_is_said() -> None:
    assert spoken_letters("A dog's ball!") == 9
    assert spoken_letters("7 cats") == 4 + 4
    assert spoken_letters("犬と猫") == 12
    word = load_waveform(WORD)
    require_speech(word, "alligator", 1.0)
    with pytest.raises(SynthesisError, match=r"it lasts 1\.\d s; its text should take 1\.\d to"):
        require_speech(word, "a" * 50, 1.0)
    require_speech(word, "a" * 50, 2.0)


def test_of_a_word_that_the_detector_may_miss_it_is_asked_that_there_is_sound() -> None:
    noise = np.random.default_rng(0).standard_normal(SAMPLE_RATE, np.float32) / np.float32(20)
    require_speech(noise, "dad", 1.0)
    with pytest.raises(SynthesisError, match="no speech is heard in it"):
        require_speech(noise, "dad and grandma", 1.0)
    with pytest.raises(SynthesisError, match=r"it is all but silent: its peak is 0.00\d\d, 0.01 is needed"):
        require_speech(noise / np.float32(100), "dad", 1.0)


# ---- what is there already


def test_what_is_there_is_not_made_again_and_what_changes_is(engine: FakeEngine, tmp_path: Path) -> None:
    captions = captions_of(tmp_path, "alligator", "alligators", "an alligator")
    first = speak(captions, everyone("fake:ann"), tmp_path / "out")
    engine.asked.clear()
    assert speak(captions, everyone("fake:ann"), tmp_path / "out").manifest == first.manifest
    assert engine.asked == []

    changed = [dataclasses.replace(captions[0], text="one alligator"), *captions[1:]]
    spoken = speak(changed, everyone("fake:ann"), tmp_path / "out")
    assert [text for text, *_ in engine.asked] == ["one alligator"]
    assert "made 1 recordings, 2 were there already" in spoken.notes
    for how in ({"seed": 1}, {"delivery": Delivery(0.2)}, {"delivery": Delivery(pitch=2.0)}):
        engine.asked.clear()
        speak(captions, everyone("fake:ann"), tmp_path / "out", **how)
        assert len(engine.asked) == 3
    engine.asked.clear()
    engine.version = "fake 2"
    speak(captions, everyone("fake:ann"), tmp_path / "out")
    assert len(engine.asked) == 3


@pytest.mark.usefixtures("engine")
def test_odd_ids_make_good_names(tmp_path: Path) -> None:
    ids = ["../../etc/passwd", "a/b", "a-b", "ñ", "", "x" * 500, "."]
    captions = [dataclasses.replace(caption, id=name) for caption, name in zip(many(7), ids, strict=True)]
    spoken = speak(captions, everyone("fake:a/../b"), tmp_path)
    audio = [caption.audio for caption in spoken.manifest.captions]
    assert len(set(audio)) == 7
    assert {path.parent for path in audio} == {tmp_path / "recordings" / "fake-a-..-b"}
    assert all(path.is_file() for path in audio)


@needs_flite
def test_several_processes_make_the_same_as_one(tmp_path: Path) -> None:
    captions = [WrittenCaption(f"c{n}", f"i{n}", tmp_path, f"a dog with {n} balls", None, "train") for n in range(40)]
    voices = everyone("flite:slt", "flite:kal16")
    one = speak(captions, voices, tmp_path / "one")
    several = speak(captions, voices, tmp_path / "several", workers=2)
    assert assignment(one) == assignment(several)
    first, second = contents(tmp_path / "one"), contents(tmp_path / "several")
    assert first == second


@needs_flite
def test_a_killed_run_goes_on_to_the_same_files(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    lines = [f"a.png,a dog with {number} balls and {number + 1} sticks,train" for number in range(60)]
    (tmp_path / "captions.csv").write_text("\n".join(["image,text,split", *lines]), "utf-8")
    command = ["speak", str(tmp_path / "captions.csv"), "--voices", "flite:slt,flite:awb", "--workers", "2", "--out"]
    killed = subprocess.Popen(
        [sys.executable, "-m", "saysee", *command, str(tmp_path / "killed")], start_new_session=True
    )
    made = tmp_path / "killed" / "recordings"
    limit = time.monotonic() + 120
    while len(list(made.rglob("*.flac"))) < 5 and time.monotonic() < limit and killed.poll() is None:
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert 5 <= len(list(made.rglob("*.flac"))) < 60
    assert not (tmp_path / "killed" / "manifest.jsonl").exists()

    outcome = saysee(*command[:-3], "--out", tmp_path / "killed")
    assert outcome.status == 0, outcome.err
    assert saysee(*command[:-3], "--out", tmp_path / "whole").status == 0
    sound = {name: content for name, content in contents(tmp_path / "killed").items() if not name.endswith(".tmp")}
    assert sound == contents(tmp_path / "whole")


# ---- the command


@pytest.mark.usefixtures("engine")
def test_the_command_says_what_was_made_and_what_was_not(tmp_path: Path) -> None:
    for name, colour in (("a", "red"), ("b", "green"), ("c", "blue")):
        write_image(tmp_path / f"{name}.png", colour=colour)
    rows = ["image,text,split", "a.png,alligator,train", "a.png,silence,train", "b.png,alligator,dev"]
    (tmp_path / "t.csv").write_text("\n".join([*rows, "c.png,alligator,test"]), "utf-8")
    voices = ["--voices", "fake:ann", "--voices", "test=fake:john"]
    outcome = saysee("speak", tmp_path / "t.csv", *voices, "--out", tmp_path / "out", "--tries", "1")
    assert outcome.status == 0
    listed = tmp_path / "out" / "left-out.txt"
    assert outcome.err.splitlines() == [
        f"saysee: warning: 1 recordings could not be made, all named with the reason in {listed}",
        f"saysee: warning: {listed.read_text('utf-8').strip()}",
    ]
    assert outcome.out.splitlines() == [
        "3 pictures, 3 recordings (train 1, dev 1, test 1), split by image",
        "made 3 recordings, 0 were there already",
        "voices of dev or test that are heard in training: fake:ann",
        f"wrote {tmp_path / 'out' / 'manifest.jsonl'}",
    ]
    assert saysee("validate", tmp_path / "out" / "manifest.jsonl").status == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--voices", "festival:kal"], "there is no engine 'festival'; allowed: flite, espeak-ng, hibari, kokoro"),
        (["--voices", "slt"], "'slt' is no voice"),
        (["--voices", "fake:ann", "--speed", "0.9"], "speed varies by 0.9; allowed: from 0 to 0.5"),
        (["--voices", "fake:ann", "--first", "0"], "the first 0 captions"),
        (["--voices", "fake:ann", "--workers", "0"], "1 voices a caption, 0 workers; give 1 or more of both"),
    ],
)
@pytest.mark.usefixtures("engine")
def test_a_mistake_is_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("image,text,split\na.png,dog,train\n", "utf-8")
    outcome = saysee("speak", tmp_path / "t.csv", "--out", tmp_path / "out", *arguments)
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.startswith("saysee: ")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
