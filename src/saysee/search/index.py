"""An index of somebody's pictures (or recordings): which folder, which model, and the store with what the model made.

A folder with `index.json`, which says what the index is of, and the files of the embedded store; or `index.json` alone,
where the store is a Milvus collection. It is made and brought up to date by `building`.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self, get_args

from torch import Tensor

from saysee.errors import SayseeError
from saysee.features.image import load_image
from saysee.files import sole_process
from saysee.models.retrieval_model import SpeechImageModel
from saysee.search.encoding import THUMBNAIL_SIDE, make_again
from saysee.search.sheet import make_thumbnail
from saysee.search.stores.base import Item, Kind, Store

FORMAT_VERSION = 2
INDEX_FILE = "index.json"
LOCK_FILE = "lock"


@dataclass(frozen=True)
class Description:
    """What an index is of; `index.json` holds it.

    Attributes:
        folder: where the files are.
        kind: what they are.
        model: the model folder it was built with, or the name of a model in the package.
        model_fingerprint: that model's fingerprint.
        dim: E, the length of an embedding.
        fine: whether the fine stage has tokens to work on: stored ones, or made again from the files.
        milvus: address of a Milvus server; None for the embedded store.
        collection: the collection there.
    """

    folder: Path
    kind: Kind
    model: Path
    model_fingerprint: str
    dim: int
    fine: bool
    milvus: str | None = None
    collection: str | None = None

    def to_json(self) -> str:
        """Return the content of `index.json`."""
        values = {"saysee_index": FORMAT_VERSION, **asdict(self)}
        return json.dumps({**values, "folder": str(self.folder), "model": str(self.model)}, indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read `index.json` of an index folder.

        Raises:
            SayseeError: no index there, another format, or a damaged file.
        """
        if not (path / INDEX_FILE).is_file():
            raise SayseeError(f"{path} is no index; make one with `saysee index build DIR --model MODEL --into {path}`")
        try:
            values = json.loads((path / INDEX_FILE).read_bytes())
            version = values.pop("saysee_index")
            if version != FORMAT_VERSION:
                raise SayseeError(
                    f"{path} has index format {version}; this saysee reads {FORMAT_VERSION}: upgrade saysee, or remove "
                    f"{path} and build the index again"
                )
            description = cls(**{**values, "folder": Path(values["folder"]), "model": Path(values["model"])})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SayseeError(f"{path / INDEX_FILE} is damaged ({error}); remove {path} and build again") from None
        if description.kind not in get_args(Kind):
            raise SayseeError(f"{path / INDEX_FILE} is damaged (kind is {description.kind!r}); build again")
        return description


class Index:
    """An open index.

    Attributes:
        path: the index folder.
        description: what it is of.
        store: where its items are.
    """

    def __init__(self, path: Path, description: Description, store: Store) -> None:
        self.path = path
        self.description = description
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def file(self, item: Item) -> Path:
        """Return where an item's file is, or was when the index was updated last."""
        return self.description.folder / item.path

    def thumbnail(self, item_id: str) -> bytes | None:
        """Return a JPEG of a picture, without EXIF; None for an id that is not there or a file that is gone."""
        if (stored := self.store.thumbnail(item_id)) is not None:
            return stored
        (item,) = self.store.get([item_id])
        if item is None or self.description.kind != "picture":
            return None
        try:
            return make_thumbnail(load_image(self.file(item)), THUMBNAIL_SIDE)
        except SayseeError:
            return None

    def hidden(self, items: Sequence[Item], model: SpeechImageModel) -> list[Tensor | None]:
        """Return the tokens (P, H) of items, stored ones or made again from the files; None where a file is gone.

        Raises:
            KeyError: an item is not there any more.
        """
        stored = self.store.hidden([item.id for item in items])
        if stored is not None:
            return list(stored)

        def prepare(path: Path) -> Tensor:
            return model.image_backbone.prepare(load_image(path))

        return make_again(model, [self.file(item) for item in items], prepare)

    def require_model(self, model: SpeechImageModel, name: str) -> None:
        """Refuse another model than the one that the index was built with.

        Raises:
            SayseeError: it is another; both are named.
        """
        if model.fingerprint != self.description.model_fingerprint:
            raise SayseeError(
                f"the index was built with {self.description.model} (fingerprint "
                f"{self.description.model_fingerprint[:12]}), and {name} has fingerprint {model.fingerprint[:12]}; "
                "give the index its own model, or build it again with this one"
            )

    @contextmanager
    def writing(self, tell: Callable[[str], None]) -> Iterator[None]:
        """Be the only process that writes to the index; waits for another one, and says so."""
        with writing_to(self.path, tell):
            self.store.refresh()
            yield

    def close(self) -> None:
        """Let go of the store."""
        self.store.close()


@contextmanager
def writing_to(path: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of an index folder; waits for another process that holds it, and says so first."""
    lock = path / LOCK_FILE
    try:
        with sole_process(lock, "writing to the index"):
            pass
    except SayseeError:
        tell(f"another process is writing to {path}; waiting for it to end")
    with sole_process(lock, "writing to the index", wait=True):
        yield


def open_index(path: Path) -> Index:
    """Open an index to search it.

    Raises:
        SayseeError: no index there, a damaged one, or a Milvus server that does not answer.
    """
    description = Description.read(path)
    return Index(path, description, _open_store(path, description))


def create_store(path: Path, description: Description) -> Store:
    """Make the empty store of an index, or open the one whose making was interrupted."""
    if description.milvus is None:
        from saysee.search.stores.embedded import EmbeddedStore

        return EmbeddedStore.create(path, description.dim, description.fine)
    from saysee.search.stores.milvus import MilvusStore

    return MilvusStore.create(
        description.milvus, str(description.collection), description.dim, description.model_fingerprint
    )


def _open_store(path: Path, description: Description) -> Store:
    if description.milvus is None:
        from saysee.search.stores.embedded import EmbeddedStore

        return EmbeddedStore.open(path)
    from saysee.search.stores.milvus import MilvusStore

    return MilvusStore.open(description.milvus, str(description.collection), description.model_fingerprint)
