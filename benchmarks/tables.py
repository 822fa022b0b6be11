"""Figures as text, and what they depend on."""

import importlib.metadata
import os
import platform
import re
import subprocess
import time
from pathlib import Path


def environment(*packages: str) -> dict[str, str]:
    """Return what the figures depend on: machine, versions of these packages, commit, date."""
    models = re.findall(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.M)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    processor = (models or [platform.machine()])[0]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return {
        "machine": f"{processor}, {os.cpu_count()} cores, {memory:.0f} GB",
        "versions": ", ".join([f"python {platform.python_version()}", *versions]),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def commit() -> str:
    """Return the commit and whether files differ from it, or that there is no git."""
    git = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent)]
    quiet = {"stderr": subprocess.DEVNULL, "text": True}
    try:
        head = subprocess.check_output([*git, "rev-parse", "--short", "HEAD"], **quiet)
        changed = subprocess.check_output([*git, "status", "--porcelain"], **quiet)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.strip() + (" with changes" if changed else "")


def text(rows: dict[str, dict[str, float]]) -> str:
    columns = list(next(iter(rows.values())))
    cells = [["", *columns]]
    cells += [[name, *(f"{row[column]:.3g}" for column in columns)] for name, row in rows.items()]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells
    )
