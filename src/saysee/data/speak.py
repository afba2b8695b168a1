"""Written captions to recordings by synthetic voices, and their manifest.

Which voices say a caption, how fast and how high, is drawn from the seed and the caption's id alone: it depends neither
on the order of the captions nor on the number of workers, and a voice that is added takes captions from the others and
moves none between them.

    DIR/manifest.jsonl               what was spoken
    DIR/speech.json                  who spoke it and how: engines, voices, licences, seed, ranges
    DIR/left-out.txt                 what could not be spoken, if anything, with the reason
    DIR/made-again.txt               what was not sound at first, if anything, and why, and was made by another draw
    DIR/recordings/VOICE/NAME.flac   16 kHz, 16 bits

A recording's name holds a hash of all that decides its sound, so what is there need not be made again, whatever else
has changed since. FLAC, because it keeps what the engine said to the bit and gives the same file every time; Ogg Opus
is a fifth of the size, but its files differ from run to run, and features are stored by a file's content.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import soundfile
from tqdm import tqdm

from saysee import __version__
from saysee.data.manifest import SPLITS, Manifest, ManifestError, Split, SplitBy, SpokenCaption, write_manifest
from saysee.data.speech_synthesis import load_engine
from saysee.data.speech_synthesis.base import Samples, SynthesisError, Voice, speakable
from saysee.data.split import hashed_position
from saysee.data.written_captions import WrittenCaption
from saysee.errors import AudioError, SayseeError
from saysee.features.audio import SAMPLE_RATE, as_waveform
from saysee.features.extract import become_worker, worker_pool
from saysee.features.speech_activity import find_speech
from saysee.files import atomic_path, sole_process, write_text

Voices = Mapping[Split, Sequence[str]]
"""Who speaks in each split, as `engine:voice`."""

_UNIT = 16  # recordings that a worker is given at a time
# Ours. Letters a second, at the voice's own speed, and the silence that an engine may put around them: those here
# speak 10 to 15 in a sentence.
_FASTEST, _SLOWEST, _SILENCE_SECONDS = 30.0, 5.0, 1.5
_QUIETEST = 0.01  # ours: the lowest peak, of which the engines here have forty times as much
# The detector of speech is sure of every caption and of no short word: `dad` by espeak-ng's en-gb has the probability
# 0.05, and noise has 0.04.
_DETECTED_LETTERS = 12


@dataclass(frozen=True)
class Delivery:
    """How speech varies around a voice's own: both are drawn evenly for each recording.

    Attributes:
        speed: how much faster or slower it may be, as a share: 0.1 is from 0.9 to 1.1 times the voice's own.
        pitch: how much higher or lower it may be, in semitones.
        tries: how often a recording that is not sound is made, each time by another draw.
    """

    speed: float = 0.1
    pitch: float = 1.0
    tries: int = 3

    def __post_init__(self) -> None:
        for name, most in (("speed", 0.5), ("pitch", 6.0)):
            if not 0 <= getattr(self, name) <= most:
                raise SayseeError(f"{name} varies by {getattr(self, name):g}; allowed: from 0 to {most:g}")
        if self.tries < 1:
            raise SayseeError(f"tries is {self.tries}; give 1 or more")

    def draw(self, seed: int, name: str) -> tuple[float, float]:
        """Return the speed, as a factor, and the pitch, in semitones, that belong to a name."""
        speed, pitch = (2 * hashed_position(seed, f"{name}\0{what}") - 1 for what in ("speed", "pitch"))
        return 1 + self.speed * speed, self.pitch * pitch


@dataclass(frozen=True)
class Spoken:
    """What became of the captions.

    Attributes:
        manifest: of the recordings.
        left_out: one line for each recording that could not be made.
        notes: what was done, one line each; the first is the summary.
    """

    manifest: Manifest
    left_out: list[str]
    notes: list[str]


@dataclass(frozen=True)
class _Task:
    """One recording to be made: caption `id` by `speaker`, into `audio`."""

    id: str
    text: str
    speaker: str
    audio: Path
    seed: int
    delivery: Delivery


class _Outcome(NamedTuple):
    """What became of a task: the file it is for, why tries were not sound, and whether one was in the end."""

    task: _Task
    faults: tuple[str, ...]
    made: bool


def speak(
    captions: Sequence[WrittenCaption],
    voices: Voices,
    out: Path,
    *,
    seed: int = 0,
    delivery: Delivery = Delivery(),
    voices_per_caption: int = 1,
    split_by: SplitBy = "image",
    workers: int = 1,
    progress: bool = False,
) -> Spoken:
    """Speak captions into a folder; what is there already is not made again.

    Args:
        captions: what is said.
        voices: by whom. A caption with a language is spoken by voices of that language alone.
        out: the folder, see above.
        seed: draws voices, speed and pitch.
        delivery: how they vary.
        voices_per_caption: how many different voices say each caption; all there are, where they are fewer.
        split_by: what no two splits share, for the manifest.
        workers: processes on this machine; with 1, this one.
        progress: whether to show a bar.

    Raises:
        ManifestError: captions in a language, or in a split, that none of the voices speaks.
        SayseeError: an engine or voice that is not there, another process speaks into `out`, or nothing at all could
            be spoken.
    """
    if voices_per_caption < 1 or workers < 1:
        raise SayseeError(f"{voices_per_caption} voices a caption, {workers} workers; give 1 or more of both")
    known = {
        speaker: _voice(speaker) for speaker in dict.fromkeys(s for split in SPLITS for s in voices.get(split, ()))
    }
    chosen = _choose_speakers(captions, voices, known, seed, voices_per_caption)
    out = out.resolve()
    spoken: list[SpokenCaption] = []
    tasks: list[_Task] = []
    for caption, speakers in zip(captions, chosen, strict=True):
        for speaker in speakers:
            task = _task(caption, speaker, out, seed, delivery)
            tasks.append(task)
            spoken.append(
                SpokenCaption(
                    id=caption.id if voices_per_caption == 1 else f"{caption.id}/{speaker}",
                    audio=task.audio,
                    image_id=caption.image_id,
                    image=caption.image,
                    text=caption.text,
                    speaker=speaker,
                    language=caption.language or _primary(known[speaker].language),
                    split=caption.split,
                    concept=caption.concept,
                )
            )
    with sole_process(out / ".lock", f"speaking into {out}"):
        todo = [task for task in tasks if not task.audio.exists()]
        faults, several = _speak_all(todo, workers, out / "made-again.txt", progress)
        left_out = [f"{task.id} by {task.speaker}: {faults[task.audio]}" for task in tasks if task.audio in faults]
        manifest = Manifest(split_by, tuple(caption for caption in spoken if caption.audio not in faults))
        if not manifest.captions:
            raise SayseeError(f"none of {len(tasks):,} recordings could be made; the first: {left_out[0]}")
        settings = {"seed": seed, "speed": delivery.speed, "pitch": delivery.pitch, "tries": delivery.tries}
        settings |= {"voices_per_caption": voices_per_caption}
        write_text(out / "speech.json", json.dumps(_provenance(manifest, voices, known, settings, left_out), indent=2))
        write_manifest(out / "manifest.jsonl", manifest)
        listed = out / "left-out.txt"
        if left_out:
            write_text(listed, "\n".join(left_out) + "\n")
        else:
            listed.unlink(missing_ok=True)
    made = len(todo) - len(left_out)
    notes = [manifest.summary(), f"made {made:,} recordings, {len(tasks) - len(todo):,} were there already"]
    if several:
        why = f"because the first was not sound: {several:,}; which and why stands in {out / 'made-again.txt'}"
        notes.append(f"made again by another draw, {why}")
    return Spoken(manifest, left_out, [*notes, _heard_in_training(manifest)])


def parse_voices(given: Sequence[str]) -> Voices:
    """Read voices as they are given on the command line.

    Args:
        given: each `[SPLIT=]ENGINE:VOICE,ENGINE:VOICE,...`; those without a split speak in all that none names.

    Raises:
        SayseeError: an unknown split, a split or a voice that is named twice, or something that is no voice.
    """
    named: dict[str, list[str]] = {}
    for text in given:
        split, equals, listed = text.rpartition("=")
        if equals and split not in SPLITS:
            raise SayseeError(f"{text!r} gives voices to {split!r}; allowed: {', '.join(SPLITS)}")
        if split in named:
            raise SayseeError(f"voices are given twice to {split or 'all splits'}; join them by commas")
        speakers = [speaker.strip() for speaker in listed.split(",")]
        for speaker in speakers:
            engine, colon, voice = speaker.partition(":")
            if not (engine and colon and voice):
                raise SayseeError(f"{speaker!r} is no voice; give ENGINE:VOICE, as flite:slt or espeak-ng:en-us+f3")
            if speakers.count(speaker) > 1:
                raise SayseeError(f"the voice {speaker} stands twice in {text!r}; name it once")
        named[split] = speakers
    return {split: named.get(split, named.get("", [])) for split in SPLITS}


def _voice(speaker: str) -> Voice:
    engine, _, name = speaker.partition(":")
    return load_engine(engine).voice(name)


def _choose_speakers(
    captions: Sequence[WrittenCaption], voices: Voices, known: Mapping[str, Voice], seed: int, count: int
) -> list[list[str]]:
    """Give each caption the speakers whom a hash of both puts first [rendezvous hashing: Thaler, Ravishankar 1998]."""
    chosen: list[list[str]] = []
    mute: Counter[tuple[str, str | None]] = Counter()
    for caption in captions:
        able = [
            speaker
            for speaker in voices.get(caption.split, ())
            if caption.language is None or _primary(caption.language) == _primary(known[speaker].language)
        ]
        if not able:
            mute[caption.split, caption.language] += 1
        chosen.append(sorted(able, key=lambda speaker: hashed_position(seed, f"{caption.id}\0{speaker}"))[:count])
    if mute:
        raise ManifestError(
            "voices are missing",
            [
                f"{number:,} captions of {split} have no voice" + (f" in the language {language!r}" if language else "")
                for (split, language), number in mute.items()
            ],
        )
    return chosen


def _primary(language: str) -> str:
    """Return `en` of `en-us`."""
    return re.split("[-_]", language.lower())[0]


def _task(caption: WrittenCaption, speaker: str, out: Path, seed: int, delivery: Delivery) -> _Task:
    text = speakable(caption.text)
    version = load_engine(speaker.partition(":")[0]).version
    decides = json.dumps([version, speaker, text, caption.id, seed, delivery.speed, delivery.pitch])
    digest = hashlib.sha256(decides.encode()).hexdigest()[:16]
    name = f"{_plain(caption.id)[-80:]}-{digest}.flac"
    return _Task(caption.id, text, speaker, out / "recordings" / _plain(speaker) / name, seed, delivery)


def _plain(text: str) -> str:
    """Return a text as part of a file's name on any system."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", text).strip(".-") or "-"


def _speak_all(tasks: Sequence[_Task], workers: int, again: Path, progress: bool) -> tuple[dict[Path, str], int]:
    """Make recordings; return what is wrong with those that could not be made, and how many took several tries.

    Args:
        tasks: what is to be made.
        workers: processes; with 1, this one.
        again: the file that gets a line for each recording that took several tries.
        progress: whether to show a bar.
    """
    units = [tasks[start : start + _UNIT] for start in range(0, len(tasks), _UNIT)]
    refused: dict[Path, str] = {}
    several = 0
    with tqdm(total=len(tasks), unit="recording", disable=None if progress else True, delay=2, leave=False) as bar:
        for outcomes in map(_speak_unit, units) if workers == 1 else _in_processes(units, workers):
            retried = [outcome for outcome in outcomes if outcome.made and outcome.faults]
            if retried:
                several += len(retried)
                with again.open("a", encoding="utf-8") as file:
                    file.writelines(f"{o.task.id} by {o.task.speaker}: {', then '.join(o.faults)}\n" for o in retried)
            refused |= {outcome.task.audio: outcome.faults[-1] for outcome in outcomes if not outcome.made}
            bar.update(len(outcomes))
    return refused, several


def _in_processes(units: Sequence[Sequence[_Task]], workers: int) -> Iterator[list[_Outcome]]:
    with worker_pool(workers, "recordings", become_worker) as pool:
        yield from pool.map(_speak_unit, units)


def _speak_unit(tasks: Sequence[_Task]) -> list[_Outcome]:
    return [_speak_one(task) for task in tasks]


def _speak_one(task: _Task) -> _Outcome:
    engine, _, voice = task.speaker.partition(":")
    faults: list[str] = []
    for attempt in range(task.delivery.tries):
        speed, pitch = task.delivery.draw(task.seed, f"{task.id}\0{task.speaker}\0{attempt}")
        try:
            samples, rate = load_engine(engine).speak(task.text, voice, speed, pitch)
            waveform = as_waveform(samples, rate, name="it")
            require_speech(waveform, task.text, speed)
        except (SynthesisError, AudioError) as error:
            faults.append(str(error))
            continue
        with atomic_path(task.audio) as temporary:
            # what is louder than the file can hold is made quieter, not clipped
            peak = max(1.0, float(abs(waveform).max()))
            soundfile.write(temporary, waveform / peak, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        return _Outcome(task, tuple(faults), made=True)
    return _Outcome(task, tuple(faults), made=False)


def require_speech(waveform: Samples, text: str, speed: float) -> None:
    """Refuse a recording that cannot be what was to be said.

    Args:
        waveform: (S,), mono at 16 kHz.
        text: what was to be said.
        speed: a factor on the voice's own.

    Raises:
        SynthesisError: it is all but silent, no speech is heard in it (of a text longer than a word), or it is absurdly
            short or long for its text.
    """
    if (peak := float(abs(waveform).max())) < _QUIETEST:
        raise SynthesisError(f"it is all but silent: its peak is {peak:.4f}, {_QUIETEST} is needed")
    seconds, letters = len(waveform) / SAMPLE_RATE, spoken_letters(text)
    shortest, longest = letters / _FASTEST / speed, (_SILENCE_SECONDS + letters / _SLOWEST) / speed
    if not shortest <= seconds <= longest:
        raise SynthesisError(f"it lasts {seconds:.1f} s; its text should take {shortest:.1f} to {longest:.1f} s")
    if letters >= _DETECTED_LETTERS:
        try:
            find_speech(waveform)
        except AudioError:
            raise SynthesisError("no speech is heard in it") from None


def spoken_letters(text: str) -> int:
    """Return about how many letters it would take to write down how a text is said.

    A digit is read as a word and an ideograph as a syllable: both count for four.
    """
    wide = sum(unicodedata.east_asian_width(character) in "WF" or character.isdigit() for character in text)
    return sum(character.isalnum() for character in text) + 3 * wide


def _provenance(
    manifest: Manifest, voices: Voices, known: Mapping[str, Voice], settings: dict[str, Any], left_out: list[str]
) -> dict[str, Any]:
    count = Counter((caption.speaker, caption.split) for caption in manifest.captions)
    return {
        "speech": "synthetic",
        "saysee": __version__,
        **settings,
        "recordings": len(manifest.captions),
        "left_out": len(left_out),
        "engines": {engine: load_engine(engine).version for engine in {name.partition(":")[0]: 0 for name in known}},
        "voices": [
            {
                "voice": speaker,
                "language": voice.language,
                "licence": voice.licence,
                "recordings": {split: count[speaker, split] for split in SPLITS if speaker in voices.get(split, ())},
            }
            for speaker, voice in known.items()
        ],
    }


def _heard_in_training(manifest: Manifest) -> str:
    speakers = {split: {caption.speaker for caption in manifest.of(split)} for split in SPLITS}
    heard = sorted(str(speaker) for speaker in speakers["train"] & (speakers["dev"] | speakers["test"]))
    if not heard:
        return "no voice of dev or test is heard in training"
    return f"voices of dev or test that are heard in training: {', '.join(heard)}"
