"""The contact sheet, read back with a parser: what it shows, what it must never do, and thumbnails without metadata."""

import base64
import hashlib
import io
import re
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from saysee.search.sheet import SheetAnswer, SheetQuestion, make_thumbnail, waveform_peaks, write_sheet

NASTY = '"><script>alert(1)</script>\n\' onerror="x" &amp; </title></style>'


class Page(HTMLParser):
    """All elements in order with their attributes, and the text inside each."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.declaration = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_decl(self, decl: str) -> None:
        self.declaration = decl

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "img"):
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, "elements are closed in the order they were opened"

    def handle_data(self, data: str) -> None:
        for tag in set(self._open):
            self.texts[tag][-1] += data

    def attributes(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(*questions: SheetQuestion, title: str = "Sheet", footer: str = "") -> Page:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sheet.html"
        write_sheet(path, questions, title, footer)
        return Page(path.read_text(encoding="utf-8"))


def answer(caption: str = "koala", *, fine: float | None = 1.5, correct: bool | None = None) -> SheetAnswer:
    return SheetAnswer(f"jpeg of {caption}".encode("utf-8", "replace"), caption, 0.25, fine, correct)


def question(
    *answers: SheetAnswer, title: str = "koala", note: str = "English", audio: bytes | None = b"opus"
) -> SheetQuestion:
    return SheetQuestion(title, audio, "audio/ogg", note, answers, peaks=(0.0, 1.0))


def decoded(uri: str) -> tuple[str, bytes]:
    kind, _, data = uri.removeprefix("data:").partition(";base64,")
    return kind, base64.b64decode(data, validate=True)


def test_pictures_and_recordings_lie_in_the_file() -> None:
    page = page_of(question(answer("a"), answer("b")), question(answer("c"), audio=None))
    assert [decoded(image["src"]) for image in page.attributes("img")] == [
        ("image/jpeg", b"jpeg of a"),
        ("image/jpeg", b"jpeg of b"),
        ("image/jpeg", b"jpeg of c"),
    ]
    (audio,) = page.attributes("audio")
    assert decoded(audio["src"]) == ("audio/ogg", b"opus")
    assert "controls" in audio


def test_nothing_can_leave_the_page() -> None:
    page = page_of(question(answer(NASTY), title=NASTY, note=NASTY), title=NASTY, footer=NASTY)
    allowed = {"src", "class", "id", "dir", "alt", "aria-labelledby", "aria-label", "aria-hidden", "lang", "controls"}
    allowed |= {"preload", "charset", "http-equiv", "content", "name", "viewbox", "preserveaspectratio"}
    allowed |= {"x", "y", "width", "height", "rx"}
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "iframe", "object", "embed", "form", "a", "base"}
        assert set(attributes) <= allowed
        assert attributes.get("src", "data:").startswith("data:")
    (style,) = page.texts["style"]
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_allows_this_style_and_data_and_no_host() -> None:
    page = page_of(question(answer()))
    (policy,) = [
        meta["content"] for meta in page.attributes("meta") if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    digest = base64.b64encode(hashlib.sha256(page.texts["style"][0].encode()).digest()).decode()
    assert {part.strip() for part in policy.split(";")} == {
        "default-src 'none'",
        "img-src data:",
        "media-src data:",
        f"style-src 'sha256-{digest}'",
        "base-uri 'none'",
        "form-action 'none'",
    }
    names = [name for name, _ in page.elements]
    assert names.index("meta") < names.index("style"), "a policy rules only what comes after it"
    assert not [attributes for _, attributes in page.elements if "style" in attributes], "the policy forbids those"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(alphabet=st.characters(blacklist_characters="\r\x00"), max_size=20), min_size=4, max_size=4))
def test_any_text_is_shown_as_it_is_and_changes_no_structure(texts: list[str]) -> None:
    """Carriage return and NUL aside, which HTML itself replaces."""
    title, name, caption, note = (text + "!" for text in texts)
    page = page_of(question(answer(caption), title=name, note=note), title=title)
    shown = [text.encode("utf-8", "replace").decode() for text in (title, name, caption)]
    assert [page.texts["h1"][0], page.texts["h2"][0], page.attributes("img")[0]["alt"]] == shown
    assert page.texts["title"] == [shown[0]]
    assert shown[2] in page.texts["figcaption"][0]
    plain = page_of(question(answer()))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]


def test_the_correct_picture_is_marked_in_words_too() -> None:
    page = page_of(question(answer("a", correct=False), answer("b", correct=True), answer("c", correct=False)))
    assert [item.get("class") for item in page.attributes("li")] == [None, "correct", None]
    assert ["\N{CHECK MARK} correct" in text for text in page.texts["figure"]] == [False, True, False]
    assert "\N{CHECK MARK} correct picture at rank 2" in page.texts["p"]


def test_what_is_not_known_is_not_said() -> None:
    missed = page_of(question(answer("a", correct=False), answer("b", correct=False)))
    assert "\N{BALLOT X} correct picture not among the first 2" in missed.texts["p"]
    for unknown in (question(answer("a"), answer("b")), question(answer("a", correct=False), answer("b")), question()):
        assert "correct" not in page_of(unknown).texts["body"][0]


def test_scores_stand_under_their_picture() -> None:
    page = page_of(question(SheetAnswer(b"", "a", -0.1234, -7.896, None), SheetAnswer(b"", "b", 0.5, None, None)))
    assert page.texts["dl"] == ["coarse\N{MINUS SIGN}0.123fine\N{MINUS SIGN}7.90", "coarse0.500"]
    assert page.texts["figcaption"] == ["1 a", "2 b"]
    assert "re-ranking" in page.texts["footer"][0]
    assert "re-ranking" not in page_of(question(answer(fine=None))).texts["footer"][0]


def test_every_section_has_a_heading_and_every_picture_a_text() -> None:
    page = page_of(question(answer("a")), question(answer("b"), title="question.wav"))
    assert page.declaration == "doctype html"
    assert page.attributes("html") == [{"lang": "en"}]
    headings = {heading["id"] for heading in page.attributes("h2")}
    assert [section["aria-labelledby"] in headings for section in page.attributes("section")] == [True, True]
    assert len(headings) == 2
    assert [image["alt"] for image in page.attributes("img")] == ["a", "b"]
    assert [audio["aria-label"] for audio in page.attributes("audio")] == ["koala", "question.wav"]


def test_the_page_follows_the_system_and_the_width() -> None:
    page = page_of()
    (style,) = page.texts["style"]
    assert "@media (prefers-color-scheme: dark)" in style
    assert "@media (max-width" in style
    assert {"name": "color-scheme", "content": "light dark"} in page.attributes("meta")
    used, defined = set(re.findall(r"var\((--[\w-]+)\)", style)), set(re.findall(r"(--[\w-]+):", style))
    assert used == defined


def test_each_footer_line_is_a_paragraph() -> None:
    assert page_of(footer="Drawings: X, CC BY-SA.\nVoices: Y.").texts["p"] == ["Drawings: X, CC BY-SA.", "Voices: Y."]


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    assert image.format == "JPEG"
    image.load()
    return image


def test_a_thumbnail_carries_no_metadata_and_stands_upright() -> None:
    picture = Image.new("RGB", (40, 20), "red")
    picture.paste("blue", (20, 0, 40, 20))  # red left, blue right
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise: red above, blue below
    exif[0x010F] = "my camera"
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", exif=exif, comment=b"my garden", quality=95, dpi=(300, 300))
    thumbnail = make_thumbnail(opened(buffer.getvalue()), size=20)

    assert b"my camera" not in thumbnail
    assert b"my garden" not in thumbnail
    small = opened(thumbnail)
    assert not small.getexif()
    assert small.size == (10, 20)
    above, below = np.asarray(small)[3, 5], np.asarray(small)[16, 5]
    assert above[0] > 200 > 60 > above[2]
    assert below[2] > 200 > 60 > below[0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_a_thumbnail_of_any_mode(mode: str) -> None:
    assert opened(make_thumbnail(Image.new("RGB", (300, 600), "white").convert(mode))).size == (128, 256)


def test_transparency_lies_over_white() -> None:
    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    half = Image.new("RGBA", (16, 16), (0, 0, 0, 128))
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.info["transparency"] = 1
    for image, expected in ((clear, 255), (half, 127), (palette, 255)):
        assert np.asarray(opened(make_thumbnail(image))) == pytest.approx(np.full((16, 16, 3), expected), abs=3)


def test_a_small_picture_is_not_enlarged_and_the_original_stays() -> None:
    picture = Image.new("RGB", (500, 30), "teal")
    assert opened(make_thumbnail(picture, size=1000)).size == (500, 30)
    assert opened(make_thumbnail(picture, size=100)).size == (100, 6)
    assert picture.size == (500, 30)
    assert opened(make_thumbnail(Image.new("RGB", (1, 1)))).size == (1, 1)


def test_peaks_are_the_loudest_sample_of_each_part() -> None:
    waveform = np.array([0.1, -0.2, 0.0, 0.4, -0.8, 0.3], dtype=np.float32)
    assert waveform_peaks(waveform, bars=3) == pytest.approx((0.25, 0.5, 1.0))
    assert waveform_peaks(waveform[:2], bars=4) == pytest.approx((0.5, 1.0, 0.0, 0.0))
    assert waveform_peaks(np.zeros(100, dtype=np.float32), bars=2) == (0.0, 0.0)
    assert waveform_peaks(np.zeros(0, dtype=np.float32), bars=2) == (0.0, 0.0)
    assert waveform_peaks(np.array([np.nan, 0.5], dtype=np.float32), bars=2) == (0.0, 1.0)


def test_the_drawn_waveform_has_a_bar_for_each_peak_inside_its_box() -> None:
    page = page_of(SheetQuestion("q", None, "", "", [], peaks=(0.0, 0.5, 1.0)))
    (svg,) = page.attributes("svg")
    _, _, width, height = map(float, svg["viewbox"].split())
    bars = [{name: float(value) for name, value in bar.items()} for bar in page.attributes("rect")]
    assert [bar["height"] for bar in bars] == [2.0, height / 2, height]
    for bar in bars:
        assert 0 <= bar["x"] <= bar["x"] + bar["width"] <= width
        assert bar["y"] + bar["height"] / 2 == height / 2
    assert not page_of(SheetQuestion("q", None, "", "", [])).attributes("svg")
