"""Milvus servers for tests, each in a process of its own: Milvus Lite, and the real one of the package `milvus`."""

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from saysee.errors import SayseeError
from saysee.search.stores.milvus import MilvusStore

REAL_SERVER = shutil.which("milvus-server")
WHY_NOT = "the real server is not on the PATH; pip install milvus==2.3.5 puts it there as milvus-server"


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


@contextmanager
def milvus_lite(folder: Path) -> Iterator[str]:
    """Milvus Lite, one Python process: the same interface, but every index is exact and every read the newest."""
    command = [Path(sys.executable).parent / "milvus-lite", "server", "--data-dir", folder / "lite"]
    with _running([*command, "--host", "127.0.0.1"], "--port", folder / "lite.log", 60, signal.SIGTERM) as uri:
        yield uri


@contextmanager
def milvus_server(folder: Path) -> Iterator[str]:
    """The real server, standalone; its wrapper stops it when it is interrupted, and only then."""
    assert REAL_SERVER is not None
    command = [REAL_SERVER, "--data", folder / "milvus"]
    with _running(command, "--proxy-port", folder / "milvus.log", 120, signal.SIGINT) as uri:
        yield uri


@contextmanager
def _running(
    command: Sequence[object], port_option: str, log: Path, seconds: float, ending: signal.Signals
) -> Iterator[str]:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*map(str, command), port_option, str(port)], stdout=output, stderr=output, start_new_session=True
        )
        try:
            _wait(server, uri, seconds)
            yield uri
        finally:
            server.send_signal(ending)
            try:
                server.wait(timeout=20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait(server: "subprocess.Popen[bytes]", uri: str, seconds: float) -> None:
    """Wait until the server says that a collection is missing, instead of nothing."""
    end = time.monotonic() + seconds
    while True:
        try:
            MilvusStore.open(uri, "missing", "")
        except SayseeError as error:
            if "there is no collection" in str(error):
                return
            assert server.poll() is None, f"the server has ended: {error}"
            assert time.monotonic() < end, f"the server does not answer: {error}"
        time.sleep(0.3)
