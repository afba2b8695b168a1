"""An index of somebody's pictures: embeddings, projected tokens, and which file each row is.

A folder with `index.json` (format, model, counts), `pictures.jsonl` (one line a picture, in the order of the rows) and
`vectors.safetensors`: `embedding` (N, E) float32 and, with a fine stage, `hidden` (N, P, H) float16. It is built under
a temporary name and renamed, so an index is whole or not there.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from saysee.errors import SayseeError
from saysee.features.extract import read_ahead
from saysee.features.image import load_image
from saysee.files import sha256_of
from saysee.models.retrieval_model import SpeechImageModel

FORMAT_VERSION = 1
PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
BATCH = 16


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
    """What `build_index` did: how many pictures are in, and each skipped file with the reason."""

    indexed: int
    skipped: dict[Path, str]


def find_pictures(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder whose suffix is a picture's, hidden ones left out, in the order of their names."""
    for root, folders, files in os.walk(folder):
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
    if into.exists() and not (into / "index.json").is_file():
        raise SayseeError(f"{into} exists and is no index; give a folder that does not exist yet")
    paths = list(find_pictures(folder))
    skipped: dict[Path, str] = {}
    names: list[str] = []
    hashes: list[str] = []
    embeddings: list[Tensor] = []
    hiddens: list[Tensor] = []
    fine = model.multimodal_encoder is not None

    def read(path: Path) -> tuple[str, Image.Image]:
        return sha256_of(path), load_image(path)

    waiting: list[Image.Image] = []

    def encode_waiting() -> None:
        encoding = model.encode_image(waiting)
        embeddings.append(encoding.embedding)
        if fine:
            hiddens.append(encoding.hidden.half())
        waiting.clear()

    for path, result in tqdm(
        read_ahead(paths, read, workers=workers, ahead=BATCH),
        total=len(paths),
        desc="pictures",
        unit="file",
        disable=None if progress else True,
        delay=2,
    ):
        if isinstance(result, str):
            skipped[path] = result
            continue
        names.append(os.path.relpath(path, folder))
        hashes.append(result[0])
        waiting.append(result[1])
        if len(waiting) == BATCH:
            encode_waiting()
    if waiting:
        encode_waiting()
    if not names:
        reasons = "".join(f"\n  {reason}" for reason in skipped.values())
        raise SayseeError(f"no picture in {folder} could be indexed{reasons}")

    tensors = {"embedding": torch.cat(embeddings).cpu()}
    if fine:
        tensors["hidden"] = torch.cat(hiddens).cpu()
    described = {
        "format_version": FORMAT_VERSION,
        "folder": str(folder.resolve()),
        "model": str(model_folder.resolve()),
        "model_fingerprint": model.fingerprint,
        "pictures": len(names),
        "skipped": len(skipped),
    }
    rows = [json.dumps({"path": name, "sha256": digest}) for name, digest in zip(names, hashes, strict=True)]
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into.parent, prefix=f".{into.name}.") as temporary:
        fresh = Path(temporary) / "index"
        fresh.mkdir()
        save_file(tensors, fresh / "vectors.safetensors")
        (fresh / "pictures.jsonl").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        (fresh / "index.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        if into.exists():
            into.replace(Path(temporary) / "replaced")
        fresh.replace(into)
    return BuildReport(len(names), skipped)


def read_index(into: Path) -> PictureIndex:
    """Read an index folder.

    Raises:
        SayseeError: no index there, a file missing or damaged, or another format.
    """
    if not (into / "index.json").is_file():
        raise SayseeError(f"{into} is no index; make one with `saysee index build DIR --model MODEL --into {into}`")
    try:
        described = json.loads((into / "index.json").read_text(encoding="utf-8"))
        version = described["format_version"]
        if version != FORMAT_VERSION:
            raise SayseeError(
                f"{into} has index format {version}; this saysee reads {FORMAT_VERSION}: upgrade saysee or build again"
            )
        rows = (into / "pictures.jsonl").read_text(encoding="utf-8").splitlines()
        paths = tuple(json.loads(row)["path"] for row in rows)
        tensors = load_file(into / "vectors.safetensors")
        index = PictureIndex(
            Path(described["folder"]),
            paths,
            tensors["embedding"],
            tensors.get("hidden"),
            Path(described["model"]),
            described["model_fingerprint"],
        )
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise SayseeError(f"{into} is damaged ({error}); build it again with `saysee index build`") from None
    if len(index.paths) != len(index.embedding):
        raise SayseeError(f"{into} is damaged (rows and vectors differ in number); build it again")
    return index
