"""An index of somebody's pictures: embeddings, projected tokens, and which file each row is.

A folder with `index.json` (format, model, counts, and the names and hashes of the two other files), `pictures-*.jsonl`
(one line a picture, in the order of the rows) and `vectors-*.safetensors`: `embedding` (N, E) float32 and, with a fine
stage, `hidden` (N, P, H) float16. The two are named by their content, and `index.json` is replaced by one rename when
both are written: whenever the building is stopped, the folder holds the old index or the new one.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from saysee.errors import SayseeError
from saysee.features.extract import read_ahead
from saysee.features.image import load_image
from saysee.files import atomic_path, write_text
from saysee.models.retrieval_model import SpeechImageModel, hash_tensors

FORMAT_VERSION = 1
PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
BATCH = 16
INDEX_FILE = "index.json"


@dataclass(frozen=True)
class PictureIndex:
    """An index in memory.

    Attributes:
        folder: where the pictures are.
        paths: each row's file, below `folder` (N).
        embedding: `image_embedding` (N, E), float32.
        hidden: projected tokens (N, P, H), float16; None when the model has no fine stage.
        model: the model folder it was built with.
        model_fingerprint: that model's fingerprint.
    """

    folder: Path
    paths: tuple[str, ...]
    embedding: Tensor
    hidden: Tensor | None
    model: Path
    model_fingerprint: str

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class BuildReport:
    """What `build_index` did: how many pictures are in, and each skipped file or folder with the reason."""

    indexed: int
    skipped: dict[Path, str]


def find_pictures(folder: Path, unreadable: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """Yield the files below a folder whose suffix is a picture's, hidden ones left out, in the order of their names.

    Args:
        folder: where to look.
        unreadable: is told of each folder below that cannot be listed.
    """
    for root, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in PICTURE_SUFFIXES:
                yield Path(root) / name


def build_index(
    folder: Path, model: SpeechImageModel, model_folder: Path, into: Path, *, workers: int = 2, progress: bool = False
) -> BuildReport:
    """Index every picture below `folder`; a bad one is skipped and reported.

    Args:
        folder: pictures, in subfolders too.
        model: encodes them.
        model_folder: where `model` came from; the index remembers it.
        into: the index folder; an earlier index there is replaced when the new one is complete.
        workers: threads that decode.
        progress: whether to show a bar.

    Raises:
        SayseeError: no such folder, no picture in it that can be used, or `into` is something else than an index.
    """
    if not folder.is_dir():
        raise SayseeError(f"{folder} is no folder; give the folder that holds your pictures")
    _refuse_what_is_no_index(into)
    skipped: dict[Path, str] = {}

    def unreadable(error: OSError) -> None:
        skipped[Path(error.filename)] = f"{error.filename}: {error.strerror}"

    paths = list(find_pictures(folder, unreadable))
    names: list[str] = []
    embeddings: list[Tensor] = []
    hiddens: list[Tensor] = []
    waiting: list[Image.Image] = []
    fine = model.multimodal_encoder is not None

    def encode_waiting() -> None:
        encoding = model.encode_image(waiting)
        embeddings.append(encoding.embedding.cpu())
        if fine:
            hiddens.append(encoding.hidden.half().cpu())
        waiting.clear()

    files = read_ahead(paths, load_image, workers=workers, ahead=BATCH)
    hide = None if progress else True
    for path, result in tqdm(files, "pictures", total=len(paths), unit="file", disable=hide, delay=2):
        if isinstance(result, str):
            skipped[path] = result
            continue
        names.append(os.path.relpath(path, folder))
        waiting.append(result)
        if len(waiting) == BATCH:
            encode_waiting()
    if waiting:
        encode_waiting()
    if not names:
        reasons = "".join(f"\n  {reason}" for reason in skipped.values())
        raise SayseeError(f"no picture in {folder} could be indexed{reasons}")

    tensors = {"embedding": torch.cat(embeddings)}
    if fine:
        tensors["hidden"] = torch.cat(hiddens)
    described = {
        "saysee_index": FORMAT_VERSION,
        "folder": str(folder.resolve()),
        "model": str(model_folder.resolve()),
        "model_fingerprint": model.fingerprint,
        "pictures": len(names),
        "skipped": len(skipped),
    }
    _write(into, described, "".join(f"{json.dumps({'path': name})}\n" for name in names), tensors)
    return BuildReport(len(names), skipped)


def read_index(into: Path) -> PictureIndex:
    """Read an index folder and check it against its hashes.

    Raises:
        SayseeError: no index there, a file missing or altered, or another format.
    """
    if not (into / INDEX_FILE).is_file():
        raise SayseeError(f"{into} is no index; make one with `saysee index build DIR --model MODEL --into {into}`")
    try:
        described = json.loads((into / INDEX_FILE).read_text(encoding="utf-8"))
        version = described["saysee_index"]
        if version != FORMAT_VERSION:
            raise SayseeError(
                f"{into} has index format {version}; this saysee reads {FORMAT_VERSION}: upgrade saysee or build again"
            )
        rows = (into / described["rows"]["file"]).read_text(encoding="utf-8")
        tensors = load_file(into / described["vectors"]["file"])
        index = PictureIndex(
            Path(described["folder"]),
            tuple(json.loads(row)["path"] for row in rows.splitlines()),
            tensors["embedding"],
            tensors.get("hidden"),
            Path(described["model"]),
            described["model_fingerprint"],
        )
        recorded = (described["rows"]["sha256"], described["vectors"]["sha256"])
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise SayseeError(f"{into} is damaged ({error}); build it again with `saysee index build`") from None
    if recorded != (_hash_text(rows), hash_tensors(tensors)):
        raise SayseeError(f"{into} is damaged (its content does not fit its hashes); build it again")
    return index


def _refuse_what_is_no_index(into: Path) -> None:
    if not into.exists() or (into.is_dir() and not any(into.iterdir())):
        return
    try:
        is_index = "saysee_index" in json.loads((into / INDEX_FILE).read_bytes())
    except (OSError, ValueError, TypeError):
        is_index = False
    if not is_index:
        raise SayseeError(f"{into} exists and is no index; give a folder that does not exist yet")


def _write(into: Path, described: dict[str, Any], rows: str, tensors: dict[str, Tensor]) -> None:
    """Write both files under names of their own, switch to them, and only then remove what was there before."""
    if not (into / INDEX_FILE).exists():
        # marks the folder as ours before anything else is in it, so that a first building that was stopped goes on
        write_text(into / INDEX_FILE, json.dumps({"saysee_index": FORMAT_VERSION, "rows": None}) + "\n")
    rows_hash, vectors_hash = _hash_text(rows), hash_tensors(tensors)
    rows_file, vectors_file = f"pictures-{rows_hash[:16]}.jsonl", f"vectors-{vectors_hash[:16]}.safetensors"
    write_text(into / rows_file, rows)
    with atomic_path(into / vectors_file) as temporary:
        save_file(tensors, temporary)
    described["rows"] = {"file": rows_file, "sha256": rows_hash}
    described["vectors"] = {"file": vectors_file, "sha256": vectors_hash}
    write_text(into / INDEX_FILE, json.dumps(described, indent=2) + "\n")
    for old in (*into.glob("pictures-*.jsonl"), *into.glob("vectors-*.safetensors")):
        if old.name not in (rows_file, vectors_file):
            old.unlink()


def _hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
