"""Kernels written for pointwise programs, against torch in FP64."""

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

from penstock.engine.cuda import expressions
from penstock.engine.cuda.executor import Executor
from penstock.engine.cuda.kernels.pointwise import MOST_READS, Read, block_sizes, pointwise_launch
from penstock.engine.kinds import INSTRUCTIONS
from penstock.engine.lowered import Instruction, Number
from tests.engine.cuda.reference import error, lowered
from tests.engine.cuda.test_operators import CASES, Case, model_of
from tests.graph.small import run

pytestmark = [
    pytest.mark.torch,
    # NumPy's, behind the interpreter.
    pytest.mark.filterwarnings("ignore:(divide by zero|invalid value|overflow) encountered:RuntimeWarning"),
]

Line = tuple[str, tuple[str | Number, ...]]
BOUNDS = {"clip": ("i0", -0.5, 1.25), "hard_sigmoid": ("i0", 0.2, 0.5), "leaky_relu": ("i0", 0.1), "elu": ("i0", 1.5)}
BOUNDS |= {"star_relu": ("i0", 0.9, -0.4)}
TRUTHS = ("and", "or", "not", "where")


def program(*lines: Line) -> tuple[Instruction, ...]:
    return tuple(Instruction(name, arguments) for name, arguments in lines)


def launched(
    lines: Sequence[Instruction], views: Sequence[torch.Tensor], dtype: torch.dtype, block: int = 512
) -> torch.Tensor:
    """Over operands that may be views of one tensor."""
    shape = torch.broadcast_shapes(*(view.shape for view in views))
    bases: dict[int, torch.Tensor] = {}
    reads = []
    for view in views:
        base = view if view._base is None else view._base
        bases.setdefault(id(base), base)
        offset = view.storage_offset() - base.storage_offset()
        reads.append(Read(list(bases).index(id(base)), offset, view.expand(shape).stride()))
    out = torch.empty(shape, dtype=dtype, device=views[0].device)
    pointwise_launch(lines, list(bases.values()), reads, shape=shape, out=out, block=block).run()
    return out


def right(lines: Sequence[Instruction], views: Sequence[torch.Tensor]) -> torch.Tensor:
    return expressions.evaluate(lines, [each.double() if each.is_floating_point() else each for each in views])


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 3e-6) -> None:
    assert found.dtype.is_floating_point == expected.dtype.is_floating_point
    if found.dtype.is_floating_point:
        torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=tolerance, equal_nan=True)
    else:
        assert torch.equal(found, expected.to(found.dtype))


def sample(*shape: int, device: str, positive: bool = False) -> torch.Tensor:
    x = torch.randn(shape, device=device) * 3
    return x.abs() + 0.1 if positive else x


@pytest.mark.parametrize("name", sorted(set(INSTRUCTIONS) - {*TRUTHS, "pow", "to_int", "to_bool", "is_nan"}))
def test_an_instruction_computes_what_torch_does(name: str, device: str) -> None:
    positive = name in ("log", "sqrt", "reciprocal")
    views = [sample(3, 40, device=device, positive=positive)]
    if INSTRUCTIONS[name] == 2 and name not in BOUNDS:
        views.append(sample(3, 40, device=device, positive=name == "div"))
        views[1][0] = views[0][0]  # some are equal
    lines = program((name, BOUNDS.get(name) or tuple(f"i{number}" for number in range(INSTRUCTIONS[name]))))
    expected = right(lines, views)
    dtype = torch.float32 if expected.dtype.is_floating_point else expected.dtype
    assert_close(launched(lines, views, dtype), expected)


@pytest.mark.parametrize("exponent", [2, 3.0, 0.5, -1, 1, -0.5])
def test_powers(exponent: float, device: str) -> None:
    views = [sample(5, 7, device=device, positive=True)]
    lines = program(("pow", ("i0", exponent)))
    assert_close(launched(lines, views, torch.float32), right(lines, views))


def test_ties_go_to_the_even_one_however_large(device: str) -> None:
    x = torch.tensor([0.5, 1.5, -2.5, 4194304.5, 4194305.5, -8388607.5, 8388608.0, 3e9, -0.4], device=device)
    assert launched(program(("round", ("i0",))), [x], torch.float32).tolist() == x.double().round().tolist()


def test_what_is_not_a_number_stays_so_and_infinity_does_not_reach_sixteen_bits(device: str) -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e9, 2.0], device=device)
    for name in ("relu", "relu6", "sigmoid", "silu", "tanh", "abs", "softplus", "sign", "neg"):
        assert launched(program((name, ("i0",))), [x], torch.float32)[0].isnan(), name
    for name, arguments in BOUNDS.items():
        assert launched(program((name, arguments)), [x], torch.float32)[0].isnan(), name
    for name in ("min", "max", "add"):
        assert launched(program((name, ("i0", 1.0))), [x], torch.float32)[0].isnan(), name
    halves = launched(program(("mul", ("i0", 2.0))), [x], torch.float16)
    assert halves[1:].tolist() == [65504.0, -65504.0, 65504.0, 4.0]
    assert halves[0].isnan()


def test_truths_and_whole_numbers(device: str) -> None:
    x, n = sample(4, 33, device=device), torch.arange(4 * 33, device=device).reshape(4, 33)
    lines = program(
        ("greater", ("i0", 0.0)), ("less_equal", ("i1", 70)), ("and", ("t0", "t1")), ("not", ("t2",)),
        ("where", ("t3", "i0", -1.5)), ("to_float", ("i1",)), ("mul", ("t4", "t5")),
    )  # fmt: skip
    assert_close(launched(lines, [x, n], torch.float32), right(lines, [x, n]))
    assert_close(launched(lines[:3], [x, n], torch.bool), right(lines[:3], [x, n]))
    whole = program(("mul", ("i0", 3)), ("add", ("t0", "i0")), ("max", ("t1", 100)), ("neg", ("t2",)))
    assert_close(launched(whole, [n], torch.int64), right(whole, [n]))
    assert_close(launched(program(("clip", ("i0", 7, 90))), [n], torch.int64), n.clamp(7, 90))
    chosen = program(("greater", ("i0", 0.0)), ("less", ("i1", 70)), ("not", ("t1",)), ("where", ("t0", "t1", "t2")))
    assert_close(launched(chosen, [x, n], torch.bool), right(chosen, [x, n]))
    assert_close(launched(program(("to_int", ("i0",))), [x], torch.int64), x.long())
    assert_close(launched(program(("is_nan", ("i0",))), [x], torch.bool), x.isnan())
    assert_close(launched(program(("where", ("i0", 1.0, 0.0))), [x > 0], torch.float32), (x > 0).double())
    pixels = torch.arange(256, dtype=torch.uint8, device=device)
    lines = program(("to_float", ("i0",)), ("sub", ("t0", 127.5)))
    assert_close(launched(lines, [pixels], torch.float32), right(lines, [pixels]))


LAYOUTS = [
    ((6, 5, 17, 19), lambda x, y: [x.permute(0, 2, 3, 1), y.permute(0, 2, 3, 1)], "planes read as pixels"),
    ((2, 12, 9, 40), lambda x, y: [x, y.permute(0, 1, 2, 3)[:, :1, :1]], "a number for each column"),
    ((2, 300, 3), lambda x, y: [x.permute(0, 2, 1), y.permute(0, 2, 1)], "three planes"),
    ((4, 7, 9, 24), lambda x, y: [x[:, 1:4, 2:7], y[:, :3, :5]], "pieces"),
    ((4, 7, 9, 24), lambda x, y: [x[:, ::2, 1::3, 3], y[:, ::2, :3, 4]], "every other"),
    ((8, 64), lambda x, y: [x, y[3:4, 5:6]], "a single number"),
    ((8, 64), lambda x, y: [x[:1], y[:, :1]], "rows and columns"),
    ((1, 1), lambda x, y: [x, y], "one number"),
    ((3, 1100), lambda x, y: [x, y[1]], "long rows"),
    ((2, 6, 10, 16), lambda x, y: [x.permute(1, 0, 2, 3), y.permute(1, 0, 2, 3)], "outer axes swapped"),
    ((5, 130), lambda x, y: [x.t(), y.t()[:, :1]], "transposed"),
    ((5, 130), lambda x, y: [x.t(), y.t().contiguous()], "transposed beside dense"),
]


@pytest.mark.parametrize("block", [512, 1024, 2048])
@pytest.mark.parametrize(("shape", "seen", "name"), LAYOUTS, ids=[name for *_, name in LAYOUTS])
def test_operands_lie_in_any_way(shape: tuple[int, ...], seen: object, name: str, block: int, device: str) -> None:
    assert callable(seen)
    views = seen(sample(*shape, device=device), sample(*shape, device=device))
    lines = program(("mul", ("i0", "i1")), ("add", ("t0", "i0")))
    assert_close(launched(lines, views, torch.float32, block), right(lines, views))


def test_a_correlation_with_a_small_map_is_one_kernel(device: str) -> None:
    """25 windows of one picture, each times a number for each channel."""
    picture, small = sample(2, 20, 20, 32, device=device), sample(2, 5, 5, 32, device=device)
    windows = [(row, column) for row in range(5) for column in range(5)]
    views: list[torch.Tensor] = []
    lines: list[Line] = []
    for number, (row, column) in enumerate(windows):
        views += [picture[:, row : row + 16, column : column + 16], small[:, row : row + 1, column : column + 1]]
        lines.append(("mul", (f"i{2 * number}", f"i{2 * number + 1}")))
        if number:
            lines.append(("add", (f"t{len(lines) - 1}", f"t{len(lines) - 2}")))
    assert_close(launched(program(*lines), views, torch.float32), right(program(*lines), views), 2e-5)


def test_eight_bits_have_scales(device: str) -> None:
    bytes_ = torch.randint(-128, 128, (4, 64), dtype=torch.int8, device=device)
    x = sample(4, 64, device=device).half()
    out = torch.empty_like(bytes_)
    lines, strides = program(("add", ("i0", "i1"))), bytes_.stride()
    pointwise_launch(
        lines, [bytes_, x], [Read(0, 0, strides, 0.05), Read(1, 0, strides)], shape=x.shape, out=out, out_scale=0.07
    ).run()
    expected = ((bytes_.float() * 0.05 + x.float()) * (1 / 0.07)).round().clamp(-128, 127)
    assert (out.float() - expected).abs().max() <= 1  # a tie may fall to either side
    assert (out.float() == expected).float().mean() > 0.99


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float16, torch.bool, torch.int64])
def test_a_copy_changes_nothing(dtype: torch.dtype, device: str) -> None:
    x = torch.randint(0, 2 if dtype == torch.bool else 100, (6, 50, 20), device=device).to(dtype)
    if dtype == torch.float16:
        x[0, 0, 0] = float("inf")
    assert torch.equal(launched(program(("identity", ("i0",))), [x.permute(2, 0, 1)], dtype), x.permute(2, 0, 1))


def test_programs_at_random(device: str) -> None:
    chance = random.Random(5)
    for _ in range(25):
        views = [sample(3, 1, 20, device=device), sample(4, 1, device=device), sample(20, device=device)]
        lines: list[Line] = []
        for number in range(chance.randint(1, 12)):
            known = [f"i{each}" for each in range(3)] + [f"t{each}" for each in range(number)]
            name = chance.choice(["add", "sub", "mul", "min", "max", "relu", "tanh", "sigmoid", "neg", "abs", "silu"])
            lines.append((name, tuple(chance.choice(known) for _ in range(INSTRUCTIONS[name]))))
        lines.append(("add", (f"t{len(lines) - 1}", "i0")))
        lines += [("add", (f"t{len(lines) - 1}", "i1")), ("add", (f"t{len(lines)}", "i2"))]
        expected = right(program(*lines), views)
        size = float(expected.abs().max()) + 1
        assert_close(launched(program(*lines), views, torch.float32) / size, expected / size, 1e-5)


@pytest.mark.parametrize(
    ("line", "dtype"),
    [
        (("div", ("i1", 2)), torch.int64),  # which way it rounds is torch's affair
        (("pow", ("i1", 2)), torch.int64),
        (("clip", ("i1", 0.5, 2)), torch.int64),
        (("add", ("i2", "i2")), torch.bool),
        (("add", ("i3", 1)), torch.uint8),
        (("add", ("i0", 1.0)), torch.int64),
        (("add", ("i4", "i4")), torch.float64),
    ],
    ids=str,
)
def test_what_it_does_not_know_is_refused(line: Line, dtype: torch.dtype, device: str) -> None:
    x = torch.ones(4, device=device)
    views = [x, x.long(), x.bool(), x.byte(), x.double()]
    with pytest.raises(ValueError, match=r"no kernel|expected"):
        launched(program(line), views, dtype)


def test_sizes_beyond_an_index_are_refused() -> None:
    x = torch.empty(2, device="meta")
    with pytest.raises(ValueError, match="2\\*\\*31"):
        pointwise_launch(
            program(("neg", ("i0",))), [x], [Read(0, 0, (2**30, 1))], shape=(3, 4), out=torch.empty(12, device="meta")
        )
    reads = [Read(0, 0, (1,))] * (MOST_READS + 1)
    with pytest.raises(ValueError, match="reads"):
        pointwise_launch(program(("neg", ("i0",))), [x], reads, shape=(2,), out=x)


# In a process of its own: this one may have defined the kernels for the interpreter.
COMPILED = """
import torch
from penstock.engine.cuda.kernels.launching import Launch
from penstock.engine.cuda.kernels.pointwise import Read, pointwise_launch
from penstock.engine.cuda.precompile import Compilers, Recipe
from penstock.engine.lowered import Instruction

def launch(*lines, wide=192, dtype=torch.float16, strides=None, shape=(64, 56, 192)):
    x = torch.empty(1 << 20, dtype=dtype, device="meta")
    out = torch.empty(shape, dtype=dtype, device="meta")
    program = [Instruction(name, arguments) for name, *arguments in lines]
    reads = [Read(0, 0, strides or (56 * 192, 192, 1)), Read(1, 64, (0, 0, 1))]
    return pointwise_launch(program, [x, x], reads, shape=shape, out=out, block=2048, pdl=True)

SILU = ("silu", "i0"), ("mul", "t0", "i1")
silu, again, relu = launch(*SILU), launch(*SILU), launch(("relu", "i0"), ("add", "t0", "i1"))
assert silu.kernel is again.kernel and silu.kernel is not relu.kernel
across = launch(("add", "i0", "i1"), strides=(56 * 192, 1, 56))
power = launch(("pow", "i0", 1.7), ("pow", 2, "t0"))
with Compilers(2) as compilers:
    for each in [compilers.submit(one) for one in (silu, relu, across, power)]:
        assert each.result() == "", each.result()
for one in (silu, relu, across, power):
    resources = one.compile()
    found = one._compiled(90).asm["ptx"]
    assert one.seal().symbol == one.symbol
    print(resources.registers, resources.spilled_bytes, "ld.global.v4" in found, "st.global.v4" in found, sep=",")
"""


def test_written_kernels_compile_for_hopper_in_other_processes_with_wide_accesses(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split(",") for line in done.stdout.splitlines()]
    assert [row[1:] for row in rows] == [["0", "True", "True"]] * 4
    assert all(int(row[0]) <= 64 for row in rows)
    compiled = {path.name for path in tmp_path.rglob("*.cubin")}
    assert len(compiled) == 4, "what another process compiled was found"


@pytest.mark.parametrize(("elements", "first"), [(1, 512), (512 * 264, 512), (4096 * 264, 4096), (10**9, 4096)])
def test_blocks_are_as_large_as_leaves_every_multiprocessor_some(elements: int, first: int) -> None:
    sizes = block_sizes(elements)
    assert sizes[0] == first
    assert len(set(sizes)) == len(sizes) >= 2


def _written(case: Case) -> bool:
    return bool({step.kind for step in lowered(*model_of(case))[0].steps} & {"pointwise", "copy"})


OPERATORS = [case for case in CASES if _written(case)]


@pytest.mark.parametrize("case", OPERATORS, ids=lambda case: f"{case.text} {next(iter(case.inputs.values()))}"[:90])
def test_operators_agree_with_onnx_runtime(case: Case, device: str) -> None:
    if "Pow" in case.text and device == "cpu":
        pytest.skip("Triton's interpreter has no library of functions")
    model, inputs = model_of(case)
    executor = Executor(*lowered(model, inputs), device, "fp32", ("triton", "triton_tiles"))
    found = executor.run({name: torch.from_numpy(np.array(each)).to(device) for name, each in inputs.items()})
    for name, expected in run(model, inputs).items():
        if expected.dtype.kind == "f":
            assert error(found[name].cpu().numpy(), expected) < 1e-5
        else:
            assert np.array_equal(found[name].cpu().numpy(), expected)


def test_most_of_them_need_no_other_kernel(device: str) -> None:
    others = set()
    for case in OPERATORS:
        executor = Executor(*lowered(*model_of(case)), device, "fp32", ("triton", "triton_tiles"))
        steps = [bound for bound in executor.program if bound.kind in ("pointwise", "copy")]
        if any(not bound.implementation.startswith("triton") for bound in steps):
            others.add(case.text)
    # Bytes are only read, and which way whole numbers round is left to torch.
    assert others == {"i = Cast <to=2> (x) y = Cast <to=1> (i)", "i = Cast <to=7> (x) y = Div(i, w)"}
