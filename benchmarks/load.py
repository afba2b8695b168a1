"""Fifty clients for a minute, a tenth of them sending rubbish, against a real server on the loopback interface.

    python benchmarks/load.py            writes results/load.json
    python benchmarks/load.py --short    ten clients for eight seconds and 24 pictures, and writes nothing

The server is a process of its own, as `saysee serve` starts it, with the sample corpus's pictures indexed by an
untrained `tiny` model: what the model has learned changes no time. The limit on one address's rate is lifted, since all
clients have one address; everything else is as it is by default. Good clients ask one recording of the corpus after the
other; told to come again (503), they do so when they are told to. The others send random bytes, half recordings,
pictures of one pixel, bodies that are too large, parameters and ids that do not exist, and bytes that are no HTTP, or
go away in the middle.

The rival is a single client that asks the same questions of the same server one by one, just before: the ratio is how
many more answers a second fifty clients get.

It fails when a status comes back that no client has earned: a 5xx other than the deliberate 503, or a refusal of a good
question.
"""

import argparse
import contextlib
import http.client
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from record import keep
from saysee.config import load_config
from saysee.data.sample import sample_manifest_path
from saysee.errors import AudioError
from saysee.models.retrieval_model import SpeechImageModel
from saysee.search.building import build_index
from saysee.search.index import open_index
from saysee.search.question import read_question
from saysee.search.searcher import Searcher
from saysee.serving.limits import ServingLimits
from saysee.serving.server import Settings, serve_search

LIMITS = ServingLimits(rate=1e9, burst=1_000_000_000)
SERVE = "--serve"  # how this program starts its own server

Statuses = Counter[int]


def main() -> None:
    if sys.argv[1:2] == [SERVE]:
        serve(*map(Path, sys.argv[2:]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50, help="a tenth of them send rubbish (default: 50)")
    parser.add_argument("--seconds", type=float, default=60.0, help="(default: 60)")
    parser.add_argument("--short", action="store_true", help="10 clients, 8 seconds, 24 pictures, no file is written")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.short:
        options.clients, options.seconds = 10, 8.0
    with tempfile.TemporaryDirectory() as name:
        index, model = make_index(Path(name), options.seed, 24 if options.short else None)
        server = subprocess.Popen(
            [sys.executable, __file__, SERVE, str(index), str(model)], stdout=subprocess.PIPE, text=True
        )
        try:
            figures = measure(server, options.clients, options.seconds, options.seed)
            server.send_signal(signal.SIGTERM)
            figures["exit_status"] = server.wait(LIMITS.drain_seconds + 20)
        finally:
            server.kill()
    if options.short:
        print(json.dumps(figures))
    else:
        keep("load", data="sample corpus (Art4Apps, human voices)", seed=options.seed, figures=figures)
    sys.exit(0 if figures["exit_status"] == 0 and not figures["not_earned"] else 1)


def make_index(folder: Path, seed: int, count: int | None) -> tuple[Path, Path]:
    torch.manual_seed(seed)
    model = SpeechImageModel.from_config(load_config("tiny")).eval()
    model.save_pretrained(folder / "model")
    pictures = folder / "pictures"
    pictures.mkdir()
    for picture in sorted((sample_manifest_path().parent / "images").iterdir())[:count]:
        shutil.copy(picture, pictures)
    build_index(pictures, model, folder / "model", folder / "index", tell=lambda _: None)
    return folder / "index", folder / "model"


def serve(index: Path, model: Path) -> None:
    searcher = Searcher(open_index(index), SpeechImageModel.from_pretrained(model))
    serve_search(searcher, Settings(port=0, limits=LIMITS))


@dataclass
class Tally:
    """What one client saw.

    Attributes:
        statuses: how often each; 0 stands for a connection that was closed without an answer.
        seconds: that each answered question took.
    """

    statuses: Statuses = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)


def measure(server: "subprocess.Popen[str]", clients: int, seconds: float, seed: int) -> dict[str, Any]:
    port = port_of(server)
    recordings = questions()
    for recording in recordings[:8]:  # so that what is loaded at the first question is there
        assert ask(port, recording)[0] == 200
    alone = Tally()
    good_client(port, recordings, random.Random(seed), time.perf_counter() + min(10.0, seconds), alone)
    memory = [resident_bytes(server.pid)]
    rubbish = max(1, clients // 10)
    tallies = [Tally() for _ in range(clients)]
    end = time.perf_counter() + seconds
    threads = [
        threading.Thread(
            target=bad_client if number < rubbish else good_client,
            args=(port, recordings, random.Random(f"{seed} {number}"), end, tally),
        )
        for number, tally in enumerate(tallies)
    ]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    while time.perf_counter() < end:
        time.sleep(min(1.0, seconds / 8))
        memory.append(resident_bytes(server.pid))
    for thread in threads:
        thread.join(60)
    took = time.perf_counter() - begun
    return summary(alone, tallies[:rubbish], tallies[rubbish:], memory, took)


def questions() -> list[bytes]:
    """Return every eighth recording of the corpus, without those few in which no speech is heard."""
    found = []
    for path in sorted((sample_manifest_path().parent / "audio").rglob("*.ogg"))[::8]:
        with contextlib.suppress(AudioError):
            read_question(path)
            found.append(path.read_bytes())
    return found


def summary(alone: Tally, bad: list[Tally], good: list[Tally], memory: list[int], took: float) -> dict[str, Any]:
    statuses = {"good": total(good), "rubbish": total(bad)}
    answered = [second for tally in good for second in tally.seconds]
    rate = len(answered) / took
    rate_alone = len(alone.seconds) / sum(alone.seconds)
    not_earned = {
        who: {status: count for status, count in counted.items() if status not in allowed}
        for (who, counted), allowed in zip(statuses.items(), ({200, 503}, {0, *range(200, 500), 503}), strict=True)
    }
    return {
        "clients": {"good": len(good), "rubbish": len(bad)},
        "seconds": round(took, 1),
        "requests": sum(sum(counted.values()) for counted in statuses.values()),
        "statuses": {who: {str(status): count for status, count in sorted(c.items())} for who, c in statuses.items()},
        "not_earned": {who: counted for who, counted in not_earned.items() if counted},
        "good_question_ms": percentiles(answered),
        "single_client_ms": percentiles(alone.seconds),
        "answers_per_second": round(rate, 1),
        "single_client_answers_per_second": round(rate_alone, 1),
        "many_over_single": round(rate / rate_alone, 2),
        "resident_mb": {
            "start": megabytes(memory[0]),
            "middle": megabytes(memory[len(memory) // 2]),
            "end": megabytes(memory[-1]),
            "most": megabytes(max(memory)),
        },
    }


def total(tallies: list[Tally]) -> Statuses:
    return sum((tally.statuses for tally in tallies), Counter())


def percentiles(seconds: list[float]) -> dict[str, float]:
    return {name: round(1000 * float(np.percentile(seconds, at)), 1) for name, at in (("p50", 50), ("p99", 99))}


def megabytes(count: int) -> float:
    return round(count / 1e6, 1)


# ---- clients


def ask(port: int, body: bytes, path: str = "/api/search") -> tuple[int, float]:
    """Post a body; returns the status and in how many seconds to come again."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", path, body)
        answer = connection.getresponse()
        answer.read()
        return answer.status, float(answer.headers.get("Retry-After", 0))
    finally:
        connection.close()


def good_client(port: int, recordings: list[bytes], chance: random.Random, end: float, tally: Tally) -> None:
    while time.perf_counter() < end:
        begun = time.perf_counter()
        status, again = ask(port, chance.choice(recordings))
        tally.statuses[status] += 1
        if status == 200:
            tally.seconds.append(time.perf_counter() - begun)
        elif status == 503:
            time.sleep(again * chance.uniform(1.0, 1.5))


def bad_client(port: int, recordings: list[bytes], chance: random.Random, end: float, tally: Tally) -> None:
    while time.perf_counter() < end:
        try:
            status = chance.choice(RUBBISH)(port, chance.choice(recordings), chance)
        except (OSError, http.client.HTTPException):  # the server let go of it
            status = 0
        tally.statuses[status] += 1
        time.sleep(chance.uniform(0.0, 0.05))


def random_bytes(port: int, _: bytes, chance: random.Random) -> int:
    return ask(port, chance.randbytes(chance.randrange(20_000)))[0]


def half_a_recording(port: int, recording: bytes, chance: random.Random) -> int:
    return ask(port, recording[: chance.randrange(1, len(recording))])[0]


def damaged_recording(port: int, recording: bytes, chance: random.Random) -> int:
    damaged = bytearray(recording)
    for _ in range(20):
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
    return ask(port, bytes(damaged))[0]


def too_large(port: int, _: bytes, chance: random.Random) -> int:
    return ask(port, bytes(LIMITS.body_bytes + chance.randrange(1, 1_000_000)))[0]


def wrong_type(port: int, _: bytes, chance: random.Random) -> int:
    pixel = b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
    return ask(port, chance.choice([pixel, b"{}", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b""]))[0]


def wrong_parameter(port: int, recording: bytes, chance: random.Random) -> int:
    return ask(port, recording, chance.choice(["/api/search?top=0", "/api/search?since=x", "/api/search?x=1"]))[0]


def wrong_path(port: int, recording: bytes, chance: random.Random) -> int:
    ids = ["..%2f..%2fetc%2fpasswd", "0" * 32, "%00", "x" * 5000]
    return ask(port, recording, f"/api/items/{chance.choice(ids)}/attention")[0]


def no_http(port: int, _: bytes, chance: random.Random) -> int:
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.sendall(chance.randbytes(500) + b"\r\n\r\n")
        line = connection.recv(65_536).split(b" ")
        return int(line[1]) if len(line) > 1 else 0


def gone_in_the_middle(port: int, recording: bytes, chance: random.Random) -> int:
    head = f"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(recording)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.sendall((head + recording)[: chance.randrange(1, len(head) + len(recording))])
        return 0


RUBBISH: list[Callable[[int, bytes, random.Random], int]] = [
    random_bytes,
    half_a_recording,
    damaged_recording,
    too_large,
    wrong_type,
    wrong_parameter,
    wrong_path,
    no_http,
    gone_in_the_middle,
]


# ---- the server, seen from outside


def port_of(server: "subprocess.Popen[str]") -> int:
    assert server.stdout is not None
    for line in server.stdout:
        if line.startswith("open "):
            return int(line.strip().rstrip("/").rpartition(":")[2])
    raise AssertionError("the server did not start")


def resident_bytes(pid: int) -> int:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
