"""How far something has come, told to whoever shows it."""

from collections.abc import Callable

# What is being done, how many steps are done, how many there are (0: not known).
Progress = Callable[[str, int, int], None]


def quiet(stage: str, done: int, total: int) -> None:
    """Shows nothing."""
