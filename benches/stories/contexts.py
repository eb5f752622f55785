"""Concurrency that is right: one execution context for all threads, one for each call, and how many are best.

    .venv/bin/python -m benches.stories.contexts                      on the CPU: 3 to 4 minutes
    python3 -m benches.stories.contexts --gpu -o FOLDER               on a GPU, with torch, in 90 s
    .venv/bin/python -m benches.stories.contexts --read contexts-cpu.json contexts-gpu.json

An image tower of open_clip's shape is asked for embeddings of real pictures by many threads at once: through one
context without a lock, with one, with a context for each call, as an engine of Penstock, and behind a server. Every
answer is judged. The number of contexts is found by trying. Measuring writes FOLDER/contexts-cpu.json (or -gpu); where
plotly is, the story is published from it, with what `--read` names beside it.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benches.stories import contexts_measuring as measuring
from benches.stories.contexts_clients import Clients, Kind
from benches.stories.contexts_results import (
    ENGINE,
    LOCKED,
    PICTURES,
    POOLED,
    SERVED,
    SHARED,
    Measured,
    Setting,
    Swept,
    best,
    joined,
)
from benches.stories.contexts_sharing import Bound, Context, Session, locked, pooled, shared
from benches.stories.machine import machine
from examples.clip import making
from examples.clip.asking import Target, Tensor, encoded_picture, prepared_picture
from examples.clip.hosting import hosted
from examples.clip.judging import Reference, Tally
from examples.clip.pictures import encoded_pictures
from examples.clip.service import PIPELINE, TOWER

FOLDER: Final = Path(".stories")
_PICTURES: Final = 32
_FEW: Final = (5, 50)
"""Threads on one context: 5 at once is where a shared one was reported to fail."""

_MANY: Final = (5, 50, 500)
_SWEPT_IN_FLIGHT: Final = 50
_TURNS: Final = 2
_CONTEXTS: Final = {False: (1, 2, 4), True: (1, 2, 4, 8)}
_WARM_UP: Final = 0.5
"""Seconds in which a server meets every size of batch."""

_PROCESSES: Final = 8
"""Of clients, for a GPU; on the cores that a CPU computes with they would only be in the way."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=FOLDER, metavar="FOLDER")
    parser.add_argument("--gpu", action="store_true", help="on the first NVIDIA GPU; needs torch")
    parser.add_argument("--seconds", type=float, help="of a cell; 3 on the CPU, 1 on a GPU")
    parser.add_argument("--budget", type=float, help="seconds of the build; 60 on the CPU, 25 on a GPU")
    parser.add_argument(
        "--contexts", type=int, nargs="+", metavar="N", help="that are tried; on a GPU 8 as well as 1 2 4"
    )
    parser.add_argument("--levels", type=int, nargs="+", default=list(_MANY), metavar="N", help="requests at once")
    parser.add_argument("--read", type=Path, nargs="+", default=[], metavar="FILE", help="measured before, elsewhere")
    parser.add_argument("--engines", type=Path, default=making.FOLDER, help="where engines are kept between runs")
    return parser.parse_args()


def main() -> int:
    wanted = arguments()
    found = [Measured.of_json(json.loads(path.read_text())) for path in wanted.read]
    if not wanted.read or wanted.gpu:
        measured = measure(wanted)
        found.insert(0, measured)
        wanted.output.mkdir(parents=True, exist_ok=True)
        name = f"contexts-{'gpu' if wanted.gpu else 'cpu'}.json"
        (wanted.output / name).write_text(json.dumps(measured.as_json(), indent=1) + "\n")
        say(f"{name} is written, after {measured.seconds:.0f} s")
    try:
        from benches.stories import contexts_story
    except ModuleNotFoundError as error:
        say(f"no page and no picture here ({error}): publish with --read where plotly is")
    else:
        contexts_story.publish(found, wanted.output)
    bad = [cell for each in found for cell in each.cells if cell.way != SHARED and not cell.good]
    return 1 if bad else 0


def say(text: str) -> None:
    print(f"contexts: {text}", file=sys.stderr, flush=True)


def measure(wanted: argparse.Namespace) -> Measured:
    began = time.perf_counter()
    tower = _tower(wanted)
    say(f"{tower.engine.name} {'built' if tower.built else 'found'} after {time.perf_counter() - began:.0f} s")
    rows = making.pictures(_PICTURES)
    subject = measuring.Subject(rows, Reference(tower.embed(rows)))
    seconds = wanted.seconds or (1.0 if wanted.gpu else 3.0)
    settings = measuring.settings_of(wanted.contexts or _CONTEXTS[wanted.gpu], on_gpu=wanted.gpu)
    table = measuring.Table(say)
    few = [each for each in _FEW if each <= max(wanted.levels)]
    _on_one_library(tower, subject, seconds, table, few, max(settings), on_gpu=wanted.gpu)
    tensors: dict[Kind, list[Tensor]] = {
        "rows": [prepared_picture(each) for each in rows],
        "files": [encoded_picture(each) for each in encoded_pictures(_PICTURES)],
    }
    with Clients(tensors, subject.reference, _PROCESSES if wanted.gpu else 0) as clients:
        swept = _served(tower, clients, seconds, table, settings, wanted.levels)
    _called(tower, subject, seconds, table, best(swept).setting, wanted.levels)
    return Measured(
        device=_device(on_gpu=wanted.gpu), machine=machine(), tower=tower.origin, engine=tower.programs(),
        library=_library(on_gpu=wanted.gpu), reference=tower.reference, closest=subject.reference.closest,
        swept_in_flight=_SWEPT_IN_FLIGHT, swept=tuple(swept), cells=tuple(table.cells),
        seconds=time.perf_counter() - began,
    )  # fmt: skip


def _tower(wanted: argparse.Namespace) -> making.Made:
    if wanted.gpu:
        return making.made(
            wanted.engines,
            of="torch",
            budget_seconds=wanted.budget or 25.0,
            buckets=making.GPU_BUCKETS,
            device="cuda:0",
        )
    return making.made(wanted.engines, of="lab", budget_seconds=wanted.budget or making.BUDGET_SECONDS)


def _device(*, on_gpu: bool) -> str:
    if not on_gpu:
        return "CPU"
    import torch

    return str(torch.cuda.get_device_name())


def _library(*, on_gpu: bool) -> str:
    return "a CUDA graph of torch's FP16" if on_gpu else "ONNX Runtime FP32 with bound buffers"


def _on_one_library(
    tower: making.Made,
    subject: measuring.Subject,
    seconds: float,
    table: measuring.Table,
    levels: Sequence[int],
    most: Setting,
    *,
    on_gpu: bool,
) -> None:
    """The same contexts shared, locked and one for each call."""
    contexts = _captured(tower, most.contexts) if on_gpu else _bound(tower, most.contexts)
    one = Setting(1, None)
    for context in contexts:
        context.run(subject.rows[0])
    for in_flight in levels:
        table.add(SHARED, one, in_flight, measuring.called(shared(contexts[0]), subject, in_flight, seconds))
        table.add(LOCKED, one, in_flight, measuring.called(locked(contexts[0]), subject, in_flight, seconds))
        pool = Setting(len(contexts), None)
        table.add(POOLED, pool, in_flight, measuring.called(pooled(contexts), subject, in_flight, seconds))


def _bound(tower: making.Made, count: int) -> list[Context]:
    assert tower.onnx is not None
    session = Session(tower.onnx, measuring.settings_of([1], on_gpu=False)[0].threads or 1)
    return [Bound(session) for _ in range(count)]


def _captured(tower: making.Made, count: int) -> list[Context]:
    import copy

    from benches.stories.contexts_cuda import Captured

    module: Any = copy.deepcopy(tower.module).half().cuda()
    return [Captured(module, (3, 224, 224)) for _ in range(count)]


def _served(
    tower: making.Made,
    clients: Clients,
    seconds: float,
    table: measuring.Table,
    settings: Sequence[Setting],
    levels: Sequence[int],
) -> list[Swept]:
    """The settings in turns, and the levels with the best of them."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(len(settings)) as starting:

        def started(setting: Setting) -> Target:
            server = hosted(tower.engine, instances=setting.contexts, threads=setting.threads)
            return Target("http", stack.enter_context(server).http, TOWER)

        servers = dict(zip(settings, starting.map(started, settings), strict=True))
        for server in servers.values():
            clients.ask(server, _SWEPT_IN_FLIGHT, _WARM_UP)

        def ask(setting: Setting) -> Tally:
            return clients.ask(servers[setting], _SWEPT_IN_FLIGHT, seconds)

        swept = []
        for setting, tallies in measuring.in_turns(ask, settings, _TURNS).items():
            table.add(SERVED, setting, _SWEPT_IN_FLIGHT, joined(tallies, at_once=False))
            rates = tuple(each.right / each.seconds for each in tallies)
            swept.append(Swept(setting.contexts, setting.threads, rates))
        top = best(swept).setting
        for in_flight in levels:
            if in_flight != _SWEPT_IN_FLIGHT:
                table.add(SERVED, top, in_flight, clients.ask(servers[top], in_flight, seconds))
        pipeline = replace(servers[top], model=PIPELINE)
        for in_flight in levels:
            table.add(PICTURES, top, in_flight, clients.ask(pipeline, in_flight, seconds, "files"))
    return swept


def _called(
    tower: making.Made,
    subject: measuring.Subject,
    seconds: float,
    table: measuring.Table,
    setting: Setting,
    levels: Sequence[int],
) -> None:
    """The engine in this process, with as many contexts as served best."""
    import penstock as ps

    engine = ps.load(tower.engine, instances=setting.contexts, threads=setting.threads)
    (given,), (answered,) = engine.inputs, engine.outputs

    def call(row: Any) -> Any:
        return engine(**{given.name: row[None]})[answered.name][0]

    call(subject.rows[0])
    for in_flight in levels:
        table.add(ENGINE, setting, in_flight, measuring.called(call, subject, in_flight, seconds))


if __name__ == "__main__":
    sys.exit(main())
