"""One way that is ready to be replayed, how its answer is judged, and how ways take turns. Needs torch.

A way has static inputs on the device, and a replay puts one computation on its stream and returns. Outputs that stay
where they are get poisoned before they are judged, so that what a replay did not write shows. Called by `ours`,
`rivals`, `ort` and `points`.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final

import torch

Answer = Sequence[torch.Tensor]

_TURN_SECONDS: Final = 0.12  # of one way in one round
_LEAST, _MOST, _WARM = 5, 40, 3
_REPEATS: Final = 10
_MARK: Final = -7


@dataclass(frozen=True)
class Ready:
    """A way whose model is loaded, compiled and captured."""

    way: str
    replay: Callable[[], object]
    inputs: Answer
    """Where the next inputs are written."""

    outputs: Callable[[], Answer]
    """The last replay's; the stream has to be waited for."""

    expected: Answer
    """In FP64 on the CPU, integers as they are."""

    precision: str = "fp16"
    stream: "torch.cuda.Stream | None" = None
    static: bool = False
    """Whether every replay writes the same tensors."""

    note: str = ""

    def on_stream(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self.stream) if self.stream is not None else nullcontext()

    def answer(self) -> list[torch.Tensor]:
        """Of one replay, cloned."""
        with torch.no_grad(), self.on_stream():
            if self.static:
                for each in self.outputs():
                    each.fill_(math.nan if each.is_floating_point() else _MARK)
            self.replay()
            found = [each.clone() for each in self.outputs()]
        self.wait()
        return found

    def wait(self) -> None:
        if self.stream is not None:
            self.stream.synchronize()


def judge(found: Answer, expected: Answer) -> tuple[float, float]:
    """Largest norm-relative error of the float outputs, NaN if any is; largest share of integers that differ."""
    if len(found) != len(expected):
        return math.nan, 1.0
    errors, different = [0.0], [0.0]
    for one, right in zip(found, expected, strict=True):
        if one.shape != right.shape:
            return math.nan, 1.0
        if not right.is_floating_point():
            different.append(float((one.cpu() != right).double().mean()))
            continue
        wide = one.double().cpu()
        errors.append(float((wide - right).norm() / right.norm().clamp(min=1e-30)))
    return (math.nan if any(map(math.isnan, errors)) else max(errors)), max(different)


def repeats(ready: Ready, times: int = _REPEATS) -> bool:
    """Whether replays give the same bits. NaN equals nothing."""
    first = ready.answer()
    return all(
        all(torch.equal(one, other) for one, other in zip(first, ready.answer(), strict=True)) for _ in range(times)
    )


def take_turns(ways: Sequence[Ready], rounds: int, over: Callable[[], bool]) -> dict[str, list[float]]:
    """Milliseconds of each way in each round, in turns; fewer rounds, but the same for all, when the time is over."""
    found: dict[str, list[float]] = {each.way: [] for each in ways}
    counts = {each.way: _replays(each) for each in ways}
    for number in range(rounds):
        if number and over():
            break
        order = ways if number % 2 == 0 else list(reversed(ways))
        for each in order:
            found[each.way].append(median_of(each, each.replay, counts[each.way]))
    return found


def with_transfers(ready: Ready, rounds: int) -> float:
    """Milliseconds from pinned memory, through the way, and back to pinned memory, all on its stream."""
    assert ready.stream is not None
    sources = [each.to("cpu", copy=True).pin_memory() for each in ready.inputs]
    targets = [torch.empty_like(each, device="cpu").pin_memory() for each in ready.answer()]

    def there_and_back() -> None:
        for target, source in zip(ready.inputs, sources, strict=True):
            target.copy_(source, non_blocking=True)
        ready.replay()
        for kept, output in zip(targets, ready.outputs(), strict=True):
            kept.copy_(output, non_blocking=True)

    count = _replays(ready)
    return statistics.median(median_of(ready, there_and_back, count) for _ in range(rounds))


def _replays(ready: Ready) -> int:
    rough = median_of(ready, ready.replay, 2)
    return max(_LEAST if ready.stream is not None else 1, min(_MOST, int(_TURN_SECONDS * 1e3 / max(rough, 1e-3))))


def median_of(ready: Ready, call: Callable[[], object], count: int) -> float:
    """Milliseconds of one call: between events of the device, on the CPU by the clock."""
    with torch.no_grad(), ready.on_stream():
        if ready.stream is None:
            times = []
            for _ in range(count):
                started = time.perf_counter()
                call()
                times.append((time.perf_counter() - started) * 1e3)
            return statistics.median(times)
        for _ in range(_WARM):
            call()
        pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
        for start, end in pairs:
            start.record()
            call()
            end.record()
        ready.stream.synchronize()
        return float(statistics.median(start.elapsed_time(end) for start, end in pairs))
