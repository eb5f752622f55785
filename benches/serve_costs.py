"""Models whose batches take a known time, each under several policies of batching: what `open_loop.py` sends to.

Promises: `COST_POLICY` for every cost and policy below, y = x on float32[-1, 16], one instance; `stalls` answers a
row in 5 ms and stops for a second every ten. Prints its port as one JSON line and ends when its standard input does.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

import penstock as ps

Floats = npt.NDArray[np.float32]

MOST: Final = 8  # rows of a batch
COSTS: Final[dict[str, Callable[[int], float]]] = {
    "constant": lambda rows: 5e-3,
    "affine": lambda rows: 1e-3 + 4e-3 * rows / MOST,
    "linear": lambda rows: 5e-3 * rows / MOST,
}
"""Seconds of a batch of so many rows: a full one takes 5 ms with each."""

AUTO: Final = "auto"
DELAYS_US: Final = (0, 500, 1000, 2000, 5000, 10000)
STALL_EVERY_SECONDS: Final = 10.0
STALL_SECONDS: Final = 1.0
ROW_SECONDS: Final = 5e-3


def named(cost: str, policy: str) -> str:
    return f"{cost}_{policy}"


def policies() -> dict[str, ps.DynamicBatching | None]:
    """The automatic one, and one for each fixed delay."""
    return {AUTO: None} | {f"{delay}us": ps.DynamicBatching(max_queue_delay_us=delay) for delay in DELAYS_US}


def model(name: str, seconds: Callable[[int], float], rows: int, policy: ps.DynamicBatching | None) -> ps.ModelFunction:
    def run(x: Floats) -> Floats:
        time.sleep(seconds(len(x)))
        return x

    # A delay of 0 without this word is the automatic policy.
    parameters = {"batching": "triton"} if policy is not None else {}
    return ps.model(
        name=name, max_batch_size=rows, inputs={"x": ps.F32[16]}, outputs={"y": ps.F32[16]},
        parameters=parameters, dynamic_batching=policy,
    )(run)  # fmt: skip


def stalling() -> Callable[[int], float]:
    """5 ms a row; the first row after each ten seconds takes one more."""
    began = time.monotonic()
    stalls = 0

    def seconds(rows: int) -> float:
        nonlocal stalls
        due = time.monotonic() - began > STALL_EVERY_SECONDS * (stalls + 0.5)
        stalls += due
        return ROW_SECONDS * rows + (STALL_SECONDS if due else 0.0)

    return seconds


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    server = ps.Server(http_port=0, grpc_port=None, metrics_port=None)
    for cost, seconds in COSTS.items():
        for policy, batching in policies().items():
            server.add(model(named(cost, policy), seconds, MOST, batching))
    server.add(model("stalls", stalling(), 1, None))
    with server:
        print(json.dumps({"http_port": server.http_port}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
