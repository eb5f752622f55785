"""Replicas that don't scale: detection and classification copied N times on one device.

    .venv/bin/python -m benches.stories.replicas [-o FOLDER] [--peer-python PYTHON]

serves `examples.detect_classify` as N processes, each with its own copy of both networks, and as one server with N
contexts on engines that it holds once, in turns under the same closed loop of clients, which are shared out evenly
among the processes. With --peer-python (an environment with fastapi, uvicorn, onnxruntime, numpy and
opencv-python-headless) FastAPI with ONNX Runtime takes part. Engines are built once into FOLDER/replicas and kept.
"""

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

import penstock as ps
from benches.harness.processes import machine_busy_seconds
from benches.stories import replica_findings as findings
from benches.stories import replica_probe, replica_results
from benches.stories.replica_asking import Thing, agreement, asked, path_of, pictures, request
from benches.stories.replica_results import PEER, PLAIN, Arrangement, Probes, Result, Results, Turn
from benches.stories.replica_servers import Copy, gpu_use, memory_mb, module, serving, taken
from benches.stories.report import DEFAULT_FOLDER, Story, publish
from examples.detect_classify.networks import Networks, networks
from examples.detect_classify.service import CLASSIFIER, DETECTOR
from penstock.bench.load import ANSWERED, HTTP, Load, Plan, Records
from penstock.bench.subject import Server
from penstock.engine import check, cores
from penstock.errors import PenstockError

_ROWS: Final = 8  # of the largest batch that engines are built for
_PROBE_SECONDS: Final = 2.0
_SAMPLE_SECONDS: Final = 0.25  # between two looks at the GPU


@dataclass(frozen=True, slots=True)
class Setup:
    """What stays the same in all turns."""

    given: Networks
    engines: Path
    yolo: Path | None
    classifier: Path
    peer_python: str
    pictures: tuple[bytes, ...]
    device: str
    concurrency: int
    seconds: float
    warm_up: float
    reference: tuple[tuple[Thing, ...], ...] = ()


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    try:
        story = measured(options)
    except (PenstockError, ValueError, RuntimeError, OSError) as error:
        print(f"replicas: {error}", file=sys.stderr)
        return 1
    publish(story, options.out)
    return 0


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benches.stories.replicas", description="Copies and contexts.")
    parser.add_argument("-o", "--out", type=Path, default=DEFAULT_FOLDER, metavar="FOLDER")
    parser.add_argument("--counts", default="1,2,4", help="of copies and of contexts")
    parser.add_argument("--concurrency", type=int, default=8, help="requests under way, of all clients together")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a turn")
    parser.add_argument("--warm-up", type=float, default=1.0, help="seconds before each turn")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each arrangement")
    parser.add_argument("--peer-python", default="", help="a Python with fastapi, uvicorn and onnxruntime")
    parser.add_argument("--classifier", type=Path, help="an ONNX file; else EfficientNet-Lite0 from .peers/models")
    parser.add_argument("--yolo", type=Path, help="the detector: an ONNX export of the YOLOv5 kind")
    parser.add_argument("--device", default="cpu", help="of the engines: cpu or cuda:0")
    parser.add_argument("--budget", type=float, default=45.0, help="seconds to build an engine for")
    return parser.parse_args(arguments)


def measured(options: argparse.Namespace) -> Story:
    counts = tuple(sorted({int(each) for each in options.counts.split(",")} | {1}))
    made = options.out / "replicas"
    given = networks(options.classifier, options.yolo, made)
    on_cpu, peer = options.device == "cpu", bool(options.peer_python)
    contexts = 1 if on_cpu else max(counts)
    engine(given.detector, made / f"{DETECTOR}.engine", 1 if on_cpu else _ROWS, options, contexts)
    engine(given.classifier, made / f"{CLASSIFIER}.engine", _ROWS, options, contexts)
    setup = Setup(
        given, made, options.yolo, given.classifier, options.peer_python, pictures(), options.device,
        options.concurrency, options.seconds, options.warm_up,
    )  # fmt: skip
    setup = replace(setup, reference=reference_of(setup))
    # Threads of the host say nothing of a GPU.
    wanted = replica_results.arrangements(counts, cores.available() if on_cpu else 1, peer=peer, plain=peer and on_cpu)
    rows = in_turns(wanted, setup, options.rounds)
    probes = probed(setup) if on_cpu else None
    found = Results(cores.available(), counts, tuple(rows), probes, described(setup))
    return Story(
        "replicas",
        "Replicas that don't scale",
        "A detector and a classifier of what it finds, copied N times on one device: use grows; does throughput? "
        "N processes with a copy of the networks each, against one server with N contexts on networks held once.",
        findings.tables(found), findings.figures(found), findings.findings(found),
        dict(findings.data(found)) | {"concurrency": options.concurrency, "device": options.device},
    )  # fmt: skip


# ---- networks and pictures ----


def engine(file: Path, path: Path, most: int, options: argparse.Namespace, contexts: int) -> None:
    """Built for batches of up to `most`, unless the one that is there was built so and runs here."""
    made_of = path.with_suffix(".txt")
    stamp = f"{hashlib.sha256(file.read_bytes()).hexdigest()} {options.device} {options.budget:g} {contexts} {most}\n"
    if path.is_file() and made_of.is_file() and made_of.read_text() == stamp and check(path).action == "run":
        return
    print(f"building {path.name}, {options.budget:.0f} s ...", file=sys.stderr, flush=True)
    (taken,) = ps.load(file, runtime="onnxruntime", threads=1).inputs
    row = "x".join(str(each) for each in taken.shape[1:])
    shapes = ",".join(f"{rows}x{row}" for rows in ((1,) if most == 1 else (1, most // 2, most)))
    ps.build(
        file, output=path, shapes=f"{taken.name}:{shapes}", device=options.device, budget_seconds=options.budget,
        contexts=contexts,
    )  # fmt: skip
    made_of.write_text(stamp)


def described(setup: Setup) -> str:
    """The networks, and what the engines compute in."""
    precisions = []
    for name in (DETECTOR, CLASSIFIER):
        sealed = check(setup.engines / f"{name}.engine").sealed
        precisions.append(sealed.manifest.precision if sealed is not None else "unknown")
    things = sum(map(len, setup.reference)) / len(setup.pictures)
    detector = setup.yolo.stem if setup.yolo else f"windows of {setup.classifier.stem}"
    return (
        f"{detector} at {setup.given.side}² ({precisions[0]}), {setup.classifier.stem} ({precisions[1]}), "
        f"{things:.1f} things a picture, {setup.concurrency} requests under way"
    )


def reference_of(setup: Setup) -> tuple[tuple[Thing, ...], ...]:
    """What the networks as they are find, in FP32."""
    plain = Arrangement(PLAIN, 1, 1, cores.available())
    with serving(command(plain, setup), 1) as copies:
        return tuple(tuple(asked(copies[0], plain, image)) for image in setup.pictures)


# ---- turns ----


def in_turns(wanted: Sequence[Arrangement], setup: Setup, rounds: int) -> list[Result]:
    """All in order, then in the reverse of it, so that drift is shared."""
    turns: dict[Arrangement, list[Turn]] = {each: [] for each in wanted}
    for number in range(rounds):
        for each in wanted if number % 2 == 0 else wanted[::-1]:
            turns[each].append(turn(each, setup))
            rate = len(turns[each][-1].latencies_ms) / turns[each][-1].seconds
            print(f"round {number + 1}: {each.name}: {rate:.1f} pictures/s", file=sys.stderr, flush=True)
    return [replica_results.result(each, turns[each]) for each in wanted]


def turn(arrangement: Arrangement, setup: Setup) -> Turn:
    with serving(command(arrangement, setup), arrangement.copies) as copies, ExitStack() as stack:
        same = agreement(setup.reference, [asked(copies[0], arrangement, image) for image in setup.pictures])
        shares = shared_out(setup.concurrency, len(copies))
        loads = [
            stack.enter_context(Load(plan(each, arrangement, setup, share)))
            for each, share in zip(copies, shares, strict=True)
            if share
        ]
        time.sleep(setup.warm_up)
        counted = classified(copies, arrangement)
        before, busy, client, begin = taken(copies), machine_busy_seconds(), client_cpu(loads), time.monotonic_ns()
        gpu = waited(setup.seconds)
        end = time.monotonic_ns()
        spent = taken(copies).since(before)
        elsewhere = machine_busy_seconds() - busy - spent.cpu_seconds - (client_cpu(loads) - client)
        crops, batches = (now - then for now, then in zip(classified(copies, arrangement), counted, strict=True))
        memory = memory_mb(copies)
        for load in loads:
            load.stop()
        records = np.concatenate([load.records for load in loads])
        inside, failed = answered(records, begin, end)
    seconds = (end - begin) / 1e9
    return Turn(
        seconds, tuple(inside), failed, spent.cpu_seconds, spent.voluntary, spent.involuntary, memory,
        max(0.0, elsewhere / seconds), crops, batches, same, *gpu,
    )  # fmt: skip


def command(arrangement: Arrangement, setup: Setup) -> list[str]:
    if arrangement.kind == PEER:
        rules = setup.given.rules
        flags = {
            "detector": setup.given.detector.resolve(), "classifier": setup.classifier.resolve(),
            "side": setup.given.side, "threads": arrangement.threads,
            "score": rules.score, "overlap": rules.overlap, "most": rules.most,
            "provider": "CPUExecutionProvider" if setup.device == "cpu" else "CUDAExecutionProvider",
        }  # fmt: skip
        given = [f"--{name}={value}" for name, value in flags.items()]
        return module("benches.stories.replica_peer", *given, python=setup.peer_python)
    given = [f"--classifier={setup.classifier.resolve()}"]
    given += [f"--yolo={setup.yolo.resolve()}"] if setup.yolo else []
    given += [f"--engines={setup.engines.resolve()}"] if arrangement.engines else []
    given += [f"--instances={arrangement.instances}", f"--threads={arrangement.threads}"]
    given += ["--together=2"] if setup.device != "cpu" else []
    return module("examples.detect_classify.service", *given)


def shared_out(concurrency: int, copies: int) -> list[int]:
    """As evenly as whole requests go."""
    return [concurrency // copies + (number < concurrency % copies) for number in range(copies)]


def plan(copy: Copy, arrangement: Arrangement, setup: Setup, concurrency: int) -> Plan:
    sent = [request(image, arrangement) for image in setup.pictures]
    return Plan(HTTP, f"127.0.0.1:{copy.port}", path_of(arrangement), sent, concurrency=concurrency)


def waited(seconds: float) -> tuple[float, float]:
    """The GPU's mean use and largest memory meanwhile; zeros where there is none."""
    until, seen = time.monotonic() + seconds, []
    first = gpu_use()
    while first is not None and time.monotonic() < until - _SAMPLE_SECONDS:
        time.sleep(_SAMPLE_SECONDS)
        seen.append(gpu_use() or first)
    time.sleep(max(0.0, until - time.monotonic()))
    if not seen:
        return 0.0, 0.0
    return float(np.mean([each.busy for each in seen])), max(each.memory_mb for each in seen)


def classified(copies: Sequence[Copy], arrangement: Arrangement) -> tuple[int, int]:
    """Crops and batches so far, of all copies."""
    if arrangement.kind == PEER:
        return 0, 0
    found = [Server(HTTP, f"127.0.0.1:{each.port}").statistics(CLASSIFIER, "") for each in copies]
    known = [each for each in found if each is not None]
    return sum(each.inferences for each in known), sum(each.executions for each in known)


def client_cpu(loads: Sequence[Load]) -> float:
    return sum(load.cpu_seconds() for load in loads)


def answered(records: Records, begin: int, end: int) -> tuple[list[float], int]:
    """Milliseconds of those that were answered in the time, and how many failed in it."""
    inside = records[(records["received"] >= begin) & (records["received"] < end)]
    good = inside[inside["outcome"] == ANSWERED]
    latencies: list[float] = ((good["received"] - good["sent"]).astype(np.float64) / 1e6).tolist()
    return latencies, len(inside) - len(good)


# ---- probes ----


def probed(setup: Setup) -> Probes:
    """What a process on every core costs each of them."""
    places = sorted(os.sched_getaffinity(0))[: cores.available()]
    file = setup.engines / f"{DETECTOR}.engine"
    network = [replica_probe.rates(used, _PROBE_SECONDS, file) for used in (places[:1], places)]
    copied = [replica_probe.rates(used, _PROBE_SECONDS, None) for used in (places[:1], places)]
    each = len(setup.reference) and sum(map(len, setup.reference)) / len(setup.reference)
    weights = (setup.given.detector.stat().st_size + each * setup.classifier.stat().st_size) / 1e6
    return Probes(
        len(places), network[0][0], float(np.mean(network[1])), replica_probe.copied_gb(copied[0][0]),
        replica_probe.copied_gb(float(np.mean(copied[1]))), weights,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
