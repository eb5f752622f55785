"""What a tuner chose for each step: an implementation's name and its configuration, as data.

Promises: what `to_json` wrote `from_json` reads, and nothing else (InvalidArgument). Imports no torch. Tuners write
these, executors take them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from penstock.errors import InvalidArgument

LARGEST = 1 << 20  # of a number of a configuration
MOST = 64  # numbers: steps of several products have a cut for each


@dataclass(frozen=True, slots=True)
class Choice:
    implementation: str
    config: tuple[int, ...] = ()
    apart: tuple[int, ...] = ()
    """Which of its kernels are launched when the one ahead has ended, though they could be before: by their numbers."""

    def __str__(self) -> str:
        return " ".join((self.implementation, "x".join(map(str, self.config)))).strip()


Choices = Mapping[str, Choice]
"""Step's name -> how it is executed."""


def to_json(choices: Choices) -> str:
    return json.dumps({name: _written(each) for name, each in choices.items()})


def _written(choice: Choice) -> list[str | list[int]]:
    apart = [list(choice.apart)] if choice.apart else []
    return [choice.implementation, list(choice.config), *apart]


def from_json(text: str | bytes) -> dict[str, Choice]:
    try:
        data = json.loads(text)
        return {name: _choice(*each) for name, each in data.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidArgument(f"choices can't be read: {error}") from None


def _choice(implementation: object, config: object, apart: object = ()) -> Choice:
    if not isinstance(implementation, str):
        raise ValueError(f"expected an implementation, got {implementation!r}")
    return Choice(implementation, _numbers(config), _numbers(apart))


def _numbers(given: object) -> tuple[int, ...]:
    if not isinstance(given, list | tuple) or len(given) > MOST:
        raise ValueError(f"expected up to {MOST} numbers, got {given!r}")
    for each in given:
        if not isinstance(each, int) or isinstance(each, bool) or not 0 <= each <= LARGEST:
            raise ValueError(f"expected a number up to {LARGEST}, got {each!r}")
    return tuple(given)
