"""Texts a second with so many under way, of two servers in turns, sent by the native generator of `penstock bench`.

Promises: every server gets the same texts of mixed length for the same time, each turn in another order; a failed
request ends the measurement. Called by the demonstration.
"""

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from examples.embed.client import Protocol
from examples.embed.network import NETWORK
from examples.embed.service import MODEL
from examples.ocr.servers import Server
from penstock.bench import requests, subject
from penstock.bench.load import ANSWERED, HTTP, Load, Plan

PROTOCOLS: tuple[Protocol, ...] = ("http", "grpc")


@dataclass(frozen=True, slots=True)
class Rate:
    texts_per_second: float
    p50_ms: float
    p99_ms: float
    rows_per_batch: float
    """Of the network, while this server was loaded."""


@dataclass(slots=True)
class _Turns:
    """Of one server over one protocol."""

    latencies: list[npt.NDArray[np.float64]]
    seconds: float = 0.0
    rows: int = 0
    batches: int = 0

    def rate(self) -> Rate:
        milliseconds = np.concatenate(self.latencies)
        p50, p99 = np.percentile(milliseconds, [50, 99])
        return Rate(len(milliseconds) / self.seconds, float(p50), float(p99), self.rows / max(1, self.batches))


def in_turns(
    servers: Sequence[Server], texts: Sequence[str], concurrency: int, seconds: float, rounds: int
) -> Mapping[tuple[str, Protocol], Rate]:
    """By server and protocol. `seconds` of each turn; `rounds` turns of each."""
    found = {(each.name, protocol): _Turns([]) for each in servers for protocol in PROTOCOLS}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "texts.json"
        file.write_text(json.dumps({"data": [{"text": {"content": [text], "shape": [1]}} for text in texts]}))
        for turn in range(rounds):
            for protocol in PROTOCOLS:
                for each in servers if turn % 2 == 0 else servers[::-1]:
                    _loaded(found[each.name, protocol], each, protocol, file, concurrency, seconds)
    return {key: turns.rate() for key, turns in found.items()}


def _loaded(turns: _Turns, server: Server, protocol: Protocol, file: Path, concurrency: int, seconds: float) -> None:
    address = server.address(protocol)
    model = subject.Server(protocol, address).subject(MODEL, "")
    sent = requests.requests(model, requests.Wanted(str(file)), protocol)
    plan = Plan(protocol, address, subject.infer_path(model, protocol), sent, concurrency=concurrency)
    with Load(plan) as load:
        time.sleep(min(1.0, seconds / 4))  # until as many are under way as may be, and connections are open
        before, begin = executed(server), time.monotonic_ns()
        time.sleep(seconds)
        after, end = executed(server), time.monotonic_ns()
        load.stop()
        records, messages = load.records, load.messages
    if (records["outcome"] != ANSWERED).any():
        raise RuntimeError(f"requests to the {server.name} server failed: {messages}")
    counted = records[(records["received"] >= begin) & (records["received"] < end)]
    turns.latencies.append((counted["received"] - counted["scheduled"]) / 1e6)
    turns.seconds += (end - begin) / 1e9
    ran = after.since(before)
    turns.rows += ran.inferences
    turns.batches += ran.executions


def executed(server: Server) -> subject.Statistics:
    """Of the network, since the server began."""
    found = subject.Server(HTTP, server.http).statistics(NETWORK, "")
    if found is None:
        raise RuntimeError(f"the {server.name} server has no statistics of {NETWORK}")
    return found
