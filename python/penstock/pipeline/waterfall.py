"""A trace as text: what each step of a request waited for and did, one line each, to scale.

    read 17  ok  12.41 ms  (0.08 ms in the queue)
    detector    call  |░███████                                |    0.05 ->   2.31 ms
    crop_rows   cpu   |        ░█                              |    2.33 ->   2.80 ms
    recogniser  call  |         ░░░████████████████████████████|    2.84 ->  12.38 ms

For whoever looks at the file that `ps.Server(trace=...)` writes; reads plain JSON and needs no server.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

_WIDTH: Final = 60
_WAITED, _WORKED = "░", "█"


def records(path: str | Path) -> Iterator[dict[str, Any]]:
    """The requests of a trace, in the order in which they ended. Raises ValueError for a line that is none, with its
    number; a last line that is still being written is left out."""
    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number} of the trace is no JSON: {error}") from None


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
