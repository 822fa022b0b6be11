"""A delivered model and its report beside the run they come from, in an object store.

``aiornot tune fast --storage s3://bucket/runs`` keeps them there, since the machine it ran on may
be gone tomorrow; ``aiornot fetch fast --storage s3://bucket/runs`` brings them.
"""

import shutil
from contextlib import suppress
from pathlib import Path

from aiornot import storage
from aiornot.config import InputError
from aiornot.delivery import manifest

BUNDLE = "bundle"

PAGES = ("report.html", "report.json")


def keep(home: Path, root: str) -> None:
    """Put the bundle and the report of a run beside its ledger; an equal bundle is left alone.

    Args:
        home: The folder of the run on this machine.
        root: Its folder in the store.
    """
    place = storage.join(root, BUNDLE)
    if not _is_kept(home / BUNDLE, place):
        storage.put_folder(home / BUNDLE, place)
    for name in PAGES:
        if (home / name).exists():
            storage.put_file(storage.join(root, name), home / name)


def _is_kept(bundle: Path, place: str) -> bool:
    """Tell whether the same bundle is there, with the same baseline in it."""
    if not storage.exists(storage.join(place, storage.DONE)):
        return False
    names = (manifest.SUMS, f"{manifest.BASELINE}/{manifest.SUMS}")
    here = [(name, bundle / name) for name in names if (bundle / name).exists()]
    there = [storage.join(place, name) for name, _ in here]
    return all(
        storage.exists(path) and storage.read_text(path) == file.read_text()
        for path, (_, file) in zip(there, here, strict=True)
    )


def bring(root: str, home: Path) -> bool:
    """Fetch the bundle and the report of a run, and compare every byte with its hash.

    A bundle that is here already stays: it may have been scored on test since.

    Args:
        root: The folder of the run, local or remote.
        home: Where to; ``bundle`` in it is whole or not there.

    Returns:
        Whether the bundle is a new one here.

    Raises:
        InputError: None was delivered, another one is here, or a byte is wrong.
    """
    place, bundle = storage.join(root, BUNDLE), home / BUNDLE
    if not storage.exists(storage.join(place, storage.DONE)):
        raise InputError(f"{root}: no model is delivered there; 'aiornot show' says how far it is")
    for name in PAGES:
        with suppress(FileNotFoundError):
            storage.write_text(str(home / name), storage.read_text(storage.join(root, name)))
    if bundle.exists():
        if not _is_kept(bundle, place):
            raise InputError(f"{bundle} is another model; move it away, or give another --out")
        return False
    temporary = home / f"{BUNDLE}.part"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        storage.get_folder(place, temporary)
        manifest.check_sums(temporary)
        temporary.rename(bundle)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True
