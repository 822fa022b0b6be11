"""A page and its figures: an HTML file for people, and beside it the same as JSON for programs.

``aiornot audit`` and ``aiornot errors`` write theirs here, locally or on ``s3://``.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiornot import storage
from aiornot.config import InputError


def check_out(out: str) -> None:
    """Refuse a folder that cannot be written, before the work and not after it.

    Raises:
        InputError: It, or a folder above it, is a file or may not be written; or no such address.
    """
    try:
        if storage.is_remote(out):
            if out.startswith("hf://") or not out.partition("://")[2].strip("/"):
                raise InputError(f"--out {out}: give a local folder, or s3://BUCKET/FOLDER")
            storage.exists(out)  # refuses an address that is none
            return
        found = next(path for path in _upwards(out) if path.exists())
    except OSError as error:
        raise _unusable(out, error) from None
    if not found.is_dir():
        raise InputError(f"--out {out}: {found} is a file; give a folder")
    if not os.access(found, os.W_OK | os.X_OK):
        raise InputError(f"--out {out}: {found} may not be written; give another folder")


def _upwards(out: str) -> list[Path]:
    path = Path(out).absolute()
    return [path, *path.parents]


def _unusable(out: str, error: OSError) -> InputError:
    return InputError(f"--out {out}: {' '.join(str(error).split())}; give another folder")


def write(out: str, name: str, *, page: str, report: Mapping[str, Any]) -> str:
    """Write ``<name>.html`` and ``<name>.json`` into a folder, each whole or not at all.

    Args:
        out: A local folder, made if absent, or ``s3://...``.
        name: Of both files.
        page: The HTML.
        report: Plain values.

    Returns:
        The path of the page.

    Raises:
        InputError: They cannot be written there.
    """
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    path = storage.join(out, f"{name}.html")
    try:
        storage.write_text(storage.join(out, f"{name}.json"), text)
        storage.write_text(path, page)
    except OSError as error:
        raise _unusable(out, error) from None
    return path
