"""The verb of machines: ``doctor``."""

import dataclasses
import importlib.util
import os
import sys
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from aiornot.config import InputError
from aiornot.verbs.common import JsonOption

if TYPE_CHECKING:
    from rich.table import Table

    from aiornot.doctor import Finding
    from aiornot.survey import Node, Survey

RAY_FOLDER = "/tmp/ray"
"""Where a Ray that is started here writes."""


def doctor(
    storage: Annotated[str, typer.Option(help="Where runs will lie: a folder or s3://...")] = (
        "runs"
    ),
    data: Annotated[
        str | None, typer.Option(help="Folder of the prepared files, or s3://..., to be looked at.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds that a node may take for an answer.")
    ] = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Look for what would keep a run from working, here or on each node of the Ray in RAY_ADDRESS.

    A line per check: ok, warn or fail, and how to mend it. Exit code 1 where one fails.
    Each node writes a small file to --storage; the driver reads it, and it is removed.

    Example: aiornot doctor --storage s3://bucket/runs
    """
    from aiornot import console, doctor
    from aiornot.storage import absolute, check_address

    for address in (storage, data or ""):
        check_address(address)
    survey = _survey(absolute(storage), None if data is None else absolute(data), timeout)
    findings = doctor.examine(survey)
    well = doctor.is_well(findings)
    if as_json:
        listed = [dataclasses.asdict(finding) for finding in findings]
        nodes = [dataclasses.asdict(node) for node in survey.nodes]
        console.print_json({"well": well, "findings": listed, "nodes": nodes})
    else:
        _print(findings)
    if not well:
        sys.exit(1)


def _survey(storage: str, data: str | None, timeout: float) -> "Survey":
    """Ask the cluster where there is one, and else this machine."""
    from aiornot.survey import Node, Survey
    from aiornot.training import account

    nodes: list[Node] = []
    cluster, trouble = None, ""
    if os.environ.get("RAY_ADDRESS"):
        from aiornot import console, ray_doctor

        console.say(f"asking the nodes of {os.environ['RAY_ADDRESS']}")
        asked = ray_doctor.Asked(storage=storage, data=data, seconds=timeout)
        try:
            nodes, cluster = ray_doctor.survey(asked)
        except InputError as error:
            trouble = str(error)
    return Survey(
        nodes=nodes or [_here(storage, data)],
        cluster=cluster,
        trouble=trouble,
        beside="" if os.environ.get("RAY_ADDRESS") else _beside(),
        storage=storage,
        data=data,
        wandb=account.resolve_mode("auto"),
        has_account=account.has_account(),
    )


def _beside() -> str:
    if importlib.util.find_spec("ray") is None:
        return ""
    from aiornot import ray_session

    return ray_session.running_here() or ""


def _here(storage: str, data: str | None) -> "Node":
    """Ask this machine as each node of a cluster is asked."""
    from aiornot import machine
    from aiornot.data import copies
    from aiornot.survey import Node

    probe = f"{storage.rstrip('/')}/.aiornot-doctor-{uuid.uuid4().hex[:8]}"
    missing = machine.num_missing(storage)
    failure = machine.write_probe(probe, "probe")
    machine.remove_probe(probe, missing)
    return Node(
        name="here",
        facts=machine.facts(ray_folder=RAY_FOLDER, cache=copies.cache_folder()),
        storage=failure,
        data=None if data is None else machine.prepared(data),
    )


_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def _print(findings: "Sequence[Finding]") -> None:
    """Print a line each; in a terminal those that are too long go on below themselves."""
    if sys.stdout.isatty():
        from rich.console import Console

        Console(highlight=False).print(table(findings))
        return
    for finding in findings:
        mend = f"; {finding.mend}" if finding.mend else ""
        print(f"{finding.status:<4}  {finding.what:<12}  {finding.where}: {finding.found}{mend}")


def table(findings: "Sequence[Finding]") -> "Table":
    """Return the findings for a terminal: status, what and where stay whole, the rest is folded."""
    from rich.table import Table
    from rich.text import Text

    made = Table.grid(padding=(0, 2))
    made.add_column(no_wrap=True)
    made.add_column(no_wrap=True)
    made.add_column(max_width=22)
    made.add_column(overflow="fold")
    for finding in findings:
        told = Text(finding.found)
        if finding.mend:
            told.append(f"\n-> {finding.mend}", style="bold")
        status = Text(finding.status, style=_COLOURS[finding.status])
        made.add_row(status, finding.what, finding.where, told)
    return made
