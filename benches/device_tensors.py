"""What it is worth that tensors stay on the GPU between two engines of a pipeline.

    python -m benches.device_tensors [--seconds 1.5] [--sizes 64,256]

The first engine makes maps of a picture, the second ten numbers of the maps; both are small networks in FP32. One
request to a pipeline keeps so many calls of both under way, through the host or on the GPU, in turns, and tells how
long each took: no client and no socket has a part in it. Answers are compared bit by bit at one call under way, and
within rounding where batches differ. Needs an NVIDIA GPU. The table goes to stdout.
"""

import argparse
import asyncio
import gc
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

import penstock as ps
from tests.pipeline.two_engines import CHANNELS, hosting, pair, picture
from tests.serve.calls import Array, Client

BUCKETS: Final = (1, 2, 4, 8, 16, 32)
UNDER_WAY: Final = (1, 8, 32)
PICTURES: Final = 8
ROUNDS: Final = 3
detect, score = ps.use("detector"), ps.use("scorer")


@dataclass
class Level:
    """What was seen at one number of calls under way."""

    seconds: list[float]
    answers: list[tuple[int, Array]]
    wall: float

    @property
    def rate(self) -> float:
        return len(self.seconds) / self.wall

    def milliseconds(self, share: float) -> float:
        return float(np.quantile(self.seconds, share)) * 1e3


class Driver:
    """The pipeline's body: what it is to do lies here, and so does what it saw."""

    def __init__(self, size: int) -> None:
        self.pictures = [picture(size, seed) for seed in range(PICTURES)]
        self.under_way, self.stays, self.duration = 1, False, 1.0
        self.level = Level([], [], 1.0)

    async def body(self, _: Array) -> Array:
        self.level = Level([], [], 1.0)
        began = time.perf_counter()
        await ps.gather([self._loop(number, began + self.duration) for number in range(self.under_way)])
        self.level.wall = time.perf_counter() - began
        return np.zeros(1, np.float32)

    async def _loop(self, number: int, until: float) -> None:
        use = detect.on_device if self.stays else detect
        while (began := time.perf_counter()) < until:
            which = number % PICTURES
            number += 1
            found = await score(await use(self.pictures[which]))
            self.level.seconds.append(time.perf_counter() - began)
            self.level.answers.append((which, found))


async def rows_agree(driver: Driver) -> bool:
    rows = np.stack(driver.pictures)
    kept = await score.batch(await detect.on_device.batch(x=rows))
    return bool(kept.tobytes() == (await score.batch(await detect.batch(x=rows))).tobytes())


def measure(size: int, seconds: float, folder: Path) -> None:
    driver = Driver(size)
    agreed: list[bool] = []

    @ps.pipeline(name="drive")
    async def drive(x: ps.F32[1]) -> ps.F32[1]:
        return await driver.body(x)

    @ps.pipeline(name="agree")
    async def agree(x: ps.F32[1]) -> ps.F32[1]:
        agreed.append(await rows_agree(driver))
        return x

    @ps.pipeline(name="cancel")
    async def cancel(x: ps.F32[1]) -> ps.F32[1]:
        """Half of 64 calls under way are cancelled; the others answer as ever."""
        calls = [asyncio.ensure_future(detect.on_device(driver.pictures[0])) for _ in range(64)]
        for each in calls[::2]:
            each.cancel()
        left = [await score(await each) for each in calls[1::2]]
        agreed.append(all(np.allclose(each, left[0], rtol=1e-3, atol=1e-4) for each in left))
        return x

    began = time.perf_counter()
    server = hosting(pair(folder, "cuda:0", size, BUCKETS), instances=2)
    for each in (drive, agree, cancel):
        server.add(each)
    with server, Client(server) as client:
        print(f"\n{size} x {size}: maps of {CHANNELS * size * size * 4 / 1e6:.2f} MB; ready after "
              f"{time.perf_counter() - began:.1f} s")  # fmt: skip
        one = np.zeros(1, np.float32)

        def run(under_way: int, stays: bool, duration: float) -> Level:
            driver.under_way, driver.stays, driver.duration = under_way, stays, duration
            client.infer("drive", x=one).arrays  # noqa: B018 - raises what failed
            return driver.level

        began = time.perf_counter()
        for stays in (False, True):  # warm, and captured
            for under_way in UNDER_WAY:
                run(under_way, stays, 0.3)
        print(f"warm after {time.perf_counter() - began:.1f} s, longest first call of the GPU "
              f"{max(driver.level.seconds) * 1e3:.1f} ms")  # fmt: skip
        for name in ("agree", "cancel"):
            client.infer(name, x=one).arrays  # noqa: B018
            print(f"{name}: {agreed[-1]}")
        bits = [{(which, found.tobytes()) for which, found in run(1, stays, 0.5).answers} for stays in (False, True)]
        print(f"bits of one call under way: {len(bits[0])} answers, equal: {bits[0] == bits[1]}")
        right = {which: np.frombuffer(found, np.float32) for which, found in bits[0]}
        print("under way   by      requests/s        p50 ms  p99 ms  rows a batch (detector, scorer)  far off")
        for under_way in UNDER_WAY:
            levels: dict[bool, list[tuple[Level, list[float]]]] = {False: [], True: []}
            for number in range(ROUNDS):
                for stays in (False, True) if number % 2 == 0 else (True, False):
                    before = [batches(client, name) for name in ("detector", "scorer")]
                    level = run(under_way, stays, seconds)
                    after = [batches(client, name) for name in ("detector", "scorer")]
                    sizes = [
                        (rows - rows_before) / max(1, count - count_before)
                        for (rows, count), (rows_before, count_before) in zip(after, before, strict=True)
                    ]
                    levels[stays].append((level, sizes))
            for stays, several in levels.items():
                rates = sorted(level.rate for level, _ in several)
                whole = Level([each for level, _ in several for each in level.seconds], [], 1.0)
                off = sum(
                    not np.allclose(found, right[which], rtol=1e-3, atol=1e-4)
                    for level, _ in several
                    for which, found in level.answers
                )
                mean = np.mean([sizes for _, sizes in several], axis=0)
                print(f"{under_way:9}   {'GPU ' if stays else 'host'} {rates[1]:9.0f} ({rates[0]:.0f}-{rates[-1]:.0f})"
                      f" {whole.milliseconds(0.5):9.3f} {whole.milliseconds(0.99):7.3f}"
                      f"  {mean[0]:6.1f} {mean[1]:6.1f}   {off}")  # fmt: skip
        gc.collect()
        held = torch.cuda.memory_allocated()
        run(32, True, 0.5)
        gc.collect()
        client.infer("agree", x=one).arrays  # noqa: B018 - what is let go is freed when the GIL is taken next
        print(f"memory of the GPU held by tensors: {held / 1e6:.1f} MB before, "
              f"{torch.cuda.memory_allocated() / 1e6:.1f} MB after")  # fmt: skip


def batches(client: Client, name: str) -> tuple[int, int]:
    """Rows and batches so far."""
    found: dict[str, Any] = client.statistics(name)
    return int(found["inference_count"]), int(found["execution_count"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement; there are three")
    parser.add_argument("--sizes", default="64,256", help="sides of the pictures")
    arguments = parser.parse_args()
    for size in map(int, arguments.sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            measure(size, arguments.seconds, Path(folder))


if __name__ == "__main__":
    main()
