"""Extraction on a Ray cluster: the same units, encoded by the actors of a Ray Data pipeline.

Every machine must see the corpus and the cache under the same paths. A unit is a row of the data set, and so is what
became of it: a bad file is a fault in a row, and never the end of the run.
"""

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from saysee.errors import SayseeError
from saysee.features.extract import FileEncoder, Run, UnitResult, encode_unit
from saysee.features.store import FeatureStore


class UnitEncoder:
    """An actor: makes its encoder once, then encodes one unit after the other."""

    def __init__(self, make_encoder: Callable[[], FileEncoder], cache: Path) -> None:
        self._encoder = make_encoder()
        self._store = FeatureStore(cache, self._encoder.fingerprint)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Encode a unit; paths travel as bytes, since a file name need not be UTF-8."""
        unit = [Path(os.fsdecode(path)) for path in row["paths"]]
        result = encode_unit(self._encoder, self._store, unit, threads=1)
        return {
            "paths": [os.fsencode(path) for path in result.paths],
            "content": [content or b"" for content in result.content],
            "keys": [key or b"" for key in result.keys],
            "bad": [os.fsencode(path) for path in result.faults],
            "faults": [os.fsencode(fault) for fault in result.faults.values()],
        }


def on_ray(make_encoder: Callable[[], FileEncoder], cache: Path, address: str, *, gpus: int = 0) -> Run:
    """Encode on a Ray cluster.

    Args:
        make_encoder: called once in every actor; can be pickled.
        cache: the store's folder, on a file system that all machines share.
        address: of the cluster, as `ray.init` takes it: `auto`, `local`, `ray://host:10001`, `host:6379`.
        gpus: GPUs an actor needs; 0 encodes on CPUs.

    Raises:
        SayseeError: Ray is not installed, or the cluster cannot be reached or has too little.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise SayseeError("Ray is not installed; run: pip install 'saysee[ray]'") from None

    def run(units: Iterator[Sequence[Path]]) -> Iterator[UnitResult]:
        rows = [{"paths": [os.fsencode(path) for path in unit]} for unit in units]
        if not rows:
            return
        try:
            _require_listener(address)
            context = ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except (OSError, OverflowError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise SayseeError(f"no Ray cluster at {address!r} ({reason}); start one with `ray start --head`") from None
        ray.data.DataContext.get_current().enable_progress_bars = False  # there is one of our own
        with context:
            have = {name: int(ray.cluster_resources().get(name, 0)) for name in ("CPU", "GPU")}
            # an actor pool that takes the last CPU leaves none to the pipeline's own tasks, which then wait for ever
            actors = min(have["CPU"] - 1, have["GPU"] // gpus if gpus else len(rows), len(rows))
            if actors < 1:
                raise SayseeError(
                    f"the Ray cluster has {have['CPU']} CPUs and {have['GPU']} GPUs; at least 2 CPUs"
                    + (f" and {gpus} GPUs" if gpus else "")
                    + " are needed"
                )
            encoded = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
                UnitEncoder,
                fn_constructor_args=(make_encoder, cache),
                compute=ray.data.ActorPoolStrategy(size=actors),
                num_cpus=1,
                num_gpus=gpus or None,
            )
            for row in encoded.iter_rows():
                yield _result(row)

    return run


def _require_listener(address: str) -> None:
    """Raise OSError if nothing listens at a `host:port`: Ray itself would wait for it without end."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _result(row: dict[str, Any]) -> UnitResult:
    return UnitResult(
        tuple(Path(os.fsdecode(path)) for path in row["paths"]),
        tuple(bytes(content) or None for content in row["content"]),
        tuple(bytes(key) or None for key in row["keys"]),
        {Path(os.fsdecode(path)): os.fsdecode(fault) for path, fault in zip(row["bad"], row["faults"], strict=True)},
    )
