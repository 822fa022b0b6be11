"""The verbs that open a page in the browser: ``app``, ``human``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aiornot.config import InputError
from aiornot.verbs import common
from aiornot.verbs.common import PREPARED, DataOption, DeviceOption

if TYPE_CHECKING:
    from aiornot.delivery.app import Show

SplitOption = Annotated[str, typer.Option(help="Of the benchmark: val, or test, which is counted.")]
NumOption = Annotated[int, typer.Option(help="Images of the benchmark, half of them real.")]
SeedOption = Annotated[int, typer.Option(help="Which images; another round takes the next.")]
OutOption = Annotated[
    Path | None, typer.Option(help="File for the answers; by default runs/human/<time>.json.")
]
PortOption = Annotated[int, typer.Option(help="Of this machine; 0 takes a free one.")]
OpenOption = Annotated[bool, typer.Option("--open/--no-open", help="Open the browser.")]


def app(
    bundle: Annotated[Path, typer.Argument(help="Folder of a delivered model.")],
    data: Annotated[
        str | None,
        typer.Option(help="Prepared files for the benchmark; data/prepared if it is there."),
    ] = None,
    split: SplitOption = "val",
    num: NumOption = 50,
    seed: SeedOption = 0,
    out: OutOption = None,
    port: PortOption = 7860,
    browser: OpenOption = True,
    device: DeviceOption = "auto",
) -> None:
    """Try a model on images in the browser, and measure yourself against it.

    Example: aiornot app runs/fast/bundle
    """
    from aiornot.delivery import manifest

    _check_out(out)
    profile = manifest.read(bundle)["data"].get("profile") or "full"
    found = data or (PREPARED if Path(PREPARED, f"{profile}.h5").is_file() else None)
    path = common.prepared(found, profile) if found else None

    from aiornot.data import hdf5
    from aiornot.delivery import bundle as bundles
    from aiornot.delivery import human as humans

    loaded = bundles.load(bundle, device=common.torch_device(device))
    sample = None
    if path is not None:
        bundles.check_scorable(loaded, hdf5.attributes(path), data=path)
        sample = humans.draw(path, split=split, num=num, seed=seed)
    from aiornot.delivery import app as apps  # only now: Gradio takes seconds

    show = apps.Show(bundle=loaded, folder=bundle, sample=sample, out=out)
    _serve(show, port=port, browser=browser)


def human(
    data: DataOption = PREPARED,
    profile: Annotated[str, typer.Option(help="debug, reduced or full.")] = "full",
    bundle: Annotated[
        Path | None, typer.Option(help="A delivered model, asked the same at the end.")
    ] = None,
    split: SplitOption = "val",
    num: NumOption = 50,
    seed: SeedOption = 0,
    out: OutOption = None,
    port: PortOption = 7860,
    browser: OpenOption = True,
    device: DeviceOption = "auto",
) -> None:
    """Measure yourself: is each of 50 images real or generated? The answers are kept as JSON.

    Example: aiornot human --data data/prepared --bundle runs/fast/bundle
    """
    _check_out(out)
    path = common.prepared(data, profile)

    from aiornot.data import hdf5
    from aiornot.delivery import bundle as bundles
    from aiornot.delivery import human as humans

    sample = humans.draw(path, split=split, num=num, seed=seed)
    loaded = None
    if bundle is not None:
        loaded = bundles.load(bundle, device=common.torch_device(device))
        bundles.check_scorable(loaded, hdf5.attributes(path), data=path)
    from aiornot.delivery import app as apps  # only now: Gradio takes seconds

    show = apps.Show(bundle=loaded, folder=bundle, sample=sample, out=out, only_benchmark=True)
    _serve(show, port=port, browser=browser)


def _check_out(out: Path | None) -> None:
    """Refuse a place that cannot be written, before fifty answers and not after them."""
    if out is None:
        return
    if out.is_dir():
        raise InputError(f"--out {out}: this is a folder; give a file")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir():
        raise InputError(f"--out {out}: {above} is a file; give another place")


def _serve(show: "Show", *, port: int, browser: bool) -> None:
    import webbrowser

    from aiornot import console
    from aiornot.delivery import app as apps
    from aiornot.delivery import host

    with apps.served(show, port=port) as address:
        print(address, flush=True)
        console.say("the page is open to this machine alone; Ctrl-C stops it")
        if browser:
            webbrowser.open(address)
        host.wait()
