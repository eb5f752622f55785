"""A trace as text: what each step of a request waited for and did, one line each, to scale.

    read 17  ok  12.41 ms  (0.08 ms in the queue)
    detector    call  |░███████                                |    0.05 ->   2.31 ms
    crop_rows   cpu   |        ░█                              |    2.33 ->   2.80 ms
    recogniser  call  |         ░░░████████████████████████████|    2.84 ->  12.38 ms

For whoever looks at the file that `ps.Server(trace=...)` writes, and for `penstock inspect`; reads plain JSON and needs
no server.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from penstock.errors import InvalidArgument, NotFound

_WIDTH: Final = 60
_WAITED, _WORKED = "░", "█"

# What is read of a line; more may be there.
_KEYS: Final = frozenset({"pipeline", "request", "status", "queue_ms", "total_ms", "steps"})
_STEP_KEYS: Final = frozenset({"step", "kind", "status", "start_ms", "end_ms", "queue_ms"})


def records(path: str | Path) -> Iterator[dict[str, Any]]:
    """The requests of a trace, in the order in which they ended. A last line that is still being written is left out.

    Raises NotFound without the file, InvalidArgument for a line that is no request, with its number.
    """
    path = Path(path)
    try:
        file = path.open(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"trace {path.name!r} does not exist") from None
    with file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return
            try:
                record = json.loads(line)
            except ValueError as error:
                raise InvalidArgument(f"{path.name}: line {number} of the trace is no JSON: {error}") from None
            if missing := _missing(record):
                raise InvalidArgument(f"{path.name}: line {number} is no request of a trace: it has no {missing}")
            yield record


def _missing(record: Any) -> str:
    """The first key that is not there."""
    steps = record.get("steps") if isinstance(record, dict) else None
    parts = [(record, _KEYS), *((step, _STEP_KEYS) for step in (steps if isinstance(steps, list) else ()))]
    for part, keys in parts:
        if missing := keys - (part.keys() if isinstance(part, dict) else set()):
            return min(missing)
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
    return round(at / total * _WIDTH) if total > 0 else 0
