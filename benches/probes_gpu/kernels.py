"""Our GPU kernels against torch, cuDNN and cuBLAS, layer by layer of real models. Needs torch and triton alone.

    python benches/probes_gpu/kernels.py --groups resnet50-b1,vit-b1 --seconds 300      # on a GPU
    python benches/probes_gpu/kernels.py --compile-check                                # anywhere

Every time is one call of many in one CUDA graph. The floor is the larger of arithmetic at 724 TFLOP/s (INT8 1448) and
each tensor moved once at 4.28 TB/s. `bare` rivals leave bias, residual and activation out: they are limits, not peers.
With $OUT set, all numbers go to $OUT/kernels.json too.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path

import torch
from cases import Case, Config
from catalogue import Catalogue
from kernels.launching import Resources
from kernels.tuning import microseconds, tune

FLOPS = 724e12
BYTES = 4.28e12
H200 = 132


@dataclass
class Row:
    case: str
    group: str
    floor_us: float
    ours_us: float = float("inf")
    config: str = ""
    gb_s: float = 0.0
    tflop_s: float = 0.0
    norm_error: float = float("nan")
    max_error: float = float("nan")
    steady: bool = False
    """Whether a second run gave the same bits."""
    rivals_us: dict[str, float] = field(default_factory=dict)
    all_us: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def floor_us(case: Case) -> float:
    rate = FLOPS * (2 if "int8" in case.group else 1)
    return max(2 * case.macs / rate, case.bytes / BYTES) * 1e6


def measure(case: Case, multiprocessors: int, limit: int) -> Row:
    row = Row(case.name, case.group, round(floor_us(case), 2))
    built = case.build("cuda", multiprocessors)
    for name, call in built.rivals.items():
        try:
            row.rivals_us[name] = round(microseconds(call), 2)
        except Exception as error:
            row.failed[name] = f"{type(error).__name__}: {error}"[:120]
    timing = tune(case.candidates(multiprocessors)[:limit], built.launch)
    row.all_us = {str(config): round(us, 2) for config, us in timing.all.items()}
    row.failed |= {str(config): why for config, why in timing.failed.items()}
    if timing.best is None:
        return row
    row.ours_us, row.config = round(timing.microseconds, 2), str(timing.best)
    row.gb_s = round(case.bytes / timing.microseconds / 1e3, 1)
    row.tflop_s = round(2 * case.macs / timing.microseconds / 1e6, 1)
    # Every candidate is checked, not only the fastest: a wrong one may win elsewhere.
    right = built.reference()
    row.norm_error, row.max_error, row.steady = 0.0, 0.0, True
    for config in timing.all:
        launch = built.launch(config)
        answers = []
        for _ in range(2):
            built.out.fill_(float("nan") if built.out.is_floating_point() else 77)
            launch.run()
            answers.append(built.out.clone())
        difference = answers[0].float() - right
        norm = float(difference.norm() / right.norm())
        # NaN compares false, so it is looked for by name.
        if norm != norm or norm > row.norm_error:
            row.norm_error = norm
        row.max_error = max(row.max_error, float(difference.abs().max()))
        row.steady &= bool(torch.equal(answers[0], answers[1]))
    return row


def compile_one(group: str, index: int, config: Config, multiprocessors: int) -> tuple[str, str, Resources | str]:
    """Executed in a process of its own; the machine code stays in Triton's cache."""
    case = Catalogue.everything().cases[group][index]
    try:
        return case.name, str(config), case.build("meta", multiprocessors).launch(config).compile()
    except Exception as error:
        return case.name, str(config), f"{type(error).__name__}: ...{str(error)[-300:]}"


def compile_all(
    groups: list[str], multiprocessors: int, limit: int, jobs: int, deadline: float
) -> Iterator[tuple[str, str, Resources | str]]:
    catalogue = Catalogue.everything().cases
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running: set[Future[tuple[str, str, Resources | str]]] = set()
        for group in groups:
            for index, case in enumerate(catalogue[group]):
                for config in case.candidates(multiprocessors)[:limit]:
                    running.add(pool.submit(compile_one, group, index, config, multiprocessors))
        while running and time.monotonic() < deadline:
            done, running = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
            for each in done:
                yield each.result()
        pool.shutdown(cancel_futures=True)


def compile_check(groups: list[str], limit: int, jobs: int, deadline: float) -> int:
    """Compile for Hopper without one and say what the candidates take; the count of those that do not compile."""
    built, failures = 0, 0
    for name, config, result in compile_all(groups, H200, limit, jobs, deadline):
        built += 1
        if isinstance(result, str):
            failures += 1
            print(f"FAILED {name} {config}: {result}", flush=True)
            continue
        spilled = f" SPILLS {result.spilled_bytes} B" if result.spilled_bytes else ""
        kind = "wgmma" if result.uses_wgmma else ""
        print(f"{name:44} {config} {result.registers} regs {result.shared_bytes} B {kind}{spilled}", flush=True)
    print(f"{built} candidates, {failures} failed")
    return failures


def show(row: Row) -> None:
    rivals = "  ".join(f"{name} {us:.2f}" for name, us in row.rivals_us.items())
    print(
        f"{row.case:46} floor {row.floor_us:7.2f}  ours {row.ours_us:8.2f}  {rivals}  {row.gb_s:.0f} GB/s "
        f"{row.tflop_s:.0f} TF  err {row.norm_error:.1e}{'' if row.steady else ' UNSTEADY'}"
        f"{f' ({len(row.failed)} failed)' if row.failed else ''}\n    {row.config}",
        flush=True,
    )


def main() -> int:
    catalogue = Catalogue.everything().cases
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", default=",".join(catalogue), help=f"of {', '.join(catalogue)}")
    parser.add_argument("--seconds", type=float, default=540, help="stop after this long, with what there is")
    parser.add_argument("--limit", type=int, default=12, help="candidates of a layer")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that compile")
    parser.add_argument("--compile-check", action="store_true", help="compile all candidates for Hopper; needs no GPU")
    options = parser.parse_args()
    groups = options.groups.split(",")
    start = time.monotonic()
    deadline = start + options.seconds
    if options.compile_check:
        return 1 if compile_check(groups, options.limit, options.jobs, deadline) else 0

    torch.set_grad_enabled(False)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    compiled = sum(
        1 for _ in compile_all(groups, multiprocessors, options.limit, options.jobs, start + options.seconds / 2)
    )
    print(f"{compiled} candidates compiled in {time.monotonic() - start:.0f} s", flush=True)
    rows: list[Row] = []
    for group in groups:
        for case in catalogue[group]:
            if time.monotonic() > deadline:
                print("out of time")
                break
            try:
                rows.append(measure(case, multiprocessors, options.limit))
            except Exception as error:
                print(f"{case.name}: {type(error).__name__}: {error}", flush=True)
                continue
            show(rows[-1])
            if out := os.environ.get("OUT"):
                log = {"device": torch.cuda.get_device_name(0), "torch": torch.__version__}
                text = json.dumps(log | {"rows": [asdict(row) for row in rows]}, indent=1)
                (Path(out) / "kernels.json").write_text(text)
    print(f"{len(rows)} layers in {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
