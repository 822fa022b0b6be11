"""``bundle.json``: what a delivered model says of itself, read without loading the model.

``aiornot evaluate BUNDLE`` looks here for the data profile and for what is recorded already.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from aiornot.config import InputError

SCHEMA_VERSION = 2

DESCRIPTION = "bundle.json"
WEIGHTS = "model.safetensors"


def read(folder: Path) -> dict[str, Any]:
    """Return the description of a bundle.

    Raises:
        InputError: Not a bundle, damaged, or of another schema version.
    """
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
