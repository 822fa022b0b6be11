"""The command: which verbs there are, and what a user sees when one of them fails.

stdout is the result, stderr the talk. Exit code 0: done, 1: the work failed, 2: used wrongly.
"""

import errno
import os
import sys
from typing import Annotated

import typer

from aiornot import __version__
from aiornot.config import InputError, WorkError
from aiornot.verbs import cluster, data, delivery, page, reporting, training, tuning


def _version(is_asked: bool) -> None:
    if is_asked:
        print(f"aiornot {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print it, and no more."),
    ] = False,
) -> None:
    """Hold the options that are of no verb."""


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Tune a detector of AI-generated images: parquet in, calibrated model out.",
)
app.callback()(_options)
app.command("demo-data")(data.demo_data)
app.command()(data.audit)
app.command()(data.prepare)
app.command()(training.train)
app.command()(training.probe)
app.command()(tuning.tune)
app.command()(tuning.show)
app.command()(reporting.report)
app.command()(delivery.fetch)
app.command()(delivery.calibrate)
app.command()(delivery.evaluate)
app.command()(delivery.robustness)
app.command()(delivery.errors)
app.command()(delivery.verify)
app.command()(delivery.export)
app.command()(delivery.predict)
app.command()(cluster.doctor)
app.command()(page.app)
app.command()(page.human)

_EXTRAS = {
    "ray": "ray",
    "optuna": "ray",
    "wandb": "wandb",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "gradio": "app",
}
"""Which extra brings a library."""

_NO_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
"""Why a file may not be written, where only the user can help."""

_INTERRUPTED = 130
"""What typer makes of Ctrl-C."""

_ENVIRONMENT = {
    # What Ray says of every Ray Train run inside a trial: its processes share few cores.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "PYTHON worker processes have been started on node",
}
"""Ray reads it when it is imported; whoever set it otherwise is obeyed."""


def main() -> None:
    """Run a verb; turn what the user can mend into one sentence and an exit code."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        app(standalone_mode=True)
    except InputError as error:
        _stop(error, 2)
    except WorkError as error:
        _stop(error, 1)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(error.name or "")
        if extra is None:
            raise
        # Not by its name: the one on the package index is somebody else's.
        _stop(f"{error.name} is not installed; in the source tree: pip install -e '.[{extra}]'", 2)
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
        place = error.filename or "the disk"
        _stop(f"{place}: {error.strerror}; make room there, or give another place", 2)
    except SystemExit as end:
        if end.code != _INTERRUPTED:
            raise
        _stop("interrupted; the same command goes on from here", 1)


def _stop(message: object, code: int) -> None:
    sys.stderr.write(f"aiornot: {message}\n")
    sys.exit(code)
