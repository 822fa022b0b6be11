"""What a machine says of itself: versions, GPUs, disks, clock, and whether it holds its secrets.

``aiornot doctor`` asks this of every node; all of it is plain values, and none of it a secret.
"""

import hashlib
import importlib.util
import os
import platform
import shutil
import socket
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import aiornot
from aiornot import storage

PACKAGES = ("ray", "torch", "timm", "numpy", "pyarrow", "h5py", "pillow", "optuna")
"""Which must be the same on every node, or trials and pixels differ from node to node."""

SHARED_MEMORY = "/dev/shm"

Facts = dict[str, Any]


def facts(*, ray_folder: str, cache: Path) -> Facts:
    """Return what this machine is.

    Args:
        ray_folder: Where Ray writes: logs, and objects that memory does not hold.
        cache: Where copies of prepared files lie.
    """
    return {
        "host": socket.gethostname(),
        "versions": versions(),
        "gpus": gpus(),
        "disks": {"Ray's files": disk(Path(ray_folder)), "prepared files": disk(cache)},
        "shared_memory": disk(Path(SHARED_MEMORY)),
        "token": token(),
        "hugging_face": hugging_face(),
    }


def versions() -> dict[str, str]:
    """Return the versions of what computes, of our own source as a hash, too: it may be a copy."""
    found = {"python": platform.python_version(), "aiornot": aiornot.__version__}
    found["source"] = _source()
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def _source() -> str:
    home = Path(aiornot.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(home.rglob("*.py")):
        digest.update(path.relative_to(home).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def gpus() -> dict[str, Any]:
    """Return how many GPUs the driver has, and how many torch can use."""
    count = _gpus_of_the_driver()
    if not count or importlib.util.find_spec("torch") is None:
        return {"driver": count, "torch": 0, "cuda": None, "visible": None}
    import torch  # takes seconds

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {
        "driver": count,
        "torch": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "cuda": torch.version.cuda,
        "visible": visible,
    }


def _gpus_of_the_driver() -> int:
    try:
        import pynvml

        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    except Exception:  # no driver, or none that works: its errors are its own
        return 0


def disk(folder: Path) -> dict[str, Any] | None:
    """Return size and room of the disk that a folder, there or not yet, lies on."""
    here = folder
    while not here.exists() and here != here.parent:
        here = here.parent
    try:
        usage = shutil.disk_usage(here)
    except OSError:
        return None
    return {"path": str(folder), "total": usage.total, "free": usage.free}


def token_path() -> Path:
    """Return where Ray keeps the token of this user."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def token() -> dict[str, Any]:
    """Return whether Ray is to ask for a token, and who may read it; never the token."""
    path = token_path()
    found: dict[str, Any] = {"mode": os.environ.get("RAY_AUTH_MODE", ""), "file": str(path)}
    return found | {"open": _others_may_read(path)}


def _others_may_read(path: Path) -> bool:
    """Tell whether another user of this machine gets as far as a file, and may read it."""
    try:
        way = [folder.stat().st_mode & 0o011 for folder in path.absolute().parents]
        return all(way) and bool(path.stat().st_mode & 0o044)
    except OSError:
        return False


def hugging_face() -> dict[str, Any]:
    """Return whether weights can be fetched to this machine, and whether there is a token."""
    from huggingface_hub import constants, get_token

    cache = Path(constants.HF_HUB_CACHE)
    here = cache
    while not here.exists() and here != here.parent:
        here = here.parent
    return {
        "cache": str(cache),
        "writable": os.access(here, os.W_OK | os.X_OK),
        "token": get_token() is not None,
        "offline": bool(constants.HF_HUB_OFFLINE),
    }


def clock() -> float:
    """Return the seconds since 1970 by this machine's clock."""
    return time.time()


def write_probe(path: str, text: str) -> str:
    """Write a small file; return what is wrong, nothing where it can be read again."""
    try:
        storage.write_text(path, text)
        if storage.read_text(path) != text:
            return "what was written is not what is read"
    except Exception as error:  # each store has its own
        return _one_line(error)
    return ""


def read_probe(path: str) -> str | None:
    """Return the text of a small file, None where it is not there."""
    try:
        return storage.read_text(path)
    except Exception:
        return None


def remove_probe(path: str, folders: int = 0) -> None:
    """Remove a small file, and so many of the folders above it, from below, if they are empty."""
    try:
        storage.delete(path)
        for folder in list(Path(path).parents)[:folders]:
            folder.rmdir()
    except Exception:
        return  # a litter of a few bytes; that it cannot be written is told elsewhere


def num_missing(folder: str) -> int:
    """Return how many folders a local path lacks: those a probe makes."""
    if storage.is_remote(folder):
        return 0
    path = Path(folder).absolute()
    return sum(not parent.exists() for parent in (path, *path.parents))


def prepared(folder: str) -> dict[str, int] | str:
    """Return name and size of the prepared files in a folder, or what is wrong with it."""
    try:
        paths = storage.list_files(folder, suffix=".h5")
        return {path.rpartition("/")[2]: storage.stat(path)[0] for path in paths}
    except Exception as error:
        return _one_line(error)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
