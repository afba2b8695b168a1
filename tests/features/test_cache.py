"""The cache of features: named by content and backbone, whole or not there, never stale."""

import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from saysee.features.cache import FeatureCache, default_cache_folder

CONTENT, OTHER_CONTENT = "0a" * 32, "0b" * 32
BACKBONE, OTHER_BACKBONE = "1a" * 32, "1b" * 32


def features(value: float = 0.5) -> torch.Tensor:
    return torch.full((3, 4, 5), value, dtype=torch.float16)


def test_an_entry_comes_back_as_it_was(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, BACKBONE)
    kept = torch.randn(7, 11, 13).half().transpose(0, 2)  # not contiguous, as a slice of a batch may be
    assert CONTENT not in cache
    cache.put(CONTENT, kept)
    assert CONTENT in cache
    received = FeatureCache(tmp_path, BACKBONE).get(CONTENT)
    assert received.dtype == torch.float16
    assert torch.equal(received, kept)


@pytest.mark.parametrize(("backbone", "content"), [(OTHER_BACKBONE, CONTENT), (BACKBONE, OTHER_CONTENT)])
def test_another_file_or_another_backbone_has_another_entry(tmp_path: Path, backbone: str, content: str) -> None:
    FeatureCache(tmp_path, BACKBONE).put(CONTENT, features())
    other = FeatureCache(tmp_path, backbone)
    assert content not in other
    with pytest.raises(KeyError, match=content):
        other.get(content)
    other.put(content, features(2.0))
    assert torch.equal(FeatureCache(tmp_path, BACKBONE).get(CONTENT), features())


def test_nothing_is_made_before_the_first_entry(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache", BACKBONE)
    assert CONTENT not in cache
    with pytest.raises(KeyError):
        cache.get(CONTENT)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("kept", [0.0, 0.2, 0.99], ids=["empty", "cut in its header", "cut in its numbers"])
def test_a_damaged_entry_is_none_and_can_be_made_again(tmp_path: Path, kept: float) -> None:
    cache = FeatureCache(tmp_path, BACKBONE)
    cache.put(CONTENT, features())
    path = cache.path(CONTENT)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    assert CONTENT not in cache  # so that it is made again
    with pytest.raises(KeyError, match=CONTENT):
        cache.get(CONTENT)
    assert not path.exists()
    cache.put(CONTENT, features())
    assert path.read_bytes() == whole


def test_a_file_of_another_kind_is_no_entry(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, BACKBONE)
    cache.put(CONTENT, features())
    save_file({"weights": features()}, cache.path(CONTENT))
    with pytest.raises(KeyError, match=CONTENT):
        cache.get(CONTENT)
    assert CONTENT not in cache


def test_writers_and_a_reader_of_one_entry_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Eight threads put the entry while another reads it: what is read is always whole."""
    cache = FeatureCache(tmp_path, BACKBONE)
    cache.put(CONTENT, features())

    def write() -> None:
        for _ in range(20):
            cache.put(CONTENT, features())

    writers = [threading.Thread(target=write) for _ in range(8)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert torch.equal(cache.get(CONTENT), features())
    for writer in writers:
        writer.join()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [cache.path(CONTENT)]


@given(st.sets(st.text("0123456789abcdef", min_size=64, max_size=64), min_size=2, max_size=2))
def test_two_hashes_have_two_places(pair: set[str]) -> None:
    cache = FeatureCache(Path("/cache"), BACKBONE)
    assert len({cache.path(content) for content in pair}) == 2
    assert all(cache.path(content).is_relative_to(cache.folder) for content in pair)


def test_the_default_folder_is_the_first_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("SAYSEE_CACHE", "/given")
    assert default_cache_folder() == Path("/given")
    monkeypatch.delenv("SAYSEE_CACHE")
    assert default_cache_folder() == Path("/xdg/saysee")
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # the same as none, says its specification
    assert default_cache_folder() == Path("/home/anna/.cache/saysee")
