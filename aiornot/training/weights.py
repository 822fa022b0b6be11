"""A model's first weights: a file, timm's cache, or the network, which is asked once and briefly.

``aiornot train --weights FILE`` starts from a file; ``model.build`` comes here for all of them.
"""

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import timm
import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # it is in its list
from safetensors import SafetensorError, safe_open
from timm.models import load_state_dict
from torch import nn

from aiornot.config import InputError, TrainConfig

FILE = "model.safetensors"
"""The weights in a folder: of a bundle, of a checkpoint, of a repository of timm's."""

PATIENCE = 5.0
"""Seconds the network has to answer. huggingface_hub would try six times, and for two names."""


def check(config: TrainConfig) -> None:
    """Refuse a file that is not there, or is none of weights, by a look at its first bytes.

    Raises:
        InputError: As said.
    """
    if config.weights is not None:
        _check_kind(_file(config.weights))


@contextmanager
def source(config: TrainConfig) -> Iterator[dict[str, Any]]:
    """Give what timm must know to load the first weights, as entries of its ``pretrained_cfg``.

    A file wins over ``pretrained``. Cached weights need no network. The others are fetched by timm
    itself, once per node: huggingface_hub locks each file, and for plain addresses we do. The model
    is to be created inside, while that lock is held and while a file is compared with the model.

    Raises:
        InputError: The file is no use, or the weights cannot be fetched.
    """
    if config.weights is not None:
        path = _file(config.weights)
        _check_readable(path)
        with _fitting(config):
            yield _overlay(path)
        return
    settings = timm.get_pretrained_cfg(config.model)
    if not config.pretrained:
        yield {}
    elif settings is None or not settings.has_weights:
        raise refusal(config, "timm has none for it")
    elif settings.hf_hub_id:
        yield _from_hub(config, settings)
    else:
        with _from_address(config, settings.url):
            yield {}


def refusal(config: TrainConfig, reason: str) -> InputError:
    if config.weights is not None:
        return InputError(
            f"weights={config.weights!r} does not fit model={config.model!r}: {reason}; "
            "give weights of that architecture"
        )
    return InputError(
        f"the pretrained weights of {config.model!r} cannot be had ({reason}); check the network "
        "and HF_HOME, give a file with --weights, or train from scratch with --set pretrained=false"
    )


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def _overlay(path: Path) -> dict[str, Any]:
    # Weights in timm's own names, not in those of the paper's code, which custom_load stands for.
    return {"file": str(path), "custom_load": False}


def _file(given: str) -> Path:
    path = Path(given)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise InputError(
            f"weights={given!r}: there is no file {path.absolute()}; give a .safetensors file or "
            "the folder of a bundle, which every machine that trains must have"
        )
    return path


_TORCH = (b"PK\x03\x04", b"\x80")
"""How a file of torch begins: a zip archive, and before torch 1.6 a pickle."""


def _check_kind(path: Path) -> None:
    """Refuse by its first bytes what was never a file of weights, and a cut one of safetensors."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt"):
                return
        except SafetensorError:
            raise InputError(
                f"{path} is no safetensors file, or not a whole one; download or copy it again"
            ) from None
    with path.open("rb") as file:
        if not file.read(4).startswith(_TORCH):
            raise InputError(
                f"{path} is no file of weights; give a .safetensors file, one of torch, or the "
                "folder of a bundle"
            )


def _check_readable(path: Path) -> None:
    """Refuse what is no weights, and pickles of more than tensors, which older timm would run."""
    _check_kind(path)
    if path.suffix == ".safetensors":
        return
    try:
        found = load_state_dict(str(path), weights_only=True)
    except Exception:  # whatever strangers' bytes make of an unpickler
        raise InputError(
            f"{path} is damaged, or holds more than tensors, which could run a program: convert "
            "it to safetensors where you trust it"
        ) from None
    if not any(isinstance(value, torch.Tensor) for value in found.values()):
        raise InputError(f"{path} holds no tensors by name; give a state_dict or safetensors")


_COMPARING = threading.Lock()


@contextmanager
def _fitting(config: TrainConfig) -> Iterator[None]:
    """Refuse weights of another architecture: timm leaves out what does not fit and only logs it.

    What it hands to ``load_state_dict`` is the file in the model's own names, resized to its image
    size, without the classifier. Only there can it be compared, and timm gives no way in.
    """
    thread = threading.get_ident()

    def compare(module: nn.Module, tensors: Mapping[str, Any], *args: Any, **options: Any) -> Any:
        if threading.get_ident() == thread:
            _check_fit(module, tensors, config)
        return load(module, tensors, *args, **options)

    with _COMPARING:
        load = nn.Module.load_state_dict
        nn.Module.load_state_dict = compare  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            nn.Module.load_state_dict = load  # type: ignore[method-assign]


def _check_fit(module: nn.Module, tensors: Mapping[str, Any], config: TrainConfig) -> None:
    wanted, found = _shapes(module.state_dict()), _shapes(tensors)
    # The norm before the head depends on the pooling in many transformers.
    free = tuple(f"{each}." for each in (*classifiers(module), "norm", "fc_norm", "attn_pool"))
    names = [each for each in wanted | found if not each.startswith(free)]
    unfit = [each for each in names if wanted.get(each) != found.get(each)]
    if unfit:
        missing = sum(each not in found for each in unfit)
        unknown = sum(each not in wanted for each in unfit)
        raise refusal(
            config,
            f"of {len(names)} tensors {missing} are missing, {unknown} unknown and "
            f"{len(unfit) - missing - unknown} of another shape (the first: {unfit[0]})",
        )


def _shapes(tensors: Mapping[str, Any]) -> dict[str, Any]:
    # The counters of batch norms are younger than some files.
    return {
        name: getattr(tensor, "shape", None)
        for name, tensor in tensors.items()
        if not name.endswith("num_batches_tracked")
    }


def classifiers(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the last layers, which are not taken over: most models have one."""
    settings: Any = module.pretrained_cfg
    names = settings["classifier"]
    if not names:
        raise InputError(f"{settings['architecture']} has no head to train; choose another model")
    return (names,) if isinstance(names, str) else tuple(names)


def _from_hub(config: TrainConfig, settings: Any) -> dict[str, Any]:
    repository, _, revision = settings.hf_hub_id.partition("@")
    pickled = settings.hf_hub_filename or constants.PYTORCH_WEIGHTS_NAME
    filename = pickled.replace(constants.PYTORCH_WEIGHTS_NAME, FILE)
    for candidate in (filename, pickled):
        cached = try_to_load_from_cache(repository, candidate, revision=revision or None)
        if isinstance(cached, str):
            _check_readable(Path(cached))
            return _overlay(Path(cached))
    try:
        url = hf_hub_url(repository, filename, revision=revision or None)
        get_hf_file_metadata(url, timeout=PATIENCE)
    except GatedRepoError:
        page = f"https://{_host()}/{repository}"
        reason = f"accept the conditions at {page}, then set HF_TOKEN or run 'hf auth login'"
        raise refusal(config, reason) from None
    except RepositoryNotFoundError:
        reason = f"{_host()} has no {repository}, or shows it only to a token in HF_TOKEN"
        raise refusal(config, reason) from None
    except EntryNotFoundError:
        pass  # an old repository: timm will ask for the pickle
    except Exception as error:  # the client's own kinds, no OSError
        raise refusal(config, f"{_host()} cannot be reached, {first_line(error)}") from None
    return {}


def _host() -> str:
    return urlsplit(constants.ENDPOINT).hostname or "the hub"


@contextmanager
def _from_address(config: TrainConfig, address: Any) -> Iterator[None]:
    """Let one process of this node at a time fetch a file; torch writes it whole or not at all."""
    url, filename = (address, None) if isinstance(address, str) else address
    cached = Path(torch.hub.get_dir()) / "checkpoints" / (filename or Path(urlsplit(url).path).name)
    if cached.exists():
        yield
        return
    cached.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(cached.with_name(f"{cached.name}.lock")):
        if not cached.exists():
            _ask(config, url)
        yield


def _ask(config: TrainConfig, url: str) -> None:
    """Fail within seconds where torch.hub, which sets no limit, would wait for minutes."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE).close()
    except urllib.error.HTTPError as error:
        if error.code in (404, 410):
            raise refusal(config, f"{url} is gone") from None
    except OSError as error:
        raise refusal(config, f"{url} cannot be reached, {first_line(error)}") from None
