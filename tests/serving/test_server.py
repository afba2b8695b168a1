"""Where the server listens and with which token; and real processes, which end as they are told, with nothing lost."""

import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from command_line import finish, start
from media import write_image
from saysee.data.manifest import read_manifest
from saysee.errors import SayseeError
from saysee.search.stores.base import path_id
from saysee.serving.guards import Access
from saysee.serving.server import MIN_TOKEN, Settings, serve
from serving.gallery import Gallery, make_gallery, recordings
from serving.live import until

# in a process of its own the tests are not on the path
TESTS = str(Path(__file__).parents[1])
PROGRAM = [
    "-c",
    f"import sys; sys.path.insert(0, {TESTS!r}); from serving import serve_stub; serve_stub.main(*sys.argv[1:])",
]


class StoppedError(Exception):
    """Raised where an application would be made: what comes before has been decided."""

    def __init__(self, access: Access) -> None:
        self.access = access


def access_of(settings: Settings) -> Access:
    """Say how a server would be guarded; nothing listens when this comes back."""

    def make(access: Access) -> object:
        raise StoppedError(access)

    with pytest.raises(StoppedError) as stopped:
        serve(make, settings, lambda _: None)  # type: ignore[arg-type]
    return stopped.value.access


def test_on_the_loopback_interface_no_token_is_needed_but_one_can_be_given() -> None:
    for host in ("127.0.0.1", "localhost", "127.0.0.2"):
        assert access_of(Settings(host=host, port=0)).token is None
    assert not access_of(Settings(port=0)).any_address
    assert access_of(Settings(port=0, token="x" * MIN_TOKEN)).token == "x" * MIN_TOKEN


def test_anywhere_else_a_token_is_made_if_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket of this test listens on the loopback interface all the same."""
    create = socket.create_server
    asked: list[str] = []

    def create_here(address: tuple[str, int], **options: object) -> socket.socket:
        asked.append(address[0])
        return create(("127.0.0.1", 0))

    monkeypatch.setattr(socket, "create_server", create_here)
    first, second = (access_of(Settings(host="0.0.0.0", port=0, allowed_hosts=("Pictures.Example",))) for _ in "ab")
    assert asked == ["0.0.0.0"] * 2
    assert first.token is not None
    assert len(first.token) >= 32
    assert first.token != second.token
    assert first.any_address
    assert {"pictures.example", socket.gethostname().lower()} <= first.hosts
    assert access_of(Settings(host="192.0.2.7", port=0, token="y" * 20)).token == "y" * 20


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (Settings(token="short"), "the token has 5 characters; give 16 or more"),
        (Settings(token="ñ" * 40), "of ASCII letters"),
        (Settings(host="no such host.invalid"), "cannot listen at no such host.invalid:8765"),
        (Settings(host="192.0.2.7"), "give another --host or --port"),  # no machine's
        (Settings(port=99_999), "give one from 1 to 65535"),
        (Settings(cert=Path("cert.pem")), "give both --cert and --key"),
        (Settings(key=Path("key.pem")), "give both --cert and --key"),
        (Settings(cert=Path("no.pem"), key=Path("no.key")), "no.pem and no.key cannot be used"),
        (Settings(cert=Path(__file__), key=Path(__file__)), "give a certificate and its key as PEM"),
    ],
)
def test_mistakes_are_named(settings: Settings, reason: str) -> None:
    with pytest.raises(SayseeError, match=reason) as mistake:
        serve(lambda _: pytest.fail("it would have been served"), settings, lambda _: None)
    assert "\n" not in str(mistake.value)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SayseeError, match="in use"):
        serve(lambda _: pytest.fail("it would have been served"), Settings(port=taken.getsockname()[1]), print)


# ---- real processes


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    folder = tmp_path_factory.mktemp("gallery")
    made = make_gallery(folder)
    made.model.save_pretrained(folder / "model")
    return made


@contextmanager
def process(*arguments: object) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Run a server; what is printed before the address, and with it, has been read."""
    running = start(PROGRAM, *arguments)
    try:
        assert running.stdout is not None
        for line in running.stdout:
            if line.startswith("open "):
                yield running, line.split()[1]
                return
        pytest.fail(f"it did not start: {running.communicate()}")
    finally:
        if running.poll() is None:
            running.kill()
            running.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_answers_what_it_was_asked_and_nothing_more(gallery: Gallery, number: signal.Signals) -> None:
    recording = recordings(1)[0]
    with process("search", gallery.path, gallery.path.with_name("model"), 1.0) as (running, url):
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as client, ThreadPoolExecutor(1) as pool:
            assert client.get("/api/health").json()["items"] == 18
            asked = pool.submit(client.post, "/api/search?path=*secret*", content=recording)
            assert running.stdout is not None
            assert "Ctrl-C ends it" in running.stdout.readline()
            assert running.stdout.readline() == "encoding\n"
            running.send_signal(number)
            answer = asked.result()
            assert answer.status_code == 200
            until(lambda: refuses(url))
        outcome = finish(running)
    assert outcome.status == 0
    assert outcome.err == ""  # no question, no address, nothing


def test_what_takes_longer_than_it_waits_is_called_off(gallery: Gallery) -> None:
    with process("search", gallery.path, gallery.path.with_name("model"), 6.0) as (running, url):
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as client, ThreadPoolExecutor(1) as pool:
            asked = pool.submit(client.post, "/api/search", content=recordings(1)[0])
            assert running.stdout is not None
            until(lambda: running.stdout.readline() == "encoding\n")
            running.send_signal(signal.SIGTERM)
            answer = asked.result()
        assert answer.status_code == 503
        assert "the server is stopping" in answer.json()["error"]
        outcome = finish(running)
    assert outcome.status == 0
    assert recordings(1)[0][:4].decode() not in outcome.err


def test_rubbish_leaves_nothing_in_the_log(gallery: Gallery) -> None:
    with process("search", gallery.path, gallery.path.with_name("model")) as (running, url):
        port = int(url.rstrip("/").rpartition(":")[2])
        for rubbish in (
            b"\x16\x03\x01rubbish\r\n\r\n",
            b"GET /secret HTTP/1.1\r\n\r\n",
            b"POST /api/search HTTP/1.1\r\n",
        ):
            with socket.create_connection(("127.0.0.1", port), 10) as connection:
                connection.sendall(rubbish)
        with httpx.Client(base_url=url, trust_env=False) as client:
            assert client.post("/api/search?path=secret", content=b"secret").status_code == 415
        running.send_signal(signal.SIGTERM)
        outcome = finish(running)
    assert (outcome.status, outcome.err) == (0, "")


def test_recording_goes_on_in_another_process(tmp_path: Path) -> None:
    pictures, manifest = tmp_path / "pictures", tmp_path / "captions.jsonl"
    pictures.mkdir()
    for number in range(5):
        write_image(pictures / f"{number}.png", (20, 20 + number))
    for number, recording in enumerate(recordings(2)):
        with process("record", pictures, manifest) as (running, url):
            with httpx.Client(base_url=url, trust_env=False) as client:
                following = client.get("/api/record/next?speaker=anna&language=en").json()
                assert following["id"] == path_id(f"{number}.png")
                kept = client.post(
                    f"/api/record/pictures/{following['id']}?speaker=anna&language=en", content=recording
                )
                assert kept.status_code == 201
            if number == 0:
                running.kill()  # what was answered is on the disk
                finish(running)
            else:
                running.send_signal(signal.SIGTERM)
                outcome = finish(running)
                assert outcome.status == 0
                assert "2 pictures, 2 recordings" in outcome.out
                assert "not divided yet" in outcome.out
    assert len(read_manifest(manifest).captions) == 2


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_tls(tmp_path: Path) -> None:
    """With a certificate and its key the address is https, and plain HTTP gets no answer."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    make += ["-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*make, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    write_image(tmp_path / "one.png")
    with process("record", tmp_path, tmp_path / "captions.jsonl", cert, key) as (running, url):
        assert url.startswith("https://127.0.0.1:")
        with httpx.Client(base_url=url, trust_env=False, verify=ssl.create_default_context(cafile=cert)) as client:
            assert client.get("/api/health").status_code == 200
            own = {"origin": url.rstrip("/")}
            assert client.get("/api/about", headers=own).status_code == 200
            assert (
                client.get("/api/about", headers={"origin": own["origin"].replace("https", "http")}).status_code == 403
            )
        with pytest.raises(httpx.TransportError):
            httpx.get(url.replace("https", "http"), trust_env=False)
        running.send_signal(signal.SIGTERM)
        assert (finish(running).status, running.returncode) == (0, 0)


def refuses(url: str) -> bool:
    """Whether nobody listens there any more."""
    try:
        httpx.get(f"{url}api/health", trust_env=False)
    except httpx.TransportError:
        return True
    return False
