"""Datasets on the Hugging Face hub, to read: ``hf://datasets/OWNER/NAME[@REVISION][/PATH]``.

``aiornot prepare hf://datasets/OWNER/NAME`` comes here through ``storage.py``. Token and endpoint
are those that huggingface_hub finds in each process (HF_TOKEN or ``hf auth login``, HF_ENDPOINT);
no message holds the token.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import responses
from typing import Any

import pyarrow as pa
from huggingface_hub import HfFileSystem, errors, get_token
from pyarrow import fs

from aiornot.config import InputError

_ADDRESS = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(@[^/]+)?(/.*)?")
_KINDS = ("dataset", "datasets", "model", "models", "space", "spaces", "kernels", "buckets")
_LOGIN = "set HF_TOKEN or run 'hf auth login'"


def connect(path: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of the hub, whose errors are sentences, and the path in it.

    Raises:
        InputError: The address is misspelt, or there is no such dataset for us.
    """
    _check_address(path)
    _check_token(path)
    system = HfFileSystem()
    inner = path.removeprefix("hf://")
    with _explaining(path):
        # Asks once per process whether dataset and revision are there, and does not try again:
        # without a network this fails at once, where a listing would retry for 23 s.
        system.resolve_path(inner)
    return fs.PyFileSystem(_Handler(system)), inner


def _check_address(path: str) -> None:
    if _ADDRESS.fullmatch(path):
        return
    first, _, rest = path.removeprefix("hf://").partition("/")
    meant = f"hf://datasets/{rest}" if first in _KINDS else f"hf://datasets/{first}/{rest}"
    if not _ADDRESS.fullmatch(meant):
        meant = "hf://datasets/OWNER/NAME[@REVISION][/PATH]"
    raise InputError(f"{path}: only datasets of the hub are read; write {meant}")


def _check_token(path: str) -> None:
    # The HTTP client would refuse it too, in a message that shows it.
    if not re.fullmatch(r"[!-~]*", get_token() or ""):
        raise InputError(f"{path}: what is set as HF_TOKEN is no token; {_LOGIN}")


@contextmanager
def _explaining(path: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a network's are the client's own, no OSError
        # The client hides a dataset that is refused behind a file that is not found.
        cause = error.__cause__ if isinstance(error, FileNotFoundError) else None
        raise InputError(f"{path} {_reason(cause or error, path)}") from None


class _Handler(fs.FSSpecHandler):  # type: ignore[misc]  # pyarrow has no types
    """As Arrow's own, but every error names the dataset and says what to do."""

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        with _explaining(f"hf://{paths[0]}"):
            return super().get_file_info(paths)  # type: ignore[no-any-return]

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        with _explaining(f"hf://{selector.base_dir}"):
            return super().get_file_info_selector(selector)  # type: ignore[no-any-return]

    def open_input_file(self, path: str) -> pa.PythonFile:
        with _explaining(f"hf://{path}"):
            return pa.PythonFile(_File(path, self.fs.open(path)), mode="r")

    def open_output_stream(self, path: str, metadata: Any) -> None:
        raise InputError(f"hf://{path}: the hub is only read here; give a folder or s3://")


class _File:
    """A file of the hub. What it gates it lists all the same: only a read is refused."""

    def __init__(self, path: str, file: Any) -> None:
        self._path = path
        self._file = file

    def read(self, size: int = -1) -> bytes:
        with _explaining(f"hf://{self._path}"):
            data: bytes = self._file.read(size)
            return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _reason(error: BaseException, path: str) -> str:
    address = _ADDRESS.fullmatch(path)
    name = address[1] if address else path
    token = get_token()
    page = f"https://huggingface.co/datasets/{name}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError) and token:
        return (
            "is gated and the hub refused the token that is set: accept the conditions at "
            f"{page} with its account, and let the token read gated repositories"
        )
    if isinstance(error, errors.GatedRepoError):
        return f"is gated and no token is set: accept the conditions at {page}, then {_LOGIN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"does not exist: {name} has no such revision"
    if isinstance(error, errors.RepositoryNotFoundError) and token:
        return (
            "does not exist, or the token that is set may not see it: check the name; for access "
            f"accept the conditions at {page} with the token's account, or {_LOGIN} with another"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "does not exist, or is private or gated and no token is set: check the name; for "
            f"access accept the conditions at {page}, then {_LOGIN}"
        )
    if status in (401, 403) and token:
        return f"cannot be read: the hub refused the token that is set ({status}); {_LOGIN} anew"
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if status is not None:
        return f"cannot be read: the hub answers {status} {responses.get(status, '')}".rstrip()
    return f"cannot be reached: {_without_secrets(str(error), token)}"


def _without_secrets(text: str, token: str | None) -> str:
    line = text.partition("\n")[0]
    line = line.replace(token, "***") if token else line
    return re.sub(r"//[^/@\s]+@", "//", line)  # a proxy's or an endpoint's password
