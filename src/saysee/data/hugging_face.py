"""Data sets of the Hugging Face hub, or of a folder in their form, that have recordings and pictures.

Two layouts are read: rows with an audio and an image column; and that of `deep9539/flickr-audio-image`, the configs
`audio` {id, audio}, `images` {id, image, text} and `qrels` {image_id, audio_id}. Rows are streamed, and what they hold
is written out once, one file a recording and a picture, named by its content. No code of a data set is run.
"""

import hashlib
import importlib
import io
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from saysee.data.manifest import Manifest, ManifestError, Prepared, Split, SpokenCaption
from saysee.data.published import check_share, draw_dev
from saysee.data.split import assign_splits
from saysee.errors import SayseeError
from saysee.features.containers import find_format
from saysee.files import atomic_path, sha256_of

_PAIRS = {"audio": ("id", "audio"), "images": ("id", "image"), "qrels": ("image_id", "audio_id")}
_TEXT_COLUMNS = ("text", "speaker", "language")
_SPLITS: dict[str, Split] = {
    "train": "train", "validation": "dev", "valid": "dev", "val": "dev", "dev": "dev", "test": "test",
}  # fmt: skip
_PICTURES = ((b"\xff\xd8", ".jpg"), (b"\x89PNG", ".png"), (b"GIF8", ".gif"), (b"RIFF", ".webp"))


def prepare(
    name: str,
    files: Path,
    *,
    revision: str | None = None,
    config: str | None = None,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    dev: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
) -> Prepared:
    """Make a manifest of a Hugging Face data set, and write its recordings and pictures to files.

    Its splits train, validation (valid, val, dev) and test are kept. With train and one more, that one is test and dev
    is drawn from train by image; a single split is divided by image (both ours). In rows, a picture is known by its
    content; in `qrels`, by its id. The `text` of `images` is that of the picture's first caption and not what each
    recording says: it is not taken.

    Args:
        name: a folder, or `owner/name` on the hub.
        files: where recordings and pictures are written; what is there already is not written again.
        revision: commit, tag or branch on the hub; by default its newest.
        config: which one of several is read, as rows.
        split: to read this split alone.
        columns: `audio`, `image`, `text`, `speaker`, `language` -> the column that has it. By default the only audio
            and the only image column, and the columns of those names.
        dev: share of the images that make dev, where it is drawn.
        test: the same for test.
        seed: draws others.

    Raises:
        ManifestError: all contradictions of `qrels`: an id that stands twice, a recording of two pictures.
        SayseeError: the package `datasets` is missing, the data set cannot be had or has no such config, split or
            column, or it does not say which of several is meant, or splits that cannot be drawn as asked.
    """
    check_share(dev)
    check_share(test, "test")
    try:
        files.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SayseeError(f"{str(files)!r} cannot be made ({error.strerror}); give a folder for the files") from None
    with tempfile.TemporaryDirectory(dir=files, prefix=".cache-") as cache:
        source = _Source(name, revision, _library(), files.resolve(), Path(cache))
        configs = source.configs()
        if config is None and set(configs) >= set(_PAIRS):
            captions, warnings, notes = _read_pairs(source, split)
            found: list[Split] = ["train"]
        else:
            table = source.table(_chosen(config, configs, "config", name))
            parts = _named_splits(table, split, name)
            captions, warnings = _read_rows(source, table, parts, columns or {})
            found, notes = list(parts.values()), []
    if not captions:
        raise ManifestError(name, [*warnings, "it holds no recording with its picture; give another config or split"])
    divided, note = _divided(captions, found, dev, test, seed)
    manifest = Manifest("image", tuple(divided))
    return Prepared(manifest, [manifest.summary(), note, *notes], warnings)


@dataclass(frozen=True)
class _Source:
    """A data set, read row by row."""

    name: str
    revision: str | None
    library: Any
    files: Path
    cache: Path

    def configs(self) -> list[str]:
        with _reading(self.name):
            found: list[str] = self.library.get_dataset_config_names(self._path(), revision=self.revision)
            return found

    def table(self, config: str) -> dict[str, Any]:
        """Return the streams of a config, by the names of their splits."""
        with _reading(self.name):
            return dict(
                self.library.load_dataset(
                    self._path(), config, revision=self.revision, streaming=True, cache_dir=str(self.cache)
                )
            )

    def rows(self, stream: Any, columns: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """Give the rows of a stream, `columns` alone under their own names, with media as the bytes they are."""
        features = stream.features
        with _reading(self.name):
            stream = stream.select_columns(list(dict.fromkeys(columns.values())))
            for column in set(columns.values()):
                if isinstance(features[column], self.library.Audio | self.library.Image):
                    # decoding would ask for torchcodec, and is done by saysee's own, bounded readers
                    stream = stream.cast_column(column, type(features[column])(decode=False))
            rows = iter(stream)
        while True:
            with _reading(self.name):
                row = next(rows, None)
            if row is None:
                return
            yield {key: row[column] for key, column in columns.items()}

    def write(self, kind: str, media: dict[str, Any] | None) -> Path | None:
        """Write a recording or a picture under a name made of its content; None if the row has none."""
        content = self._content(media or {})
        if not content:
            return None
        digest = hashlib.sha256(content).hexdigest()
        if kind == "audio":
            suffix = f".{found}" if (found := find_format(io.BytesIO(content))) else ""
        else:
            suffix = next((suffix for start, suffix in _PICTURES if content.startswith(start)), "")
        path = self.files / kind / digest[:2] / f"{digest[:32]}{suffix}"
        if not (path.is_file() and path.stat().st_size == len(content) and sha256_of(path) == digest):
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)
        return path

    def _content(self, media: dict[str, Any]) -> bytes | None:
        if media.get("bytes"):
            return bytes(media["bytes"])
        # a folder's rows may name files beside them; a name from elsewhere could be any file of this machine
        path = Path(media["path"]).resolve() if media.get("path") else None
        if path is None or not Path(self.name).is_dir() or not path.is_relative_to(Path(self.name).resolve()):
            return None
        return path.read_bytes() if path.is_file() else None

    def _path(self) -> str:
        if Path(self.name).is_dir():
            return str(Path(self.name).resolve())
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", self.name):
            raise SayseeError(f"{self.name!r} is no folder and no name on the hub; give a folder or owner/name")
        return self.name


def _library() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError:
        raise SayseeError("Hugging Face data sets need the package datasets: pip install 'saysee[hub]'") from None


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Make a user's error of any error of the library: it has no class for those of the network and of broken files."""
    try:
        yield
    except SayseeError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise SayseeError(f"the data set {name!r} cannot be read: {reason}") from error


def _read_pairs(source: _Source, split: str | None) -> tuple[list[SpokenCaption], list[str], list[str]]:
    streams = {}
    for config, needed in _PAIRS.items():
        table = source.table(config)
        streams[config] = table[_chosen(split, list(table), f"split of config {config!r}", source.name)]
        if missing := [column for column in needed if column not in (streams[config].features or {})]:
            raise SayseeError(
                f"config {config!r} of {source.name!r} lacks {', '.join(missing)}; give config to read rows"
            )
    faults: list[str] = []
    image_of: dict[str, str] = {}
    for row in source.rows(streams["qrels"], {"image": "image_id", "audio": "audio_id"}):
        image, audio = str(row["image"]), str(row["audio"])
        if image_of.setdefault(audio, image) != image:
            faults.append(f"qrels: recording {audio!r} belongs to {image_of[audio]!r} and to {image!r}; keep one")
    left_out: Counter[str] = Counter()
    paths: dict[str, dict[str, Path]] = {}
    for config, column, wanted in (("images", "image", set(image_of.values())), ("audio", "audio", set(image_of))):
        paths[column] = {}
        for row in source.rows(streams[config], {"id": "id", "media": column}):
            id_ = str(row["id"])
            if id_ not in wanted:
                left_out[f"rows of {config} that qrels does not name"] += 1
            elif id_ in paths[column]:
                faults.append(f"{config}: id {id_!r} stands twice; keep one")
            elif path := source.write(column, row["media"]):
                paths[column][id_] = path
    if faults:
        raise ManifestError(source.name, faults)
    captions = [
        SpokenCaption(audio, paths["audio"][audio], image, paths["image"][image], None, None, None, "train")
        for audio, image in image_of.items()
        if audio in paths["audio"] and image in paths["image"]
    ]
    lost = [audio for audio, image in image_of.items() if audio not in paths["audio"] or image not in paths["image"]]
    warnings = [_lost(lost, "pairs of qrels without a recording or a picture")] if lost else []
    return captions, warnings, [f"left out: {count:,} {what}" for what, count in left_out.items()]


def _read_rows(
    source: _Source, table: dict[str, Any], parts: dict[str, Split], given: Mapping[str, str]
) -> tuple[list[SpokenCaption], list[str]]:
    features = next(iter(table.values())).features or {}
    columns = _found_columns(source.library, features, given)
    captions: list[SpokenCaption] = []
    lost: list[str] = []
    for name, split in parts.items():
        for number, row in enumerate(source.rows(table[name], columns)):
            audio, image = source.write("audio", row["audio"]), source.write("image", row["image"])
            if audio is None or image is None:
                lost.append(f"{name}/{number}")
                continue
            texts = {key: _text(features[columns[key]], row[key]) for key in columns if key in _TEXT_COLUMNS}
            known = {key: texts.get(key) for key in _TEXT_COLUMNS}
            captions.append(
                SpokenCaption(f"{name}/{number}", audio=audio, image_id=image.stem, image=image, split=split, **known)
            )
    return captions, [_lost(lost, "rows without a recording or a picture")] if lost else []


def _found_columns(library: Any, features: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, str]:
    """Return `audio`, `image` and what is known of the texts -> its column."""
    if unknown := [key for key in given if key not in ("audio", "image", *_TEXT_COLUMNS)]:
        raise SayseeError(f"columns names {', '.join(unknown)}; allowed: audio, image, {', '.join(_TEXT_COLUMNS)}")
    types: dict[str, Any] = {"audio": library.Audio, "image": library.Image}
    types |= dict.fromkeys(_TEXT_COLUMNS, library.Value | library.ClassLabel)
    columns: dict[str, str] = {}
    for key, kind in types.items():
        fitting = [name for name, feature in features.items() if isinstance(feature, kind)]
        if key in given:
            columns[key] = _chosen(given[key], fitting, f"{key} column", "the data set")
        elif key not in _TEXT_COLUMNS:
            columns[key] = _chosen(None, fitting, f"{key} column", "the data set")
        elif key in fitting:
            columns[key] = key
    return columns


def _chosen(given: str | None, there: list[str], what: str, name: str) -> str:
    """Return the one that is meant: the one given, or the only one there."""
    listed = ", ".join(repr(option) for option in there) or "none"
    if given is not None and given not in there:
        raise SayseeError(f"{given!r} is no {what} of {name!r}; there: {listed}")
    if given is None and len(there) != 1:
        raise SayseeError(f"{name!r} needs one {what}; there: {listed}{'; say which' if there else ''}")
    return given if given is not None else there[0]


def _named_splits(table: Mapping[str, Any], split: str | None, name: str) -> dict[str, Split]:
    """Return the splits to read, each with ours that it becomes."""
    if split is not None or len(table) == 1:
        return {_chosen(split, list(table), "split", name): "train"}
    if unknown := [there for there in table if there not in _SPLITS]:
        raise SayseeError(
            f"{name!r} has splits {', '.join(table)}, of which {', '.join(unknown)} cannot be told to be train, dev or "
            f"test ({', '.join(_SPLITS)} can); give split to read one and divide it"
        )
    parts = {there: _SPLITS[there] for there in table}
    if "train" not in parts.values() or len(set(parts.values())) < len(parts):
        raise SayseeError(f"{name!r} has splits {', '.join(table)}; give split to read one of them and divide it")
    return parts


def _divided(
    captions: list[SpokenCaption], found: list[Split], dev: float, test: float, seed: int
) -> tuple[list[SpokenCaption] | tuple[SpokenCaption, ...], str]:
    """Return the captions with dev and test, and a line that says where they come from."""
    if len(found) == 1:
        return assign_splits(captions, "image", dev, test, seed), f"splits drawn by image with seed {seed} (ours)"
    if len(found) == 2:
        held_out = [c if c.split == "train" else replace(c, split="test") for c in captions]
        second = next(split for split in found if split != "train")
        note = f"splits: {second} of the data set is test, dev drawn from train by image with seed {seed} (ours)"
        return draw_dev(held_out, dev, seed), note
    return captions, "splits are those of the data set"


def _text(feature: Any, value: Any) -> str | None:
    if hasattr(feature, "int2str") and isinstance(value, int):
        return str(feature.int2str(value)) if value >= 0 else None  # -1 is how a ClassLabel says that it is not known
    return None if value is None else str(value)


def _lost(names: list[str], what: str) -> str:
    return f"left out: {len(names):,} {what}, such as {', '.join(repr(name) for name in names[:3])}"
