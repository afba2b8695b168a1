"""Extraction on a real Ray cluster of two nodes, both on this machine: the same features as without it."""

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from media import write_image, write_wav
from saysee.data.extraction import extract_features, picture_encoder, recording_encoder
from saysee.data.manifest import ManifestError, SpokenCaption
from saysee.errors import SayseeError
from saysee.features import extract as extraction
from saysee.features.extract import FileEncoder, StoredFeatures
from saysee.features.hashes import FileHashes
from saysee.features.ray_cluster import on_ray
from stubs import StubImageBackbone, StubSpeechBackbone


@dataclass(frozen=True)
class RayCluster:
    address: str


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """Two nodes of two CPUs and, as far as Ray knows, two GPUs each; nothing is written but below a folder in /tmp."""
    pytest.importorskip("ray")
    folder = tempfile.mkdtemp(prefix="ray")  # short, as the paths of sockets must be
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_TMPDIR", folder)
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("RAY_enable_metrics_collection", "0")
        environment.setenv("RAY_worker_niceness", "0")  # at Ray's 15 the actors starve beside other tests
        environment.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        environment.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # actors import this module and its neighbours
        import ray
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 2, "num_gpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": False}
        nodes = Cluster(initialize_head=True, head_node_args=node)
        try:
            nodes.add_node(**node)
            yield RayCluster(nodes.address)
        finally:
            ray.shutdown()
            nodes.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def recordings() -> FileEncoder:
    return recording_encoder(StubSpeechBackbone())


def pictures() -> FileEncoder:
    return picture_encoder(StubImageBackbone())


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> list[SpokenCaption]:
    """Twelve captions of six pictures; one recording's name is not UTF-8, some SHA-256 end in a zero byte."""
    folder = tmp_path_factory.mktemp("corpus")
    captions = []
    for number in range(12):
        audio = write_wav(folder / f"{number}.wav", 0.2 + 0.05 * number, frequency=200.0 + 30 * number)
        image = folder / f"{number // 2}.png"
        if not image.exists():
            write_image(image, colour=f"hsl({50 * number}, 90%, 50%)")
        if number == 5:
            audio = audio.rename(Path(os.fsdecode(os.fsencode(folder) + b"/\xff.wav")))
        if number % 4 == 0:  # bytes behind the last chunk of a WAV file are not heard
            content = audio.read_bytes()
            endings = (content + bytes([ending // 256, ending % 256]) for ending in range(65_536))
            audio.write_bytes(next(content for content in endings if sha256(content).digest().endswith(b"\0")))
        captions.append(SpokenCaption(f"c{number}", audio, image.name, image, None, None, None, "train"))
    return captions


@pytest.mark.timeout(900)  # two pools of actors start, each with a torch of its own, beside other tests
def test_two_nodes_give_what_one_process_gives(
    cluster: RayCluster, captions: list[SpokenCaption], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit; bad files are listed, those that are good are kept, and the next run reads them no more."""
    monkeypatch.setattr(extraction, "UNIT", 3)
    monkeypatch.setattr("saysee.features.hashes._RACY_NANOSECONDS", -1)
    bad, missing = tmp_path / "bad \udcff.wav", tmp_path / "missing.png"
    bad.write_bytes(b"this is no recording")
    flawed = [*captions[:5], replace(captions[5], audio=bad), *captions[5:], replace(captions[0], image=missing)]

    def features(where: str, captions: list[SpokenCaption], runs: Any) -> tuple[StoredFeatures, StoredFeatures]:
        return extract_features(captions, StubSpeechBackbone(), StubImageBackbone(), tmp_path / where, runs=runs)

    cache = tmp_path / "ray"
    runs = on_ray(recordings, cache, cluster.address), on_ray(pictures, cache, cluster.address)
    with pytest.raises(ManifestError) as caught:
        features("ray", flawed, runs)
    with pytest.raises(ManifestError) as expected:
        features("here", flawed, None)
    assert caught.value.faults == expected.value.faults
    assert [fault.partition(": ")[0] for fault in caught.value.faults] == [ascii(str(bad)), str(missing)]

    def unexpected(_: object) -> NoReturn:
        raise AssertionError("everything is there")

    here = features("here", captions, None)
    there = features("ray", captions, tuple(_run_of_nothing(unexpected) for _ in range(2)))
    for caption in captions:
        assert torch.equal(there[0][caption.audio], here[0][caption.audio])
        assert torch.equal(there[1][caption.image], here[1][caption.image])
        assert FileHashes(cache).get(caption.audio) == sha256(caption.audio.read_bytes()).digest()
    for store in (there[0].store, there[1].store):
        assert list(store.damaged()) == []
    assert len(list(there[0].store.folder.iterdir())) == 5, "13 recordings in units of 3"


def _run_of_nothing(unexpected: Any) -> extraction.Run:
    def run(units: Any) -> Any:
        for unit in units:
            unexpected(unit)
        return iter(())

    return run


def test_all_files_there_needs_no_cluster(tmp_path: Path) -> None:
    run = on_ray(recordings, tmp_path, "nobody:1")
    assert list(run(iter(()))) == []


@pytest.mark.parametrize("address", ["host", "127.0.0.1:{closed}", "no.such.host.invalid:6379", "127.0.0.1:70000"])
def test_no_cluster_at_an_address(tmp_path: Path, address: str) -> None:
    """An answer at once: Ray alone waits for minutes and then ends the process."""
    pytest.importorskip("ray")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = address.format(closed=unused.getsockname()[1])
        with pytest.raises(SayseeError, match=f"no Ray cluster at '{address}'") as caught:
            list(on_ray(recordings, tmp_path, address)(iter([[Path("/a.wav")]])))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("have", "gpus", "message"),
    [
        ({"CPU": 1.0}, 0, "has 1 CPUs and 0 GPUs; at least 2 CPUs are needed"),
        ({"CPU": 4.0}, 1, "has 4 CPUs and 0 GPUs; at least 2 CPUs and 1 GPUs are needed"),
        ({"CPU": 1.0, "GPU": 8.0}, 1, "has 1 CPUs and 8 GPUs; at least 2 CPUs"),
    ],
)
def test_a_cluster_that_is_too_small(
    cluster: RayCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    have: dict[str, float],
    gpus: int,
    message: str,
) -> None:
    """An actor pool that takes the last CPU would wait for ever."""
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: have)
    with pytest.raises(SayseeError, match=message):
        list(on_ray(recordings, tmp_path, cluster.address, gpus=gpus)(iter([[Path("/a.wav")]])))
    assert not ray.is_initialized()


@pytest.mark.parametrize(("units", "gpus", "actors"), [(9, 0, 3), (2, 0, 2), (9, 1, 3), (9, 2, 2), (1, 2, 1)], ids=str)
def test_one_cpu_is_left_to_the_pipeline(
    cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, units: int, gpus: int, actors: int
) -> None:
    """Of 4 CPUs and 4 GPUs; and there are no more actors than units."""
    import ray.data

    asked: list[int] = []

    class EnoughError(Exception):
        pass

    def pool(size: int) -> NoReturn:
        asked.append(size)
        raise EnoughError

    monkeypatch.setattr(ray.data, "ActorPoolStrategy", pool)
    with pytest.raises(EnoughError):
        list(on_ray(recordings, tmp_path, cluster.address, gpus=gpus)(iter([[Path("/a.wav")]] * units)))
    assert asked == [actors]
    assert not ray.is_initialized()


def test_without_ray_installed_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SayseeError, match=r"saysee\[ray\]"):
        on_ray(recordings, tmp_path, "auto")
