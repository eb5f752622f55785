"""The user's own code by its name, `module:name`, with the working directory on the path.

Importing runs that code, so whatever it does may happen here; what goes wrong is one sentence that says where in the
user's files. Called for metrics of an accuracy gate, and for programs that are served.
"""

import importlib
import logging
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import Any, Final

from penstock.errors import InvalidArgument, PenstockError

log = logging.getLogger("penstock")

_FORM: Final = "expected MODULE:NAME, such as app:server for `server` in app.py"


def here_on_path() -> None:
    """Put the working directory first on the path, as `python -m` has it."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def find(source: str) -> Any:
    """What `module:name` names; `name` may have dots.

    Raises InvalidArgument where there is no such thing, or where importing it fails.
    """
    module, _, name = source.partition(":")
    if not all(part.isidentifier() for text in (module, name) for part in text.split(".")):
        raise InvalidArgument(f"{source!r} is no name of an object, {_FORM}")
    here_on_path()
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        ours = module == missing or module.startswith(f"{missing}.")
        why = "looked in the working directory and the installed packages" if ours else "which it imports"
        fix = f"; {_FORM}" if module.endswith(".py") else ""
        raise InvalidArgument(f"{source}: there is no module {missing!r}, {why}{fix}") from error
    except (Exception, SystemExit) as error:  # whatever the user's module does while it is imported
        log.debug("importing %r failed", module, exc_info=True)
        raise InvalidArgument(f"{source}: {failure(f'importing {module!r}', error)}") from error
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise InvalidArgument(f"{source}: module {module!r} has no {name!r}") from error
    return found


def failure(doing: str, error: BaseException) -> str:
    """One line on what the user's code raised; our own errors as they are, others with what was being done."""
    text = " ".join(str(error).split())
    if not isinstance(error, PenstockError):
        text = f"{doing} raised {type(error).__name__}" + (f": {text}" if text else "")
    return text + _place(error)


def _place(error: BaseException) -> str:
    """The innermost line of the user's own, below which libraries were at work; empty where there is none."""
    paths = [sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")]
    libraries = (*paths, str(Path(__file__).parents[1]), "<")
    lines = [each for each in traceback.extract_tb(error.__traceback__) if not each.filename.startswith(libraries)]
    return f" ({Path(lines[-1].filename).name}, line {lines[-1].lineno})" if lines else ""
