"""A run's log: one JSON document a line, and the same for TensorBoard. Cut back to the checkpoint on resuming."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from saysee.files import write_text


class RunLog:
    """`log.jsonl` and TensorBoard events below a run's `training` folder.

    Args:
        folder: where they lie.
        step: steps done; what an earlier run logged beyond it is removed. -1 removes everything.
    """

    def __init__(self, folder: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "log.jsonl"
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
            write_text(path, "".join(f"{line}\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, kind: str, values: Mapping[str, float | None]) -> None:
        """Log values after `step` steps; `kind` is `train` or `dev`."""
        known = {name: value for name, value in values.items() if value is not None}
        self._file.write(json.dumps({"step": step, "kind": kind, **known}) + "\n")
        self._file.flush()
        for name, value in known.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        self._board.close()


def _step_of(line: str) -> float:
    """Return a line's step; a line cut short by a crash belongs to no step that counts."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
