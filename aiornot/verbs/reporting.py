"""The verb ``report``; ``tune`` ends with it as well."""

from pathlib import Path
from typing import Annotated, Any

import typer

from aiornot.config import InputError
from aiornot.verbs.common import PREPARED, JsonOption


def report(
    chain: Annotated[str, typer.Argument(help="Chain or run below --storage.")],
    storage: Annotated[str, typer.Option(help="Where runs lie: a folder or s3://...")] = "runs",
    data: Annotated[
        str, typer.Option(help="Folder of the prepared files, for the sizes of the splits.")
    ] = PREPARED,
    out: Annotated[
        Path | None, typer.Option(help="File of the page; report.html in the run's folder.")
    ] = None,
    with_images: Annotated[
        bool,
        typer.Option("--with-images", help="Link the errors page, if that was made with images."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write one page on a run: verdict, funnel, cost, curves, robustness, errors, how to repeat it.

    The page needs no other file and no network; the same as JSON is written beside it.

    Example: aiornot report fast
    """
    from aiornot import console

    path, found = write(chain, storage=storage, data=data, out=out, with_images=with_images)
    for told in found["missing"].values():
        console.say(" ".join(filter(None, told.values())))
    if as_json:
        console.print_json(found)
    else:
        print(path)


def write(
    run: str,
    *,
    storage: str,
    data: str,
    out: Path | None = None,
    with_images: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """Write the page of a run, by default into its folder, and return its path and content."""
    from aiornot.delivery import report as reports
    from aiornot.delivery import report_page
    from aiornot.storage import is_remote

    home = Path("runs") if is_remote(storage) else Path(storage)
    path = out or home / run / report_page.PAGE
    if path.is_dir() or path.suffix != ".html":
        raise InputError(f"--out {path}: give a file that ends in .html")
    found = reports.collect(
        run, root=storage, folder=home / run, data=data, human=home / reports.HUMAN
    )
    gallery = reports.gallery(home / run, path) if with_images else None
    return report_page.write(path, found, gallery=gallery), found
