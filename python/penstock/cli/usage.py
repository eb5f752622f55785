"""Wrong usage, the same for every verb: what the package says of a setting is said of its flag, with exit status 2.

Whatever can't be meant is a `UsageError` where it is found, be it here or in what a verb calls; everything else that
goes wrong is about files, models and servers, and exits 1. Called by `penstock.cli`, which wraps each verb.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Final

import typer

from penstock.errors import UsageError

# Settings whose flags have another name, as Triton's and trtexec's do.
_FLAGS: Final[Mapping[str, str]] = {
    "load_models": "--load-model",
    "repository_poll_seconds": "--repository-poll-secs",
    "exit_timeout_seconds": "--exit-timeout-secs",
    "budget_seconds": "--budget",
    "workspace_bytes": "--workspace",
    "output": "-o",
}


def usage(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb, whose UsageErrors are wrong usage of its flags."""

    @functools.wraps(verb)
    def called(*arguments: object, **options: object) -> None:
        try:
            verb(*arguments, **options)
        except UsageError as error:
            if not error.setting:
                raise typer.BadParameter(error.message) from None
            flag = _FLAGS.get(error.setting, "--" + error.setting.replace("_", "-"))
            raise typer.BadParameter(error.problem, param_hint=flag) from None

    return called


def number(value: float | None) -> float | None:
    """Callback of flags with a smallest and a largest value, between which NaN is neither."""
    if value is not None and math.isnan(value):
        raise typer.BadParameter("expected a number, got nan")
    return value
