"""A collection of items in a Milvus server: connect, make, refuse another's, and ask without a word from outside.

Every expression that is sent is made here or in `milvus`, of field names, numbers, ids of 32 hexadecimal digits and
paths in the letters of `stored_path`. Nothing that a user typed, and no file name, is ever part of one.
"""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self
from urllib.parse import quote_from_bytes, unquote_to_bytes, urlsplit

from saysee.errors import SayseeError

TOKEN_VARIABLE = "MILVUS_TOKEN"  # noqa: S105
"""The environment variable with the cluster's token or `user:password`. It is never stored."""

LONG_SECONDS = 3_600.0
"""How long loading, flushing and indexing a large collection may take."""

Row = dict[str, Any]
"""Fields of an item, by name."""

_FORMAT = "1"
_SECONDS = 30.0  # for every other answer
_PAGE = 4_000  # items read at a time: some 10 MB with their embeddings, of the 64 MB that an answer may have
_IDS = 1_000  # named in one expression
_SMALL = 1_024  # rows below which Milvus gives a segment no index (its default)


class Collection:
    """A collection that is this index's, loaded and ready.

    Attributes:
        name: what messages call it: the collection and the server.
        dim: E of its embeddings.
        any_pattern: whether the server knows patterns other than a beginning; servers before 2.4 do not.
    """

    def __init__(self, uri: str, collection: str) -> None:
        """Connect to the server.

        Raises:
            SayseeError: pymilvus is not installed, the uri or the collection's name is none, or the server does not
                answer or refuses the token.
        """
        try:
            from pymilvus import MilvusClient
        except ImportError:
            raise SayseeError("an index in Milvus needs pymilvus; run pip install 'saysee[milvus]'") from None
        if "@" in uri:  # not repeated: it holds a password
            raise SayseeError(f"the uri of a Milvus server is stored; put its user:password into {TOKEN_VARIABLE}")
        parts = urlsplit(uri)
        if parts.scheme not in {"http", "https"} or not parts.hostname or uri.endswith(".db"):
            raise SayseeError(f"{uri!r} is no uri of a Milvus server; give one like http://HOST:19530")
        if not re.fullmatch(r"[A-Za-z_]\w{0,254}", collection, re.ASCII):
            raise SayseeError(
                f"{collection!r} is no name of a collection; give up to 255 letters, digits and underscores, the "
                "first no digit"
            )
        self.name = f"collection {collection} at {uri}"
        self.dim, self.any_pattern = 0, True
        self._uri = uri
        self._collection = collection
        token = os.environ.get(TOKEN_VARIABLE, "")
        with _answering(uri):
            # else an https: one might share the connection of an http: one
            self._client = MilvusClient(uri, token=token, timeout=_SECONDS, dedicated=True)

    @classmethod
    def open(cls, uri: str, collection: str, fingerprint: str, *, make_with: int | None = None) -> Self:
        """Connect to a collection, refuse one that is not this index's, and have it ready to be searched.

        Args:
            uri: of the server.
            collection: its name.
            fingerprint: of the model.
            make_with: E, if a collection that is missing is to be made.

        Raises:
            SayseeError: see `MilvusStore.open`.
        """
        self = cls(uri, collection)
        if not self.ask("has_collection"):
            if make_with is None:
                raise SayseeError(f"there is no {self.name}; build the index, or give its name")
            self._make(make_with, fingerprint)
        self._accept(make_with, fingerprint)
        if not self.ask("list_indexes"):
            index = self._client.prepare_index_params()
            index.add_index("embedding", index_type="HNSW", metric_type="IP", params={"M": 16, "efConstruction": 200})
            self.ask("create_index", index_params=index, long=True)
        self.ask("load_collection", long=True)
        self.catch_up()
        try:
            self.query('path like "%~%~%"', limit=1)
        except SayseeError as error:
            if "unsupported pattern" not in str(error):
                raise
            self.any_pattern = False
        return self

    def _make(self, dim: int, fingerprint: str) -> None:
        from pymilvus import DataType

        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=32)
        schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=dim)
        schema.add_field("path", DataType.VARCHAR, max_length=65_535, mmap_enabled=True)
        schema.add_field("size", DataType.INT64, mmap_enabled=True)
        schema.add_field("modified", DataType.INT64, mmap_enabled=True)
        schema.add_field("taken", DataType.INT64)
        schema.add_field("content", DataType.VARCHAR, max_length=64, mmap_enabled=True)
        properties = {"saysee.format": _FORMAT, "saysee.model": fingerprint}
        self.ask("create_collection", schema=schema, consistency_level="Session", properties=properties)

    def _accept(self, dim: int | None, fingerprint: str) -> None:
        described = self.ask("describe_collection")
        properties = described.get("properties", {})
        if properties.get("saysee.format") != _FORMAT:
            raise SayseeError(
                f"{self.name} has the format {properties.get('saysee.format')}, not {_FORMAT} of this version of "
                "saysee; give another name"
            )
        if properties.get("saysee.model") != fingerprint:
            raise SayseeError(
                f"{self.name} was made with the model {properties.get('saysee.model')}, not with {fingerprint}; give "
                "that model, or build under another name"
            )
        (self.dim,) = (int(field["params"]["dim"]) for field in described["fields"] if field["name"] == "embedding")
        if dim not in {None, self.dim}:
            raise SayseeError(f"{self.name} has embeddings of {self.dim} numbers, not {dim}; give another name")

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    # ---- asking

    def ask(self, method: str, *, long: bool = False, **arguments: Any) -> Any:
        """Call a method of pymilvus's client for this collection; `long` says that it may take an hour.

        Raises:
            SayseeError: the server does not answer, or with an error.
        """
        timeout = LONG_SECONDS if long else _SECONDS
        with _answering(self._uri):
            return getattr(self._client, method)(self._collection, timeout=timeout, **arguments)

    def query(self, expression: str, fields: Sequence[str] = (), **arguments: Any) -> list[Row]:
        """Return id and fields of the items that pass, with all that this process has written."""
        arguments = {"consistency_level": "Session", **arguments}
        return list(self.ask("query", filter=expression, output_fields=["id", *fields], **arguments))

    def count(self, expression: str = "", *, consistency: str = "Session") -> int:
        """Return how many items pass."""
        answer = self.ask("query", filter=expression, output_fields=["count(*)"], consistency_level=consistency)
        return int(answer[0]["count(*)"])

    def catch_up(self) -> None:
        """Wait until the server has applied what anybody wrote before now."""
        self.count(consistency="Strong")

    def rows_of(self, ids: Sequence[str], fields: Sequence[str]) -> dict[str, Row]:
        """Return the fields of those of the items that are there, by id."""
        return {row["id"]: row for part in _ids_in(ids) for row in self.query(part, fields)}

    def pages(self, fields: Sequence[str], expression: str = "", *, most: int | None = None) -> Iterator[list[Row]]:
        """Yield id and fields of all items that pass, about `most` at a time, from the smallest ids to the largest.

        Ids are hashes: equal ranges of them have about as many items each. pymilvus's own iterator would take the
        clock of this machine for the server's where the server does not say (2.3), and miss what is written.
        """
        parts = -(-self.count() // (most or _PAGE)) or 1
        bounds = [f'"{(part << 128) // parts:032x}"' for part in range(1, parts)]
        for low, high in zip(['""', *bounds], [*bounds, None], strict=True):
            conditions = [f"id >= {low}", f"id < {high}" if high else "", expression]
            yield self.query(" and ".join(filter(None, conditions)), fields)

    def is_indexed(self) -> bool:
        """Whether all that is sealed has an index."""
        return not int(self.ask("describe_index", index_name="embedding")["pending_index_rows"])

    def searches_its_index(self) -> bool:
        """Whether the query nodes have the index of every segment that is sealed and not small."""
        try:
            loaded = self.ask("list_loaded_segments")
        except SayseeError as error:
            if "UNIMPLEMENTED" in str(error):  # Milvus Lite
                return True
            raise
        indexed = {segment.segment_id for segment in loaded if segment.index_name}
        sealed = self.ask("list_persistent_segments")
        return all(segment.segment_id in indexed for segment in sealed if segment.num_rows >= _SMALL)

    def delete(self, ids: Sequence[str]) -> None:
        """Delete those of the items that are there."""
        for part in _ids_in(ids):
            self.ask("delete", filter=part)


def stored_path(path: str) -> str:
    """Return a path in letters, digits and `/.-~` alone, with ~XX for everything else.

    No sign is left that Milvus gives a meaning in a text or in a pattern: `_` and `%` could be escaped, but servers
    differ in how. This is `quote_path` with fewer plain signs and another one before the digits.
    """
    quoted = quote_from_bytes(os.fsencode(path), safe="/")
    return quoted.replace("_", "%5F").replace("~", "%7E").replace("%", "~")


def path_of(stored: str) -> str:
    """Return the path that `stored_path` was given."""
    return os.fsdecode(unquote_to_bytes(stored.replace("~", "%")))


def _ids_in(ids: Sequence[str]) -> Iterator[str]:
    """Yield expressions for some of the ids each; what is no id is not there, and nobody is asked about it."""
    valid = [item_id for item_id in dict.fromkeys(ids) if re.fullmatch("[0-9a-f]{32}", item_id)]
    for first in range(0, len(valid), _IDS):
        listed = ", ".join(f'"{item_id}"' for item_id in valid[first : first + _IDS])
        yield f"id in [{listed}]"


def _no_record(_: logging.LogRecord) -> bool:
    return False


@contextmanager
def _answering(uri: str) -> Iterator[None]:
    """Turn what pymilvus raises in the block into one line; pymilvus would print it besides, with a traceback."""
    import grpc
    from pymilvus import MilvusException

    printing = logging.getLogger("pymilvus.decorators")
    printing.addFilter(_no_record)
    try:
        yield
    except (MilvusException, grpc.RpcError) as error:
        said = " ".join(str(getattr(error, "message", error)).split())
        raise SayseeError(
            f"the Milvus server {uri} answers: {said[:300]}; see that it runs and that {TOKEN_VARIABLE} is right"
        ) from None
    finally:
        printing.removeFilter(_no_record)
