"""A trace as text: what each step of a request waited for and did, one line each, to scale.

    read 17  ok  12.41 ms  (0.08 ms in the queue)
    detector    call  |░███████                                |    0.05 ->   2.31 ms
    crop_rows   cpu   |        ░█                              |    2.33 ->   2.80 ms
    recogniser  call  |         ░░░████████████████████████████|    2.84 ->  12.38 ms

For whoever looks at the file that `ps.Server(trace=...)` writes, and for `penstock inspect`; reads plain JSON and needs
no server.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from penstock.errors import InvalidArgument, NotFound

_WIDTH: Final = 60
_WAITED, _WORKED = "░", "█"

_Check = Callable[[Any], bool]

# Milliseconds are of the clock, so that what is more was not written by a server: a thousand years.
_MOST_MS: Final = 3.2e13


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MOST_MS


def _time_or_null(value: Any) -> bool:
    return value is None or _time(value)


def _list(value: Any) -> bool:
    return isinstance(value, list)


_EXPECTED: Final[Mapping[_Check, str]] = {
    _text: "text", _time: "milliseconds", _time_or_null: "milliseconds or null", _list: "a list",
}  # fmt: skip

# What is read of a line; more may be there.
_KEYS: Final[Mapping[str, _Check]] = {
    "pipeline": _text, "request": _text, "status": _text, "queue_ms": _time, "total_ms": _time, "steps": _list,
}  # fmt: skip
_STEP_KEYS: Final[Mapping[str, _Check]] = {
    "step": _text, "kind": _text, "status": _text, "start_ms": _time, "end_ms": _time, "queue_ms": _time_or_null,
}  # fmt: skip


def records(path: str | Path) -> Iterator[dict[str, Any]]:
    """The requests of a trace, in the order in which they ended. A last line that is still being written is left out.

    Raises NotFound without the file, InvalidArgument for a line that is no request, with its number.
    """
    path = Path(path)
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise NotFound(f"trace {path.name!r} does not exist") from None
    with file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line.decode())
            except (ValueError, RecursionError) as error:
                raise InvalidArgument(f"{path.name}: line {number} of the trace is no JSON: {error}") from None
            if wrong := _wrong(record):
                raise InvalidArgument(f"{path.name}: line {number} is no request of a trace: {wrong}")
            yield record


def _wrong(record: Any) -> str:
    """What is, with the first key that is not there or holds something else."""
    wrong = _wrong_part(record, _KEYS)
    return wrong or next((found for step in record["steps"] if (found := _wrong_part(step, _STEP_KEYS))), "")


def _wrong_part(part: Any, keys: Mapping[str, _Check]) -> str:
    if missing := keys.keys() - (part.keys() if isinstance(part, dict) else set()):
        return f"it has no {min(missing)}"
    for key, good in keys.items():
        if not good(part[key]):
            return f"{key} is {json.dumps(part[key])[:50]}, expected {_EXPECTED[good]}"
    return ""


def render(record: Mapping[str, Any]) -> str:
    """One request as text."""
    total, steps = record["total_ms"], record["steps"]
    lines = [
        f"{record['pipeline']} {record['request']}  {record['status']}  {total:.2f} ms  "
        f"({record['queue_ms']:.2f} ms in the queue)"
    ]
    longest = max((len(step["step"]) for step in steps), default=0)
    for step in steps:
        start, end = step["start_ms"], step["end_ms"]
        taken = start + (step["queue_ms"] or 0.0)
        first, middle, last = (_column(at, total) for at in (start, min(taken, end), end))
        # Something of every step is seen, however short it was.
        bar = _WAITED * (middle - first) + _WORKED * (last - middle) or _WORKED
        bar = (" " * min(first, _WIDTH - 1) + bar)[:_WIDTH].ljust(_WIDTH)
        failed = "" if step["status"] == "ok" else f"  {step['status']}"
        lines.append(
            f"{step['step']:<{longest}}  {step['kind']:<4}  |{bar}|  {start:8.2f} -> {end:8.2f} ms{failed}".rstrip()
        )
    return "\n".join(lines)


def _column(at: float, total: float) -> int:
    return round(min(max(at / total, 0.0), 1.0) * _WIDTH) if total > 0 else 0
