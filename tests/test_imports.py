"""The house's one direction: who may import whom, read from the code itself."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "saysee"

# errors, files and config are the ground that all stand on; the rest may import only what is listed
GROUND = {"errors", "files", "config", "__init__"}
ALLOWED = {
    "config": {"errors"},
    "data": {"features"},
    "features": set[str](),
    "models": {"features"},
    "losses": set[str](),
    "training": {"data", "features", "models", "losses"},
    "search": {"features", "models"},
    "evaluation": {"data", "features", "models", "search"},
    "serving": {"data", "features", "models", "search"},
    "workflows": {"data", "features", "models", "training", "evaluation", "search"},
    "experiments": {"data", "features", "models", "evaluation", "workflows"},
    "demo": {"data", "models", "evaluation", "search", "serving", "workflows"},
    "commands": {"data", "features", "models", "evaluation", "search", "serving", "workflows", "experiments", "demo"},
    "cli": {"data", "commands"},
    "__main__": {"cli"},
    "__init__": {"models"},
}


def room(path: Path) -> str:
    relative = path.relative_to(SOURCE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str | None] = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "saysee" else [node.module]
            )
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {parts[1] for name in names if name and (parts := name.split("."))[0] == "saysee" and len(parts) > 1}
    return rooms - {"__version__"}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_follow_the_direction(path: Path) -> None:
    own = room(path)
    allowed = GROUND | ALLOWED.get(own, set()) | {own}
    if own in {"errors", "files"}:
        allowed = {"errors"}
    assert imported_rooms(path) <= allowed, f"{own} may import {sorted(allowed)}"


def test_losses_know_no_model() -> None:
    for path in (SOURCE / "losses").glob("*.py"):
        assert imported_rooms(path) <= {"losses"}
