"""Building an index and bringing it up to date, which are one and the same.

Look at the folder, encode what is new or changed, batch by batch, let go of what vanished. Every batch that has been
written stays, whenever the process ends, and the same command goes on from there.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import watchfiles
from tqdm import tqdm

from saysee.errors import SayseeError
from saysee.files import write_text
from saysee.models.model_folder import name_of_model
from saysee.models.retrieval_model import SpeechImageModel
from saysee.search.encoding import Encoder
from saysee.search.folder import Changes, FoundFile, compare, list_folder
from saysee.search.index import INDEX_FILE, LOCK_FILE, Description, Index, create_store, open_index, writing_to
from saysee.search.stores.base import EncodedItem, Item, Kind, Store, path_id


@dataclass
class UpdateReport:
    """What building or updating did.

    Attributes:
        total: items that are in the index now.
        encoded: files that the model was asked about.
        unchanged: items that were as they are.
        moved: items that were found under another name, or copied, or only touched: nothing was encoded.
        removed: items whose files are gone.
        skipped: bad files, and folders that cannot be read, each with the reason.
        others: files of other kinds.
    """

    total: int = 0
    encoded: int = 0
    unchanged: int = 0
    moved: int = 0
    removed: int = 0
    skipped: dict[Path, str] = field(default_factory=dict)
    others: list[Path] = field(default_factory=list)


def build_index(
    folder: Path,
    model: SpeechImageModel,
    model_folder: Path,
    into: Path,
    *,
    kind: Kind = "picture",
    coarse_only: bool = False,
    milvus: str | None = None,
    collection: str | None = None,
    progress: bool = False,
    tell: Callable[[str], None] = print,
) -> UpdateReport:
    """Make an index of a folder; one that was begun or built with the same model and folder is brought up to date.

    Args:
        folder: pictures or recordings, in subfolders too.
        model: encodes them.
        model_folder: where `model` came from; the index remembers it.
        into: the index folder.
        kind: what is indexed.
        coarse_only: whether to leave out the tokens of the fine stage.
        milvus: address of a Milvus server that is to hold the items; None keeps them in `into`.
        collection: its name there; by default made of the name of `into`.
        progress: whether to show a bar.
        tell: is given what the user should know meanwhile.

    Raises:
        SayseeError: no such folder, no file in it that can be used, or `into` is something else: no index, or one of
            another folder, model or kind.
    """
    if not folder.is_dir():
        raise SayseeError(f"{folder} is no folder; give the folder that holds your {kind}s")
    named = collection or "saysee_" + "".join(letter if letter.isalnum() else "_" for letter in into.resolve().name)
    wanted = Description(
        folder=folder.resolve(),
        kind=kind,
        model=name_of_model(model_folder),
        model_fingerprint=model.fingerprint,
        dim=model.config.model.embedding_dim,
        # a Milvus collection keeps no tokens, and those of pictures alone are made again
        fine=model.multimodal_encoder is not None and not coarse_only and not (milvus and kind == "recording"),
        milvus=milvus,
        collection=named if milvus else None,
    )
    _refuse_other(into, wanted)
    if not list_folder(folder, kind).files:
        raise SayseeError(f"no {kind} in {folder} could be indexed: no file there has the name of one")
    if not (into / INDEX_FILE).exists():
        create_store(into, wanted).close()
    with writing_to(into, tell):
        if not (into / INDEX_FILE).exists():
            write_text(into / INDEX_FILE, wanted.to_json())
    index = open_index(into)
    try:
        report = update_index(index, model, str(model_folder), progress=progress, tell=tell)
    finally:
        index.close()
    if not report.total:
        reasons = "".join(f"\n  {reason}" for reason in report.skipped.values())
        raise SayseeError(f"no {kind} in {folder} could be indexed{reasons}")
    return report


def update_index(
    index: Index,
    model: SpeechImageModel,
    name: str = "the model given",
    *,
    progress: bool = False,
    tell: Callable[[str], None] = print,
) -> UpdateReport:
    """Bring an index up to date with its folder.

    Files that are new or changed are encoded; one whose content the index has already is recognised by its hash and
    nothing is encoded. Items whose files are gone are removed at the end, except below a folder that cannot be read.

    Args:
        index: open.
        model: the one it was built with.
        name: what an error calls the model.
        progress: whether to show a bar.
        tell: is given what the user should know meanwhile.

    Raises:
        SayseeError: another model, no such folder (any more), or nothing at all left in it.
    """
    index.require_model(model, name)
    folder, kind, store = index.description.folder, index.description.kind, index.store
    if not folder.is_dir():
        raise SayseeError(f"{folder} is not there (any more); bring it back, or remove {index.path}")
    with index.writing(tell):
        listing = list_folder(folder, kind)
        if not listing.files and len(store):
            raise SayseeError(
                f"no {kind} is left in {folder}, and the index has {len(store):,}: is a disk not mounted? If they are "
                f"meant to be gone, remove {index.path}"
            )
        changes = compare(folder, listing, store.items())
        report = UpdateReport(unchanged=len(changes.unchanged), others=listing.others, skipped=listing.unreadable)
        _Update(index, model, changes, report).run(progress)
        store.optimise()
        store.refresh()
        report.total = len(store)
    return report


class _Update:
    """One updating. What is copied or moved is always read from an item that the updating leaves as it is."""

    def __init__(self, index: Index, model: SpeechImageModel, changes: Changes, report: UpdateReport) -> None:
        description = index.description
        self.folder = description.folder
        self.store: Store = index.store
        self.encoder = Encoder(model, description.kind, keep_hidden=description.fine and index.store.keeps_hidden)
        self.kind = description.kind
        self.report = report
        self.files = [*changes.new, *(file for file, _ in changes.changed)]
        self.before = {file.path: item for file, item in changes.changed}
        self.vanished = {item.id: item for item in changes.vanished}
        # by content
        self.lost = {item.content: item for item in changes.vanished}
        self.kept = {item.content: item for item in changes.unchanged} if self.files else {}

    def run(self, progress: bool) -> None:
        """Take in all files, then remove what vanished."""
        known = {*self.lost, *self.kept, *(item.content for item in self.before.values())}
        bar = tqdm(
            total=len(self.files), desc=f"{self.kind}s", unit="file", disable=None if progress else True, delay=2
        )
        with bar:
            again = self._take_in(self.files, known, bar)
            self._take_in(again, set(), bar)
        self.store.write(remove=list(self.vanished))
        self.report.removed += len(self.vanished)

    def _take_in(self, files: Sequence[FoundFile], known: set[str], bar: "tqdm[None]") -> list[FoundFile]:
        """Write what the files hold; returns those whose content was known and is not to be had any more."""
        again = []
        by_path = {file.path: file for file in files}
        for encoded, same, bad in self.encoder.encode(self.folder, files, known):
            moves, copies = [], []
            for item in same:
                before = self.before.get(item.path)
                if before is not None and before.content == item.content:  # only touched
                    moves.append((item.id, item))
                elif (source := self.lost.pop(item.content, None)) is not None:
                    moves.append((source.id, item))
                    del self.vanished[source.id]
                    self.kept[item.content] = item
                elif (source := self.kept.get(item.content)) is not None:
                    copies.append((source.id, item))
                else:
                    again.append(by_path[item.path])
            if moves:
                self.store.write(move=moves)
            # what cannot be read any more is not what the index has of it
            spoilt = [path_id(path) for path in bad if path in self.before]
            self.store.write(add=[*encoded, *self._copied(copies)], remove=spoilt)
            self.report.encoded += len(encoded)
            self.report.moved += len(moves) + len(copies)
            self.report.removed += len(spoilt)
            self.report.skipped |= {self.folder / path: reason for path, reason in bad.items()}
            bar.update(len(encoded) + len(moves) + len(copies) + len(bad))
        return again

    def _copied(self, copies: Sequence[tuple[str, Item]]) -> list[EncodedItem]:
        """Give new items what the model made of others with the same content."""
        if not copies:
            return []
        sources = [source for source, _ in copies]
        stored = self.store.hidden(sources) if self.encoder.keep_hidden else None
        hidden = [None] * len(copies) if stored is None else [tokens.numpy() for tokens in stored]
        return [
            EncodedItem(item, embedding, tokens, self.store.thumbnail(source) or b"")
            for (source, item), embedding, tokens in zip(copies, self.store.embeddings(sources), hidden, strict=True)
        ]


def _refuse_other(into: Path, wanted: Description) -> None:
    """Refuse a folder that is no index, or an index of something else."""
    if not into.exists():
        return
    if not (into / INDEX_FILE).exists():
        # more than what a building that was stopped at its very beginning leaves
        if not into.is_dir() or any(
            path.name != LOCK_FILE and not path.name.startswith("records.sqlite") for path in into.iterdir()
        ):
            raise SayseeError(f"{into} exists and is no index; give a folder that does not exist yet")
        return
    found = Description.read(into)
    if found.model_fingerprint != wanted.model_fingerprint:
        raise SayseeError(
            f"{into} was built with {found.model} (fingerprint {found.model_fingerprint[:12]}), and {wanted.model} has "
            f"fingerprint {wanted.model_fingerprint[:12]}; give --model {found.model}, another --into, or remove {into}"
        )
    for name in ("folder", "kind", "fine", "milvus", "collection"):
        old, new = getattr(found, name), getattr(wanted, name)
        if old != new:
            raise SayseeError(f"{into} is an index whose {name} is {old}, not {new}; give another --into, or remove it")


def watch_index(
    index: Index, model: SpeechImageModel, name: str = "the model given", *, tell: Callable[[str], None] = print
) -> Iterator[UpdateReport]:
    """Bring an index up to date, and again whenever something in its folder changes; ends with Ctrl-C.

    Changes are waited for until none has come for a second, so that files which are just being copied are whole. Once a
    minute it looks all the same: some network drives tell nothing.

    Args:
        index: open.
        model: the one it was built with.
        name: what an error calls the model.
        tell: is given what the user should know meanwhile.

    Yields:
        What each updating did, those that found nothing to do left out after the first.

    Raises:
        SayseeError: as `update_index`, at the first updating; later ones are told and waited out.
    """
    yield update_index(index, model, name, tell=tell)
    changes = watchfiles.watch(
        index.description.folder,
        watch_filter=None,
        debounce=60_000,
        step=1_000,
        rust_timeout=60_000,
        yield_on_timeout=True,
    )
    for _ in changes:
        try:
            report = update_index(index, model, name, tell=tell)
        except SayseeError as error:
            tell(str(error))
            continue
        if report.encoded or report.moved or report.removed:
            yield report


@dataclass(frozen=True)
class CheckReport:
    """How sound an index is.

    Attributes:
        total: items in it, damaged ones too.
        damaged: the files of items that are not as they were written.
        recall: share of the exact 100 nearest that the search finds; None where it is exact.
    """

    total: int
    damaged: tuple[Path, ...]
    recall: float | None


def check_index(index: Index, *, repair: bool = False, tell: Callable[[str], None] = print) -> CheckReport:
    """Read an index back, item by item.

    Args:
        index: open.
        repair: whether to take damaged items out, so that the next updating encodes them again.
        tell: is given what the user should know meanwhile.

    Raises:
        SayseeError: its records are damaged.
    """
    with index.writing(tell):
        total = sum(1 for _ in index.store.items())
        ids = index.store.check()
        damaged = tuple(index.file(item) for item in index.store.get(ids) if item is not None)
        recall = index.store.recall(100, 100)
        if repair:
            index.store.write(remove=ids)
    return CheckReport(total, damaged, recall)
