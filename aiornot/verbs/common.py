"""What several verbs share: options that read alike, and how their values are understood."""

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from aiornot.config import InputError, TrainConfig


def _a_device(name: str) -> str:
    if not re.fullmatch(r"auto|(cpu|cuda|mps|xpu)(:\d+)?", name):
        raise InputError(f"--device {name}: use auto, cpu, cuda or cuda:N")
    return name


def a_rule(text: str | None) -> str | None:
    if text is not None:
        from aiornot.delivery import calibrate

        calibrate.check_rule(text)
    return text


def _a_mode(text: str) -> str:
    from aiornot.training import account

    account.resolve_mode(text)
    return text


# A value that is none is refused while the command line is read: before hours of training, and
# before torch is imported, which takes seconds.
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
WandbOption = Annotated[str, typer.Option(help="auto, or off.", callback=_a_mode)]
TensorboardOption = Annotated[
    bool, typer.Option("--tensorboard", help="Write event files for TensorBoard, too.")
]
DeviceOption = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1, ...; auto prefers a GPU.", callback=_a_device)
]
RuleOption = Annotated[
    str | None,
    typer.Option(
        help='How the threshold is chosen on val: balanced, "fpr<=0.01", "fnr<=0.01", '
        "cost:FP=5. Kept with the bundle; balanced at first.",
        callback=a_rule,
    ),
]
DataOption = Annotated[
    str, typer.Option(help="Folder of the prepared files, or one file; s3://... is fetched once.")
]
PREPARED = "data/prepared"


def check_folders(folders: dict[str, Path | None]) -> None:
    for name, folder in folders.items():
        if folder is not None and folder.is_file():
            raise InputError(f"{name} {folder}: there is a file of that name; give a folder")


@contextmanager
def results_alone() -> Iterator[None]:
    """Send to stderr what Ray prints to stdout meanwhile, of dead nodes and full memory."""
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def alone(run: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder meanwhile.

    The lock lies beside the folder, which ``--fresh`` moves away.

    Raises:
        InputError: Another one is at work there.
    """
    from aiornot import lock

    place = run.resolve()

    def refuse(who: str) -> InputError:
        return InputError(f"{run}: {who} is at work on this run; let it end first, or end it")

    with lock.held(place.with_name(f".{place.name}.lock"), refuse):
        yield


def check_trainable(config: TrainConfig, path: Path) -> None:
    """Refuse what cannot be trained on a prepared file before anything is written."""
    from aiornot.data import hdf5
    from aiornot.training import loader, model
    from aiornot.training import run as runs

    model.check(config, size=int(hdf5.attributes(path)["size"]))
    num_train = loader.prefix(hdf5.slots(path)["train"].count, config.train_fraction)
    runs.check_steps(config, num_train=num_train, data=path)


def print_bundle(folder: Path) -> None:
    from aiornot import console
    from aiornot.delivery import manifest

    description = manifest.read(folder)
    note = description["data"].get("source_note")
    print(folder)
    auroc = description["val"]["metrics"]["auroc"]
    console.say(f"delivered {folder}: val AUROC {auroc:.4f}" + (f" ({note})" if note else ""))


def prepared(data: str, profile: str) -> Path:
    """Return the prepared file that ``--data`` means: itself, or the profile's in a folder.

    Of one in an object store it is the copy on this machine.

    Raises:
        InputError: It is not there.
    """
    from aiornot import storage

    if not storage.is_remote(data):
        return _local(data, profile)
    from aiornot import console
    from aiornot.data import copies

    url = data if data.endswith(".h5") else storage.join(data, f"{profile}.h5")
    with console.counting() as counter:
        return copies.fetch(url, progress=counter.update)


def _local(data: str, profile: str) -> Path:
    if Path(data).is_file():
        return Path(data)
    if data.endswith(".h5"):
        raise InputError(f"--data {data}: no such file; make it with 'aiornot prepare'")
    path = Path(data) / f"{profile}.h5"
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; name the folder of the prepared files, or one of them, with "
            f"--data, or make it with 'aiornot prepare SOURCE --out {data} --profile {profile}'"
        )
    return path


def prepared_for(bundle: Path, data: str) -> Path:
    """Return the prepared file in ``--data`` that a bundle is scored on: its own profile's.

    Raises:
        InputError: It is not there, or the other is no bundle.
    """
    from aiornot.delivery import manifest

    return prepared(data, manifest.read(bundle)["data"]["profile"] or "full")


def prepared_folder(data: str, profiles: Iterable[str]) -> Path:
    """Return the folder of the prepared files that ``--data`` means.

    Of one in an object store it is that of the copies, with the files of these profiles in it.
    """
    from aiornot import storage
    from aiornot.data import copies

    if storage.is_remote(data):
        if data.endswith(".h5"):
            raise InputError(f"--data {data}: give the folder of the prepared files")
        for profile in profiles:
            prepared(data, profile)
    return copies.folder_of(data)


def torch_device(name: str) -> Any:
    """Return the torch device of a name."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name}: there is no GPU here; use --device cpu")
    return device
