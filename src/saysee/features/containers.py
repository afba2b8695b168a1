"""What a recording's bytes say before anything is decoded: its container format, and whether its end is missing.

Only structure is read, a few bytes here and there; nothing is trusted to be what it claims.
"""

import os
import re
import struct
from typing import BinaryIO

from saysee.features.sources import size_of

_SIGNATURES = (
    ("wav", re.compile(rb"RIFF....WAVE", re.DOTALL)),
    ("flac", re.compile(rb"fLaC")),
    ("ogg", re.compile(rb"OggS\0")),
    ("mp4", re.compile(rb"....ftyp", re.DOTALL)),  # m4a, mp4, mov, 3gp
    ("webm", re.compile(rb"\x1aE\xdf\xa3")),  # and Matroska
    ("aac", re.compile(rb"\xff[\xf0\xf1\xf8\xf9]")),  # ADTS: the layer bits are 00
    ("mp3", re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")),  # MPEG 2.5, 2 or 1, layer III
)

FORMATS = tuple(kind for kind, _ in _SIGNATURES)

# Writers that cannot go back to the header leave 0, 0xFFFFFFFF or something just below 2 GiB.
_WAV_PLACEHOLDERS_FROM = 0x7FFF_0000
# Ours: imprecise headers occur in Flickr8k Audio, and a tenth of a caption is not what it is about.
_WAV_TOLERANCE = 0.1
# So that a file of a hundred million empty chunks is not walked to its end (ours; ten minutes in 20 ms fragments fit).
_MAX_CHUNKS = 100_000
_OGG_HEADER, _OGG_MAX_PAGE = 27, 27 + 255 + 255 * 255  # RFC 3533, section 6


def find_format(file: BinaryIO) -> str | None:
    """Return one of `FORMATS` by the first bytes of an open file, or None. The name of the file plays no part."""
    file.seek(0)
    head = file.read(12)
    # An ID3 tag may stand before mp3, AAC and FLAC; bits 7 of its length are unused.
    if head.startswith(b"ID3") and len(head) >= 10:
        file.seek(10 + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True)))
        head = file.read(12)
        return next((kind for kind in ("aac", "flac") if _matches(kind, head)), "mp3")
    return next((kind for kind in FORMATS if _matches(kind, head)), None)


def find_missing_end(file: BinaryIO, kind: str) -> str | None:
    """Say what shows that the end of the file is missing, or return None.

    WAV: the data chunk promises over 10 % more than there is (placeholders for an unknown length aside). Ogg: the last
    page is incomplete. MP4: an atom runs past the end. WebM: the segment does, where its length is given (a browser
    gives none). FLAC shows it when it is decoded. In mp3 and AAC, and in any format cut exactly between two of its
    parts, it cannot be seen.

    Args:
        file: the open recording.
        kind: what `find_format` returned.
    """
    size = size_of(file)
    if kind == "wav":
        return _missing_wav(file, size)
    if kind == "ogg":
        return _missing_ogg(file, size)
    if kind == "mp4":
        return _missing_mp4(file, size)
    if kind == "webm":
        return _missing_webm(file, size)
    return None


def _matches(kind: str, head: bytes) -> bool:
    return dict(_SIGNATURES)[kind].match(head) is not None


def _missing_wav(file: BinaryIO, size: int) -> str | None:
    position = 12
    for _ in range(_MAX_CHUNKS):
        file.seek(position)
        header = file.read(8)
        if len(header) < 8:
            return None
        promised = int.from_bytes(header[4:], "little")
        if header[:4] == b"data":
            held = size - position - 8
            if promised >= _WAV_PLACEHOLDERS_FROM or held >= promised * (1 - _WAV_TOLERANCE):
                return None
            return f"its header promises {promised:,} bytes of samples and {held:,} are there"
        position += 8 + promised + promised % 2
    return None


def _missing_ogg(file: BinaryIO, size: int) -> str | None:
    # A whole last page begins within its largest size from the end. Its length stands in its table of segments.
    file.seek(max(0, size - _OGG_MAX_PAGE))
    tail = file.read()
    start = tail.rfind(b"OggS\0")
    if start < 0:
        return None
    page = tail[start:]
    if len(page) >= _OGG_HEADER and len(table := page[_OGG_HEADER : _OGG_HEADER + page[26]]) == page[26]:
        rest = page[_OGG_HEADER + len(table) :]
        after = rest[sum(table) :]
        if len(rest) >= sum(table) and not (after and b"OggS\0".startswith(after)):
            return None
    return "its last Ogg page is incomplete"


def _missing_mp4(file: BinaryIO, size: int) -> str | None:
    position = 0
    for _ in range(_MAX_CHUNKS):
        file.seek(position)
        header = file.read(16)
        if len(header) < 8:
            return None
        length, name = struct.unpack(">I4s", header[:8])
        if length == 1 and len(header) == 16:  # the length did not fit into four bytes
            length = int.from_bytes(header[8:], "big")
        if length < 8:  # 0 is "to the end of the file", the rest is no length
            return None
        position += length
        if position > size:
            return f"its part '{name.decode('ascii', 'replace')}' ends {position - size:,} bytes after the file"
    return None


def _missing_webm(file: BinaryIO, size: int) -> str | None:
    # EBML (RFC 8794): an element is its id, its length, its content. Here: the head, then the segment with everything.
    file.seek(4)
    head_length = _ebml_length(file)
    if head_length is None:
        return None
    file.seek(head_length, os.SEEK_CUR)
    if file.read(4) != b"\x18S\x80g":
        return None
    length = _ebml_length(file)
    missing = 0 if length is None else file.tell() + length - size
    return f"its segment ends {missing:,} bytes after the file" if missing > 0 else None


def _ebml_length(file: BinaryIO) -> int | None:
    """Read a length: as many bytes as its first bit set says, all ones for "unknown" (None, like an invalid one)."""
    first = file.read(1)
    if not first or first == b"\0":
        return None
    extra = 8 - first[0].bit_length()
    bits = 7 * (extra + 1)
    value = int.from_bytes(first + file.read(extra), "big") & ((1 << bits) - 1)
    return None if value == (1 << bits) - 1 else value
