"""The verbs of data: ``demo-data``, ``audit``, ``prepare``."""

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from aiornot.config import InputError
from aiornot.verbs import common
from aiornot.verbs.common import PREPARED, JsonOption


def demo_data(
    out: Annotated[Path, typer.Argument(help="Folder of the parquet shards.")],
    num_images: Annotated[int, typer.Option(help="How many, half of each class.")] = 4000,
    size: Annotated[int, typer.Option(help="Side in pixels.")] = 64,
    difficulty: Annotated[float, typer.Option(help="0 (plain traces) to 1 (none).")] = 0.25,
    generators: Annotated[str, typer.Option(help="Families of traces, comma-separated.")] = "",
    bias: Annotated[str, typer.Option(help="format: plant a leak (generated = PNG).")] = "none",
    seed: Annotated[int, typer.Option()] = 0,
    num_files: Annotated[
        int, typer.Option(help="Also write this many further images as files, to predict.")
    ] = 0,
) -> None:
    """Write the synthetic stand-in dataset: same columns as the real one, no download.

    Example: aiornot demo-data demo/parquet
    """
    from aiornot import console
    from aiornot.data import demo, synthesis

    if bias not in ("none", "format"):
        raise InputError(f"--bias {bias}: use none or format")
    chosen = tuple(generators.split(",")) if generators else synthesis.GENERATORS
    with console.counting() as counter:
        made = 0

        def progress(count: int) -> None:
            nonlocal made
            made += count
            counter.update("making images", made, num_images)

        paths = demo.write(
            out,
            num_images=num_images,
            size=size,
            difficulty=difficulty,
            generators=chosen,
            bias=bias,  # type: ignore[arg-type]  # checked above
            seed=seed,
            progress=progress,
        )
    paths += demo.write_files(
        out / "images",
        first=num_images,
        count=num_files,
        size=size,
        difficulty=difficulty,
        seed=seed,
    )
    for path in paths:
        print(path)


def audit(
    source: Annotated[str, typer.Argument(help="Parquet file, folder, glob, s3:// or hf://...")],
    out: Annotated[str, typer.Option(help="Folder of the page, or s3://...")] = "runs/audit",
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Show small samples in the page.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of the splits and the samples.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Say what in a source would let a detector cheat: formats, sizes, duplicates, metadata.

    Writes audit.html, one page that needs no other file, and audit.json.

    Example: aiornot audit data/aiornot --out runs/audit
    """
    from aiornot import console
    from aiornot.data import audit as auditing
    from aiornot.data import audit_page, pages

    pages.check_out(out)
    with console.counting() as counter:
        found = auditing.measure(source, with_images=images, seed=seed, progress=counter.update)
    path = audit_page.write(out, found)
    for line in auditing.summary(found.report):
        console.say(line)
    if as_json:
        console.print_json(found.report)
    else:
        print(path)


def prepare(
    source: Annotated[str, typer.Argument(help="Parquet file, folder, glob, s3:// or hf://...")],
    out: Annotated[str, typer.Option(help="Folder of the prepared files, or s3://...")] = PREPARED,
    profile: Annotated[str, typer.Option(help="debug, reduced or full.")] = "full",
    size: Annotated[int | None, typer.Option(help="Side in pixels instead of the profile's.")] = (
        None
    ),
    limit: Annotated[int | None, typer.Option(help="Only the first rows of the source.")] = None,
    geometry: Annotated[str, typer.Option(help="resize, or crop: no resampling.")] = "resize",
    resample: Annotated[
        str, typer.Option(help="bicubic: Pillow's to the bit; fast: a few grey levels off.")
    ] = "bicubic",
    near_duplicates: Annotated[
        str, typer.Option(help="Bits of 128 in which hashes of one image may differ, or off.")
    ] = "10",
    hold_out: Annotated[
        str | None, typer.Option(help="Leave this generator's images out of train and val.")
    ] = None,
    max_rejected: Annotated[float, typer.Option(help="Share of images that may be bad.")] = 0.01,
    seed: Annotated[int, typer.Option(help="Of the splits.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Decode parquet shards of labelled images into one HDF5 file, with Ray Data.

    Example: aiornot prepare data/aiornot --out data/prepared --profile reduced
    """
    from aiornot.data import layout

    if profile not in layout.PROFILES:
        raise InputError(f"--profile {profile}: use {', '.join(layout.PROFILES)}")
    if geometry not in ("resize", "crop"):
        raise InputError(f"--geometry {geometry}: use resize or crop")
    if resample not in ("bicubic", "fast"):
        raise InputError(f"--resample {resample}: use bicubic or fast")
    if near_duplicates != "off" and not near_duplicates.isdigit():
        raise InputError(f"--near-duplicates {near_duplicates}: give a number of bits, or off")
    base = layout.PROFILES[profile]
    wanted = dataclasses.replace(
        base,
        size=base.size if size is None else size,
        limit=base.limit if limit is None else limit,
        geometry=geometry,  # type: ignore[arg-type]  # checked above
        resample=resample,  # type: ignore[arg-type]  # checked above
    )

    from aiornot import console, storage
    from aiornot.data import copies, ray_prepare

    path = storage.join(out, f"{profile}.h5")
    remote = storage.is_remote(out)
    with (
        common.results_alone(),
        console.counting() as counter,
        copies.published(path, progress=counter.update)
        if remote
        else nullcontext(Path(out)) as folder,
    ):
        summary = ray_prepare.prepare(
            source,
            folder,
            wanted,
            seed=seed,
            near_duplicates=None if near_duplicates == "off" else int(near_duplicates),
            hold_out=hold_out,
            max_rejected=max_rejected,
            alone=remote,
            progress=counter.update,
        )
    if as_json:
        console.print_json(dataclasses.asdict(summary) | {"path": path})
        return
    counts = ", ".join(f"{split} {count}" for split, count in summary.counts.items())
    print(f"{path}: {counts}; {summary.rejected} rejected")
    if summary.skipped:
        console.say(f"{path} was finished before, from the same rows and settings")
    if summary.replaced:
        console.say(f"{path} was of another source or other settings, and was replaced")
    if summary.duplicates:
        console.say(
            f"{summary.duplicates} rows show the same as an earlier one and stand in its split, "
            f"{summary.conflicts} groups of them under both labels; "
            f"{path.removesuffix('.h5')}.splits.json lists them"
        )
