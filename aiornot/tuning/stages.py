"""Stage files: found by name or folder, held to data, loaded as one chain.

``aiornot tune path/to/folder`` loads any folder of stage files through this room.
"""

import ast
import importlib
import itertools
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from aiornot.config import InputError
from aiornot.tuning.space import Stage


def lineage(stage: Stage) -> list[Stage]:
    """Return the stage with everything it comes after, first stage first."""
    chain = [stage]
    while chain[-1].after is not None:
        chain.append(chain[-1].after)
    return chain[::-1]


def sources(stage: Stage) -> list[Stage]:
    """Return the stages among whose trials a stage selects, first stage first."""
    if stage.after is None:
        return []
    if stage.pick_from == "parent":
        return [stage.after]
    earlier = lineage(stage.after)
    return [each for each in earlier if each.searches() and each.data == stage.after.data]


def find_chain(name: str) -> Path:
    """Return the folder of a chain: a path, or a name below ``tune_spaces/``.

    Raises:
        InputError: No such folder; the sentence lists the chains that exist.
    """
    package = Path(__file__).resolve().parents[1]
    roots = [Path("tune_spaces"), package.parent / "tune_spaces", package / "tune_spaces"]
    for folder in (Path(name), *(root / name for root in roots)):
        if folder.is_dir() and any(folder.glob("*.py")):
            return folder.resolve()
    known = sorted({p.parent.name for root in roots for p in root.glob("*/*.py")})
    raise InputError(
        f"no chain {name!r}: give a folder of stage files or one of {', '.join(known)}"
    )


def load_chain(folder: Path) -> list[Stage]:
    """Load every stage file of a folder, in the order of their ``after``.

    Raises:
        InputError: A file is not a stage file, or the stages do not form one chain.
    """
    _check_files(folder)
    package = _load_package(folder)
    with _no_bytecode():
        stages = [_load_stage(package.__name__, path) for path in sorted(folder.glob("[!_]*.py"))]
    parents = {id(stage.after) for stage in stages}
    leaves = [stage for stage in stages if id(stage) not in parents]
    if len(leaves) != 1:
        names = ", ".join(stage.name for stage in leaves)
        raise InputError(
            f"{folder}: the stages must follow one another through after=, "
            f"but more than one comes last: {names}"
        )
    return lineage(leaves[0])


_packages = itertools.count()


def _load_package(folder: Path) -> ModuleType:
    """Make the folder a package under a name of its own, so that ``from . import x`` works.

    Any folder may be a chain, so nothing is put on ``sys.path`` and two chains of one name do
    not meet.
    """
    name = f"_aiornot_chain_{next(_packages)}"
    module = ModuleType(name)
    module.__path__ = [str(folder)]
    sys.modules[name] = module
    return module


@contextmanager
def _no_bytecode() -> Iterator[None]:
    """Write no ``__pycache__``: it is trusted by second and size, so a quick edit would be missed.

    ``lr`` up to 1e-2 and then 1e-1 within one second is such an edit.
    """
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _load_stage(package: str, path: Path) -> Stage:
    try:
        module = importlib.import_module(f"{package}.{path.stem}")
    except InputError as error:
        raise InputError(f"{_place(path, error)}: {error}") from None
    except Exception as error:  # a stage file may be wrong in any way that Python knows
        text = str(error).replace(package, path.parent.name)
        raise InputError(f"{_place(path, error)}: {type(error).__name__}: {text}") from error
    stage = getattr(module, "stage", None)
    if not isinstance(stage, Stage):
        raise InputError(f"{path}: a stage file binds one name, stage = Stage(...)")
    if stage.name != path.stem:
        raise InputError(f"{path}: the stage is named {stage.name!r}; name it {path.stem!r}")
    return stage


def _place(path: Path, error: Exception) -> str:
    """Return the stage file and the line of an error; a sibling may have imported that file."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename).resolve().parent == path.resolve().parent]
    return f"{own[-1].filename}, line {own[-1].lineno}" if own else str(path)


def _check_files(folder: Path) -> None:
    if not any(folder.glob("[!_]*.py")):
        raise InputError(f"{folder}: no stage files (*.py) in this folder")
    for path in sorted(folder.glob("*.py")):  # _shared.py too: a stage may import it
        _check_is_data(path)


def _check_is_data(path: Path) -> None:
    """Hold a stage file to data: a docstring, imports of spaces, assignments."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except SyntaxError as error:
        raise InputError(f"{path}, line {error.lineno}: {error.msg}") from None
    for node in tree.body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        sibling = isinstance(node, ast.ImportFrom) and node.level == 1
        spaces = isinstance(node, ast.ImportFrom) and node.module == "aiornot.tuning.space"
        if not (docstring or sibling or spaces or isinstance(node, ast.Assign | ast.AnnAssign)):
            raise InputError(
                f"{path}, line {node.lineno}: a stage file holds only data: imports from "
                "aiornot.tuning.space and from sibling stages, and assignments"
            )
