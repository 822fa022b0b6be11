"""``bundle.json`` and the hashes of a bundle's files, read without loading the model.

``aiornot evaluate BUNDLE`` looks here for the data profile and for what is recorded already,
``aiornot verify BUNDLE`` for the hash of every file.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from aiornot import storage
from aiornot.config import InputError

SCHEMA_VERSION = 2

DESCRIPTION = "bundle.json"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
"""What timm reads beside the weights; this name and that of the weights are timm's."""
CARD = "README.md"
FILES = (CARD, DESCRIPTION, CONFIG, WEIGHTS)
"""What is delivered."""
SUMS = "SHA256SUMS"
"""The hashes of these files, as ``sha256sum --check`` reads them."""
EVALUATIONS = "evaluations.json"
ROBUSTNESS = "robustness.json"
RECORDS = (EVALUATIONS, ROBUSTNESS)
"""Files that are there after delivery and must hold their own hash; others may, see ``sealed``."""
BASELINE = "baseline"
"""Folder in a bundle that holds what it was compared with, itself a bundle."""
COMPARISON = "comparison.json"
"""What came of that; it grows when the test split is opened."""


def read(folder: Path) -> dict[str, Any]:
    """Return the description of a bundle.

    Raises:
        InputError: Not there, not a bundle, damaged, or of another schema version.
    """
    if not folder.exists():
        raise InputError(f"{folder}: no such folder; give that of a delivered model")
    description = read_json(folder / DESCRIPTION, why="not a bundle")
    version = description.get("schema_version")
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{folder}: bundle of schema version {version}, this program reads {SCHEMA_VERSION}; "
            "deliver the checkpoint again or use the aiornot that wrote it"
        )
    return description


def read_json(path: Path, *, why: str) -> dict[str, Any]:
    """Return the object in a JSON file; ``why`` says what is wrong when the file is absent.

    Raises:
        InputError: Absent or damaged.
    """
    if not path.is_file():
        raise InputError(f"{path.parent}: {why} (it has no {path.name})")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); copy the folder again") from None


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files of a bundle, for a machine that does not see the folder."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def check_weights(folder: Path, expected: str) -> None:
    """Refuse weights that are not those of the description.

    Raises:
        InputError: Absent, or a byte differs.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise InputError(f"{path} is missing; copy the whole bundle again")
    found = sha256(path)
    if found != expected:
        raise InputError(
            f"{path} was changed: its SHA-256 is {found[:12]}..., the bundle says "
            f"{expected[:12]}...; copy the bundle again"
        )


def sha256(path: Path) -> str:
    """Return the hash of a file in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_sums(folder: Path) -> None:
    """Write the hashes of all files; call it again after any of them was rewritten."""
    text = "".join(f"{sha256(folder / name)}  {name}\n" for name in FILES)
    storage.write_text(str(folder / SUMS), text)


def check_sums(folder: Path) -> dict[str, str]:
    """Compare every file with its hash, and return the hashes by name.

    A bundle inside the bundle is checked, too, and so is every sealed file.

    Raises:
        InputError: One byte of any file differs, a file is missing, or there are no hashes.
    """
    listed = _read_sums(folder)
    for name, expected in listed.items():
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is missing; copy the whole bundle again")
        if (found := sha256(folder / name)) != expected:
            raise InputError(
                f"{folder / name} was changed: its SHA-256 is {found[:12]}..., {SUMS} says "
                f"{expected[:12]}...; copy the bundle again"
            )
    for name in _listable(folder, but=listed):
        _is_sealed(folder / name)
    for inner in _bundles_in(folder):
        found_there = check_sums(inner)
        listed |= {f"{inner.name}/{name}": digest for name, digest in found_there.items()}
    return listed


def unlisted(folder: Path) -> list[str]:
    """Return the files in a bundle that no hash speaks for."""
    names = _listable(folder, but=_read_sums(folder))
    found = [name for name in names if not _is_sealed(folder / name)]
    for inner in folder.iterdir():
        if inner in _bundles_in(folder):
            found += [f"{inner.name}/{name}" for name in unlisted(inner)]
        elif inner.is_dir():
            found.append(f"{inner.name}/")
    return sorted(found)


def _bundles_in(folder: Path) -> list[Path]:
    return sorted(inner for inner in folder.iterdir() if (inner / DESCRIPTION).is_file())


def _is_sealed(path: Path) -> bool:
    """Return whether a file holds its own hash, and refuse one whose hash is another."""
    if path.name not in RECORDS:
        try:
            if path.suffix != ".json" or "sha256" not in json.loads(path.read_bytes()):
                return False
        except (ValueError, TypeError):
            return False
    read_sealed(path)
    return True


def _read_sums(folder: Path) -> dict[str, str]:
    path = folder / SUMS
    if not path.is_file():
        read(folder)  # which says so where there is no bundle at all
        raise InputError(
            f"{folder} has no {SUMS}: it is incomplete or was delivered before there was one; copy "
            "the whole bundle again or deliver the checkpoint again"
        )
    text = path.read_bytes().decode("ascii", errors="replace")
    found = re.findall(r"([0-9a-f]{64})  ([^\n/]+)\n", text)
    # Written again it must be the same to the byte, or one of its bytes was changed.
    again = "".join(f"{digest}  {name}\n" for digest, name in found)
    if again != text or tuple(name for _, name in found) != FILES:
        raise InputError(f"{path} is damaged; copy the bundle again")
    return {name: digest for digest, name in found}


def _listable(folder: Path, *, but: Iterable[str] = ()) -> list[str]:
    names = {file.name for file in folder.iterdir() if file.is_file()}
    return sorted(names - {SUMS, *but})


def sealed(values: Mapping[str, Any]) -> str:
    """Return values as a JSON text that holds its own hash, for files that grow."""
    digest = hashlib.sha256(_rendered(values).encode()).hexdigest()
    return _rendered({**values, "sha256": digest})


def read_sealed(path: Path) -> dict[str, Any]:
    """Return the values of a sealed file.

    Raises:
        InputError: It is damaged.
    """
    try:
        text = path.read_bytes().decode()
        values = dict(json.loads(text))
        digest = values.pop("sha256", None)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); restore it from a copy") from None
    if digest is None or sealed(values) != text:
        raise InputError(f"{path} was changed: its SHA-256 is another; restore it from a copy")
    return values


def _rendered(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=1, allow_nan=False) + "\n"
