"""A contact sheet: spoken questions and the pictures that answer them, as one HTML file that opens offline.

Pictures and recordings lie in the file itself, there is no script, and a Content-Security-Policy forbids every request:
what a sheet shows stays on the machine it is opened on.
"""

import base64
import hashlib
import html
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from saysee.files import write_text

_MINUS = "\N{MINUS SIGN}"  # as wide as the plus, which a hyphen is not
_BAR, _GAP, _HEIGHT = 3, 2, 48  # of the drawn waveform, in its own units


@dataclass(frozen=True)
class SheetAnswer:
    """A picture in the place it was ranked.

    Attributes:
        image: the bytes of a JPEG; see `make_thumbnail`.
        caption: what stands under it, and what a screen reader says.
        coarse: cosine similarity to the question.
        fine: the matching log-odds, if there was a fine stage.
        correct: whether it is an answer, if that is known.
    """

    image: bytes
    caption: str
    coarse: float
    fine: float | None
    correct: bool | None


@dataclass(frozen=True)
class SheetQuestion:
    """A spoken question and its answers, the best first.

    Attributes:
        title: what was said, or the name of the recording.
        audio: the bytes of a recording that browsers play, or None.
        audio_type: its media type, as `audio/ogg`.
        note: a line on the question: language, voice, whether it was in training.
        answers: the best first.
        peaks: the loudness from left to right, from 0 to 1, drawn above the player; see `waveform_peaks`.
    """

    title: str
    audio: bytes | None
    audio_type: str
    note: str
    answers: Sequence[SheetAnswer]
    peaks: Sequence[float] = ()


def write_sheet(path: Path, questions: Sequence[SheetQuestion], title: str, footer: str) -> None:
    """Write the sheet as one HTML file, atomically.

    Args:
        path: of the file.
        questions: one row each.
        title: of the page.
        footer: where the pictures and recordings are from and under which licence, say; one paragraph a line.
    """
    policy = "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            "media-src data:",
            f"style-src 'sha256-{_base64(hashlib.sha256(_STYLE.encode()).digest())}'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    page = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{_text(title)}</title>",
        f"<style>{_STYLE}</style>",
        "</head>",
        "<body>",
        f'<header><h1 dir="auto">{_text(title)}</h1></header>',
        "<main>",
        *(line for number, question in enumerate(questions, start=1) for line in _question(number, question)),
        "</main>",
        "<footer>",
        *(f'<p dir="auto">{_text(line)}</p>' for line in [*_legend(questions), *footer.splitlines()]),
        "</footer>",
        "</body>",
        "</html>",
    ]
    write_text(path, "\n".join(page) + "\n")


def make_thumbnail(image: Image.Image, size: int = 256) -> bytes:
    """Return a JPEG of at most `size` pixels a side: upright, transparency over white, no EXIF, no comment, no profile.

    Args:
        image: in any mode that Pillow converts to RGB.
        size: pixels of the longer side; a smaller picture is not enlarged.
    """
    upright = ImageOps.exif_transpose(image)
    # a new picture: Pillow would carry the comment of the old one over
    clean = Image.new("RGB", upright.size, "white")
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        clean.paste(layer, mask=layer)
    else:
        clean.paste(upright.convert("RGB"))
    clean.thumbnail((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    clean.save(buffer, "JPEG", quality=85, optimize=True)
    return buffer.getvalue()


def waveform_peaks(waveform: npt.NDArray[np.float32], bars: int = 48) -> tuple[float, ...]:
    """Return the largest absolute sample of each of `bars` equal parts, over the largest of all: from 0 to 1.

    Args:
        waveform: (S,) samples; silence and no samples at all give zeros.
        bars: how many parts.
    """
    parts = np.array_split(np.abs(np.nan_to_num(waveform)), bars)
    peaks = np.array([part.max(initial=0.0) for part in parts])
    return tuple((peaks / max(peaks.max(), np.finfo(np.float32).tiny)).tolist())


def _question(number: int, question: SheetQuestion) -> Iterator[str]:
    yield f'<section aria-labelledby="question-{number}">'
    yield '<div class="asked">'
    yield f'<h2 id="question-{number}" dir="auto">{_text(question.title)}</h2>'
    if question.note:
        yield f'<p class="note" dir="auto">{_text(question.note)}</p>'
    if question.peaks:
        yield _waveform(question.peaks)
    if question.audio is not None:
        source = f"data:{_text(question.audio_type)};base64,{_base64(question.audio)}"
        yield f'<audio controls preload="metadata" aria-label="{_text(question.title)}" src="{source}"></audio>'
    yield from _verdict(question.answers)
    yield "</div>"
    yield '<ol class="answers">'
    for rank, answer in enumerate(question.answers, start=1):
        yield from _answer(rank, answer)
    yield "</ol>"
    yield "</section>"


def _verdict(answers: Sequence[SheetAnswer]) -> Iterator[str]:
    """Say where the correct picture stands, if all is known that this needs."""
    ranks = [rank for rank, answer in enumerate(answers, start=1) if answer.correct]
    if ranks:
        yield f'<p class="verdict found">\N{CHECK MARK} correct picture at rank {ranks[0]}</p>'
    elif answers and all(answer.correct is False for answer in answers):
        yield f'<p class="verdict">\N{BALLOT X} correct picture not among the first {len(answers)}</p>'


def _answer(rank: int, answer: SheetAnswer) -> Iterator[str]:
    caption = _text(answer.caption)
    scores = [("coarse", f"{answer.coarse:.3f}")]
    if answer.fine is not None:
        scores.append(("fine", f"{answer.fine:+.2f}"))
    cells = (f"<div><dt>{name}</dt><dd>{score.replace('-', _MINUS)}</dd></div>" for name, score in scores)
    yield '<li class="correct">' if answer.correct else "<li>"
    yield "<figure>"
    yield f'<img alt="{caption}" src="data:image/jpeg;base64,{_base64(answer.image)}">'
    if answer.correct:
        yield '<p class="mark">\N{CHECK MARK} correct</p>'
    yield f'<figcaption><span class="rank">{rank}</span> <span dir="auto">{caption}</span></figcaption>'
    yield f"<dl>{''.join(cells)}</dl>"
    yield "</figure>"
    yield "</li>"


def _waveform(peaks: Sequence[float]) -> str:
    bars = []
    for position, peak in enumerate(peaks):
        height = max(2.0, peak * _HEIGHT)
        x, y = position * (_BAR + _GAP), (_HEIGHT - height) / 2
        bars.append(f'<rect x="{x}" y="{y:.1f}" width="{_BAR}" height="{height:.1f}" rx="1.5"/>')
    width = len(peaks) * (_BAR + _GAP) - _GAP
    return (
        f'<svg viewBox="0 0 {width} {_HEIGHT}" preserveAspectRatio="xMinYMid" aria-hidden="true">{"".join(bars)}</svg>'
    )


def _legend(questions: Sequence[SheetQuestion]) -> Iterator[str]:
    answers = [answer for question in questions for answer in question.answers]
    if any(answer.fine is not None for answer in answers):
        yield "coarse: cosine similarity of recording and picture. fine: matching log-odds; re-ranking adds both."
    elif answers:
        yield "coarse: cosine similarity of recording and picture; it decides the order."


def _text(text: str) -> str:
    """Escape for text and for quoted attributes; what UTF-8 cannot hold (a broken file name) becomes `?`."""
    return html.escape(text.encode("utf-8", "replace").decode("utf-8"))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


_STYLE = """
:root {
  color-scheme: light dark;
  --paper: #f5f2ec; --card: #fffefb; --ink: #23201b; --soft: #6a6459; --line: #dfd8ca;
  --good: #18774a; --on-good: #fff; --voice: #b2532c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #161513; --card: #22201d; --ink: #f2ede3; --soft: #aaa294; --line: #3b372f;
    --good: #62d394; --on-good: #0d2417; --voice: #ec9468;
  }
}
* { box-sizing: border-box; margin: 0; }
body {
  max-width: 80rem; margin: 0 auto; padding: 2.5rem clamp(1rem, 3vw, 2.5rem);
  background: var(--paper); color: var(--ink);
  font: 1rem/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  overflow-wrap: anywhere;
}
h1, h2 {
  font-family: ui-serif, "Iowan Old Style", Charter, Georgia, "Noto Serif", serif; font-weight: 600; line-height: 1.15;
}
h1 { font-size: clamp(1.6rem, 4vw, 2.2rem); margin-bottom: 1.5rem; }
h2 { font-size: 1.7rem; }
section {
  display: grid; grid-template-columns: 14rem minmax(0, 1fr); gap: 1.5rem 2rem;
  padding: 1.75rem 0; border-top: 1px solid var(--line); break-inside: avoid;
}
.asked { display: flex; flex-direction: column; gap: .6rem; }
.note, footer { color: var(--soft); font-size: .875rem; }
svg { width: 100%; height: 3rem; fill: var(--voice); }
audio { width: 100%; height: 2.5rem; }
.verdict { font-size: .875rem; color: var(--soft); }
.found { color: var(--good); font-weight: 600; }
.answers {
  list-style: none; padding: 0; display: grid; gap: .875rem; align-content: start;
  grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr));
}
figure {
  position: relative; height: 100%; padding: .5rem; display: flex; flex-direction: column;
  background: var(--card); border-radius: .75rem;
  box-shadow: 0 0 0 1px var(--line), 0 1px 3px rgb(0 0 0 / .06);
}
.correct figure { box-shadow: 0 0 0 3px var(--good), 0 4px 14px rgb(0 0 0 / .12); }
img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #fff; border-radius: .4rem; }
.mark {
  position: absolute; top: -.65rem; right: .6rem; padding: .1rem .55rem; border-radius: 1rem;
  background: var(--good); color: var(--on-good); font-size: .75rem; font-weight: 700;
}
figcaption { display: flex; gap: .4rem; margin: .5rem .15rem .3rem; font-weight: 600; line-height: 1.25; }
.rank { flex: none; color: var(--soft); font-weight: 400; font-variant-numeric: tabular-nums; }
dl { margin: auto .15rem 0; font-size: .8125rem; color: var(--soft); }
dl div { display: flex; justify-content: space-between; gap: .5rem; }
dd { font-variant-numeric: tabular-nums; color: var(--ink); }
footer { margin-top: .5rem; padding-top: 1.25rem; border-top: 1px solid var(--line); display: grid; gap: .35rem; }
@media (max-width: 48rem) {
  section { grid-template-columns: minmax(0, 1fr); }
  .answers { grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); }
}
"""
