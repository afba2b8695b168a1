import io
import struct

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from media import AUDIO_KINDS, AudioKind, encode_audio, raw_wav, sine
from saysee.features.containers import FORMATS, find_format, find_missing_end

EXPECTED = {"opus": "ogg", "m4a": "mp4"}
NOISE = np.random.default_rng(0).integers(-9000, 9000, 32_000, dtype=np.int16)
ID3_2000_BYTES = b"ID3\x04\0\0" + bytes([0, 0, 2000 >> 7, 2000 & 127]) + b"\xff\xfb" * 1000
OPUS = encode_audio(NOISE, 16_000, "opus")
M4A = encode_audio(NOISE, 16_000, "m4a")
WEBM = encode_audio(NOISE, 48_000, "webm")


def missing(content: bytes, kind: str) -> str | None:
    return find_missing_end(io.BytesIO(content), kind)


@pytest.mark.parametrize("kind", AUDIO_KINDS)
def test_format_is_told_by_content_and_a_whole_file_misses_nothing(kind: AudioKind) -> None:
    content = encode_audio(sine(0.5, 48_000), 48_000, kind)
    found = find_format(io.BytesIO(content))
    assert found == EXPECTED.get(kind, kind)
    assert found in FORMATS
    assert missing(content, found) is None


@pytest.mark.parametrize("kind", ["mp3", "aac", "flac"])
def test_id3_tag_is_stepped_over(kind: AudioKind) -> None:
    content = ID3_2000_BYTES + encode_audio(sine(0.5), 16_000, kind)
    assert find_format(io.BytesIO(content)) == kind


@pytest.mark.parametrize("content", [b"", b"RIFF", b"ID3", b"RIFF\0\0\0\0AVI LIST", b"FORM\0\0\0\0AIFF", b"#!AMR\n"])
def test_other_content_has_no_format(content: bytes) -> None:
    assert find_format(io.BytesIO(content)) is None


@given(
    promised=st.one_of(st.integers(1, 0x7FFE_FFFF), st.sampled_from([0, 0x7FFF_F000, 0x7FFF_FFFF, 0xFFFF_FFFF])),
    held=st.integers(0, 500),
    chunks=st.lists(st.binary(max_size=9), max_size=3),
)
@example(promised=100, held=90, chunks=[])
@example(promised=100, held=89, chunks=[])
def test_wav_may_miss_a_tenth_of_what_it_promises(promised: int, held: int, chunks: list[bytes]) -> None:
    extra = b"".join(b"LIST" + struct.pack("<I", len(chunk)) + chunk + b"\0" * (len(chunk) % 2) for chunk in chunks)
    content = b"RIFF\0\0\0\0WAVE" + extra + b"data" + struct.pack("<I", promised) + bytes(held)
    placeholder = promised == 0 or promised >= 0x7FFF_0000
    assert (missing(content, "wav") is None) == (placeholder or 10 * held >= 9 * promised)


def test_wav_message_gives_both_sizes() -> None:
    assert missing(raw_wav(NOISE, promised=100_000), "wav") == (
        "its header promises 100,000 bytes of samples and 64,000 are there"
    )


def boundaries_of_ogg(content: bytes) -> set[int]:
    """Where pages end, walking from the first (RFC 3533)."""
    ends, position = {0}, 0
    while position < len(content):
        segments = content[position + 26]
        position += 27 + segments + sum(content[position + 27 : position + 27 + segments])
        ends.add(position)
    return ends


def boundaries_of_mp4(content: bytes) -> set[int]:
    ends, position = {0}, 0
    while position < len(content):
        position += int.from_bytes(content[position : position + 4], "big")
        ends.add(position)
    return ends


def test_ogg_cut_anywhere_but_between_pages_is_seen() -> None:
    whole = [length for length in range(5, len(OPUS) + 1) if missing(OPUS[:length], "ogg") is None]
    assert whole == sorted(boundaries_of_ogg(OPUS) - {0})


def test_mp4_cut_anywhere_but_at_the_head_of_an_atom_is_seen() -> None:
    whole = {length for length in range(8, len(M4A) + 1) if missing(M4A[:length], "mp4") is None}
    heads = {end + i for end in boundaries_of_mp4(M4A) for i in range(8)}
    assert whole == heads & set(range(8, len(M4A) + 1))


def test_mp4_lengths_of_64_bits_and_to_the_end() -> None:
    head = struct.pack(">I4s", 16, b"ftyp") + bytes(8)
    assert missing(head + struct.pack(">I4sQ", 1, b"mdat", 20) + bytes(4), "mp4") is None
    assert missing(head + struct.pack(">I4sQ", 1, b"mdat", 20) + bytes(3), "mp4") == (
        "its part 'mdat' ends 1 bytes after the file"
    )
    assert missing(head + struct.pack(">I4s", 0, b"mdat") + bytes(3), "mp4") is None


def test_webm_of_known_length_cut_anywhere_is_seen() -> None:
    head = WEBM.index(b"\x18S\x80g") + 12
    assert [length for length in range(head, len(WEBM) + 1) if missing(WEBM[:length], "webm") is None] == [len(WEBM)]


def test_webm_of_unknown_length_shows_nothing() -> None:
    segment = WEBM.index(b"\x18S\x80g") + 4
    streamed = WEBM[:segment] + b"\x01" + b"\xff" * 7 + WEBM[segment + 8 :]
    assert missing(WEBM[: len(WEBM) // 2], "webm") is not None
    assert missing(streamed[: len(WEBM) // 2], "webm") is None


@pytest.mark.parametrize("kind", FORMATS)
@given(content=st.binary(max_size=80))
def test_any_bytes_get_an_answer(kind: str, content: bytes) -> None:
    assert isinstance(missing(content, kind), str | None)


def test_walk_over_empty_chunks_ends() -> None:
    reads = 0

    class Counting(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            nonlocal reads
            reads += 1
            return super().read(size)

    chunks = b"RIFF\0\0\0\0WAVE" + b"none\0\0\0\0" * 300_000
    assert find_missing_end(Counting(chunks), "wav") is None
    assert reads < 150_000
    assert find_missing_end(Counting(struct.pack(">I4s", 8, b"free") * 300_000), "mp4") is None
    assert reads < 250_000
