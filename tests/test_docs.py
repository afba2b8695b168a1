"""What the docs say of the code is true: files, links, commands, options, names, default values."""

import ast
import dataclasses
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml

import saysee
from saysee import config
from saysee.cli import build_parser
from saysee.config import Config, bundled_configs, load_config
from saysee.features.audio import AudioLimits
from saysee.features.image import ImageLimits

ROOT = Path(__file__).parents[1]
README, METHOD = ROOT / "README.md", ROOT / "docs" / "method.md"
GUIDES = [README, *sorted((ROOT / "docs").glob("*.md"))]
CARD = ROOT / "src" / "saysee" / "assets" / "models" / "saysee-small" / "README.md"
ALL_DOCS = [*GUIDES, CARD, *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"))]
MAPPED = ("src/saysee", "scripts", "benchmarks", "docs")

name_of = pytest.mark.parametrize("doc", ALL_DOCS, ids=lambda doc: doc.name)


def blocks(doc: Path, *languages: str) -> list[str]:
    """The content of a document's fenced blocks in one of the languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", doc.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [content for language, content in found if language in languages]


def commands(doc: Path) -> Iterator[list[str]]:
    """What a reader would type: every line of a `sh` block, and the lines after a prompt of a `console` block."""
    lines = [line for block in blocks(doc, "sh") for line in block.replace("\\\n", " ").splitlines()]
    shown = [line for block in blocks(doc, "console") for line in block.replace("\\\n", " ").splitlines()]
    lines += [line.removeprefix("$ ") for line in shown if line.startswith("$ ")]
    yield from (words for line in lines if (words := shlex.split(line, comments=True)))


def tree() -> dict[str, str]:
    """The README's map: path -> what stands beside it. A folder ends with a slash."""
    (block,) = (block for block in blocks(README, "text") if block.startswith("src/saysee/"))
    described: dict[str, str] = {}
    folders: list[str] = []
    for line in block.splitlines():
        name, _, description = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        path = "".join([*folders[:depth], name])
        assert path not in described, f"{path} stands twice"
        described[path] = description.strip()
        folders = [*folders[:depth], name]
    return described


def test_the_map_lists_only_what_is_there_and_says_something_of_it() -> None:
    listed = tree()
    missing = [path for path in listed if not ((ROOT / path).is_dir() if path[-1] == "/" else (ROOT / path).is_file())]
    assert missing == []
    # a folder whose files are listed may go without a word
    parents = {"/".join(path.rstrip("/").split("/")[:-1]) + "/" for path in listed}
    assert [path for path, words in listed.items() if not words and path not in parents] == []


def test_the_map_lacks_no_file() -> None:
    listed = tree()
    # a folder of which nothing is listed stands for all that it holds
    whole = tuple(
        path for path in listed if path[-1] == "/" and not any(p.startswith(path) and p != path for p in listed)
    )
    files = [
        path.relative_to(ROOT).as_posix()
        for folder in MAPPED
        for path in sorted((ROOT / folder).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    ]
    assert len(files) > 60
    # an `__init__.py` without content is not worth a line
    worth = [path for path in files if not (path.endswith("__init__.py") and not (ROOT / path).read_bytes())]
    assert [path for path in worth if path not in listed and not path.startswith(whole)] == []


@name_of
def test_every_relative_link_leads_to_a_file(doc: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", doc.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    relative = [link for link in links if not re.match(r"https?:|#", link)]
    targets = {link: (doc.parent / unquote(link.partition("#")[0])).resolve() for link in relative}
    assert [link for link, path in targets.items() if not path.is_file() or not path.is_relative_to(ROOT)] == []


@name_of
def test_every_command_can_be_given(doc: Path) -> None:
    faults = []
    for words in commands(doc):
        try:
            match words:
                case ["saysee", *rest]:
                    options, unknown = build_parser().parse_known_args(rest)
                    if options.command == "train":
                        known = options.config in bundled_configs()
                        _ = load_config(options.config, unknown) if known else Config.from_dict({}, unknown)
                    elif unknown:
                        faults.append(f"{words} has {unknown}")
                case ["make", target]:
                    if not re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE):
                        faults.append(f"{words}: no such target")
                case ["python", script, *_]:
                    if not ((ROOT / script).is_file() or (ROOT / script / "__main__.py").is_file()):
                        faults.append(f"{words}: no such file")
        except (SystemExit, saysee.errors.SayseeError) as error:
            faults.append(f"{words}: {error}")
    assert faults == []


def test_the_readme_shows_every_command_of_the_tour_and_both_targets() -> None:
    typed = [words[:2] for words in commands(README)]
    own_pictures = ("index", "serve")
    tour = [["saysee", name] for name in (*own_pictures, "prepare", "train", "evaluate", "index", "search", "serve")]
    assert [words for words in typed if words[0] == "saysee"] == tour
    assert ["make", "demo"] in typed
    assert ["make", "test"] in typed


def test_the_python_of_the_readme_uses_what_there_is() -> None:
    used = {
        node.attr
        for block in blocks(README, "python")
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    assert used == {"from_pretrained", "encode_speech", "encode_image", "similarity", "match", "save_pretrained"}
    assert [name for name in used if not callable(getattr(saysee.SpeechImageModel, name, None))] == []


@pytest.mark.parametrize("doc", GUIDES, ids=lambda doc: doc.name)
def test_every_recipe_shown_is_valid(doc: Path) -> None:
    for block in blocks(doc, "yaml"):
        Config.from_dict(yaml.safe_load(block))


def test_every_bundled_recipe_is_described() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert [name for name in bundled_configs() if f"| `{name}` |" not in text] == []


def references(doc: Path) -> list[tuple[str, str]]:
    """What a document names as `file:name`."""
    return re.findall(r"`([\w/]+\.py):([\w.]+)`", doc.read_text(encoding="utf-8"))


def exists(file: str, name: str) -> bool:
    if file.startswith("tests/"):  # pytest has imported it, or will, under another name
        if not (ROOT / file).is_file():
            return False
        module = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        return name in {node.name for node in module.body if isinstance(node, ast.FunctionDef)}
    parts = ["saysee", *file.removesuffix(".py").split("/")]
    try:
        found: Any = importlib.import_module(".".join(part for part in parts if part != "__init__"))
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return False
    return True


def test_names_that_do_not_exist_would_be_found() -> None:
    assert exists("losses/contrastive.py", "sic_loss")
    assert exists("models/momentum.py", "MomentumEncoder.update")
    assert not exists("losses/contrastive.py", "sic_los")
    assert not exists("losses/nothing.py", "sic_loss")
    assert exists("tests/test_docs.py", "exists")
    assert not exists("tests/test_docs.py", "not_there")
    assert not exists("tests/test_nothing.py", "exists")


@name_of
def test_every_function_named_exists(doc: Path) -> None:
    assert [f"{file}:{name}" for file, name in references(doc) if not exists(file, name)] == []


def test_the_method_names_all_of_the_losses_and_a_test_for_each_trap() -> None:
    named = references(METHOD)
    losses = {
        "sic_loss",
        "contrastive_targets",
        "list_cross_entropy",
        "distillation_alpha",
        "draw_negatives",
        "sim_loss",
    }
    assert losses | {"JointLoss.forward"} <= {name for _, name in named}
    traps = METHOD.read_text(encoding="utf-8").partition("## Easy to get wrong")[2]
    items = re.split(r"^\d+\. ", traps, flags=re.MULTILINE)[1:]
    assert len(items) == 12
    assert [number for number, item in enumerate(items, start=1) if "`tests/" not in item] == []


def documented_values(doc: Path) -> list[tuple[str, str, str]]:
    """Class, field and value of the rows that begin with `Class.field`."""
    return re.findall(r"^\| `(\w+)\.(\w+)` \| ([^|]+) \|", doc.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("doc", [METHOD, ROOT / "docs" / "data.md"], ids=lambda doc: doc.name)
def test_every_default_value_given_is_the_one_in_the_code(doc: Path) -> None:
    rows = documented_values(doc)
    assert len(rows) > 8
    for class_name, field, value in rows:
        owner = {"AudioLimits": AudioLimits, "ImageLimits": ImageLimits}.get(class_name) or getattr(config, class_name)
        default = getattr(owner(), field)
        said = yaml.safe_load(re.sub(r"(?<=\d),(?=\d{3})", "", value.strip()))
        assert said == (list(default) if isinstance(default, tuple) else default), f"{class_name}.{field}"


@pytest.mark.parametrize("limits", [AudioLimits, ImageLimits])
def test_every_limit_is_documented(limits: type[AudioLimits | ImageLimits]) -> None:
    rows = documented_values(ROOT / "docs" / "data.md")
    documented = {field for class_name, field, _ in rows if class_name == limits.__name__}
    assert documented == {field.name for field in dataclasses.fields(limits)}


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == saysee.__version__
    assert f"\n## [{saysee.__version__}] - " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
