"""The real engines, where they are installed: voices, speed, pitch, odd texts; and what is said where they are not."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from saysee.data.speech_synthesis import ENGINES, base, load_engine
from saysee.data.speech_synthesis.base import SynthesisError, at_pitch, recorded, speakable
from saysee.data.speech_synthesis.kokoro import FOLDER_VARIABLE
from saysee.errors import SayseeError
from saysee.features.audio import SAMPLE_RATE, as_waveform

TEXT = "A little girl in a pink dress is climbing a set of stairs."
VOICES = {
    "flite": ["slt", "rms", "awb", "kal", "kal16"],
    "espeak-ng": ["en-us", "en-gb+f3"],
    "hibari": ["heart"],
    "kokoro": ["af_bella"],
}


def is_there(engine: str) -> str | None:
    """Why an engine cannot be tested here; None if it can, or if it must be: CI skips none but Kokoro."""
    if os.environ.get("CI") == "true" and engine != "kokoro":
        return None
    if engine in ("flite", "espeak-ng"):
        return None if shutil.which(engine) else f"the program {engine} is not installed"
    if engine == "kokoro" and FOLDER_VARIABLE not in os.environ:
        return f"${FOLDER_VARIABLE} names no folder with Kokoro's files"
    try:
        base.import_hibari()
    except SayseeError as error:
        return str(error)
    return None


each_voice = pytest.mark.parametrize(
    ("engine", "voice"),
    [
        pytest.param(engine, voice, marks=pytest.mark.skipif(reason is not None, reason=reason or "it is there"))
        for engine, voices in VOICES.items()
        for reason in [is_there(engine)]
        for voice in voices
    ],
)


def say(engine: str, voice: str, speed: float = 1.0, pitch: float = 0.0, text: str = TEXT) -> NDArray[np.float32]:
    return as_waveform(*load_engine(engine).speak(text, voice, speed, pitch))


def median_pitch(waveform: NDArray[np.float32]) -> float:
    """The median fundamental frequency in Hz of voiced frames, by autocorrelation."""
    frames = np.lib.stride_tricks.sliding_window_view(waveform, 1280)[::320]
    found = []
    for frame in frames[np.sqrt(np.square(frames).mean(1)) > 0.02]:
        correlation = np.correlate(frame - frame.mean(), frame - frame.mean(), "full")[len(frame) - 1 :]
        lag = 40 + int(correlation[40:266].argmax())
        if correlation[lag] > 0.5 * correlation[0]:
            found.append(SAMPLE_RATE / lag)
    return float(np.median(found))


@each_voice
def test_a_voice_speaks_the_same_every_time(engine: str, voice: str) -> None:
    first, again = say(engine, voice), say(engine, voice)
    assert np.array_equal(first, again)
    assert 2.5 < len(first) / SAMPLE_RATE < 7
    assert not np.array_equal(first, say(engine, voice, text="Two dogs run over the grass."))


@each_voice
def test_speed_is_a_factor_and_pitch_is_in_semitones(engine: str, voice: str) -> None:
    plain, fast, high, low = (say(engine, voice, *how) for how in ((1.0, 0.0), (1.1, 0.0), (1.0, 3.0), (1.0, -3.0)))
    # a single caption shows the steps of a coarse knob
    assert len(plain) / len(fast) == pytest.approx(1.1, abs=0.08)
    assert len(plain) / len(say(engine, voice, 0.9)) == pytest.approx(0.9, abs=0.08)
    assert [len(high) / len(plain), len(low) / len(plain)] == pytest.approx([1, 1], abs=0.08)
    shift = 12 * np.log2([median_pitch(high) / median_pitch(plain), median_pitch(low) / median_pitch(plain)])
    assert shift == pytest.approx([3, -3], abs=1.2)  # a sentence said slower has another melody


@each_voice
@pytest.mark.parametrize(
    "text", ["-o /tmp/x --help", '"; rm -rf . $(reboot) `reboot`', "[[h@l'oU]] dog", "a <b>dog</b> & cat", "dog's café"]
)
def test_odd_texts_are_said_and_nothing_else_happens(engine: str, voice: str, text: str) -> None:
    assert len(say(engine, voice, text=text)) > SAMPLE_RATE / 4


@each_voice
def test_its_version_and_licence_are_known(engine: str, voice: str) -> None:
    assert any(character.isdigit() for character in load_engine(engine).version)
    known = load_engine(engine).voice(voice)
    assert known.language.startswith("en-")
    assert known.licence


@pytest.mark.skipif(is_there("espeak-ng") is not None, reason="the program espeak-ng is not installed")
@pytest.mark.parametrize("language", ["en-us", "en-gb", "en-gb-scotland", "fr-fr"])
def test_every_variant_of_espeak_is_another_voice(language: str) -> None:
    voices = [language, f"{language}+f3", f"{language}+m7", f"{language}+Annie"]
    assert len({say("espeak-ng", voice).tobytes() for voice in voices}) == 4


@pytest.mark.skipif(is_there("espeak-ng") is not None, reason="the program espeak-ng is not installed")
def test_phonemes_between_brackets_are_no_command_to_espeak() -> None:
    spoken = say("espeak-ng", "en-us", text="[[h@l'oU]]")
    assert len(spoken) > 1.5 * len(say("espeak-ng", "en-us", text="hello"))  # it spells


@pytest.mark.parametrize(
    ("engine", "voice", "message"),
    [
        ("flite", "awb_time", "flite has no voice 'awb_time'; it has: awb, kal, kal16, rms, slt"),
        ("espeak-ng", "xx", "espeak-ng has no voice 'xx'; it has: af, am, an, "),
        ("espeak-ng", "en-us+nobody", "espeak-ng has no variant 'nobody'; it has: "),
        ("espeak-ng", "mb-en1", "espeak-ng has no voice 'mb-en1'"),
        ("hibari", "lark", "hibari has no voice 'lark'; it has: emma, "),
    ],
)
def test_a_voice_that_is_not_there_is_refused_with_those_that_are(engine: str, voice: str, message: str) -> None:
    if reason := is_there(engine):
        pytest.skip(reason)
    with pytest.raises(SayseeError) as caught:
        load_engine(engine).voice(voice)
    assert str(caught.value).startswith(message)


# ---- where something is missing


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "hibari", None)
    monkeypatch.setattr("saysee.data.speech_synthesis.load_engine", load_engine.__wrapped__)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.usefixtures("nothing_installed")
def test_an_engine_that_is_not_installed_says_how_to_install_it(engine: str) -> None:
    with pytest.raises(SayseeError) as caught:
        load_engine.__wrapped__(engine)
    advice = f"apt-get install {engine}" if engine in ("flite", "espeak-ng") else "pip install 'saysee[speak]'"
    assert advice in str(caught.value)


def test_kokoro_says_which_files_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("hibari")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(SayseeError, match=r"it must name a folder with Kokoro's model.onnx and voices/\*.bin"):
        load_engine.__wrapped__("kokoro")


def test_kokoro_says_which_file_is_damaged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("hibari")
    import onnxruntime

    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    (tmp_path / "model.onnx").write_bytes(b"half a model")
    with pytest.raises(SayseeError, match=r"onnxruntime cannot read .*model\.onnx .*; fetch it again") as caught:
        load_engine.__wrapped__("kokoro")
    assert "\n" not in str(caught.value)
    # with a model that is whole, a voice that was cut short is said before anything is spoken
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: None)
    (tmp_path / "voices").mkdir()
    for name, size in (("af_whole", 2048), ("af_cut", 1500), ("af_empty", 0)):
        (tmp_path / "voices" / f"{name}.bin").write_bytes(bytes(size))
    engine = load_engine.__wrapped__("kokoro")
    assert engine.voice("af_whole").language == "en-us"
    for name, size in (("af_cut", 1500), ("af_empty", 0)):
        with pytest.raises(SayseeError, match=rf"{name}\.bin has {size} bytes, and a voice has a multiple of 1024"):
            engine.voice(name)


def test_an_engine_that_nobody_knows_is_refused_with_those_there_are() -> None:
    with pytest.raises(SayseeError, match="no engine 'festival'; allowed: flite, espeak-ng, hibari, kokoro"):
        load_engine("festival")


# ---- what the engines share


@pytest.mark.skipif(is_there("hibari") is not None, reason="hibari-tts is not installed")
def test_what_a_package_raises_on_a_text_is_an_error_of_that_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object, text: str) -> None:
        raise KeyError(text)

    monkeypatch.setattr("hibari.Hibari.phonemize", broken)
    with pytest.raises(SynthesisError, match=r"hibari failed on it \(KeyError: 'a dog'\)"):
        load_engine("hibari").speak("a dog", "heart", 1.0, 0.0)


def program(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_a_program_that_fails_hangs_or_writes_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "TIMEOUT_SECONDS", 0.2)
    for script, message in (
        ("echo no voice >&2; exit 3", "talk ended with status 3: no voice"),
        ("exec sleep 60", "talk took over 0.2 s"),
        ("exit 0", "talk wrote no sound"),
        ('echo text > "$1"', "talk wrote no sound"),
    ):
        with pytest.raises(SynthesisError) as caught:
            recorded([program(tmp_path / "talk", script)], "hello")
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("A girl goes into a building .", "A girl goes into a building."),
        ("  Two dogs ,\n one  cat !", "Two dogs, one cat!"),
        ("bell\x07 and\u200bnothing", "bell and nothing"),
        ("it is 3.5 m", "it is 3.5 m"),
    ],
)
def test_what_is_said_is_one_line_without_loose_marks(written: str, said: str) -> None:
    assert speakable(written) == said


def test_pitch_without_a_knob_keeps_the_speed_that_is_asked_for() -> None:
    asked: list[float] = []

    def speak(speed: float) -> tuple[NDArray[np.float32], int]:
        asked.append(speed)
        return np.ones(round(24_000 / speed), np.float32), 24_000

    samples, rate = at_pitch(speak, 1.1, 12.0)
    assert asked == [pytest.approx(0.55)]
    assert rate == 48_000
    assert len(samples) / rate == pytest.approx(1 / 1.1, rel=1e-4)
