"""The recurrence of an LSTM: its source compiled for the CPU against float64, and for a GPU that is not here."""

import ctypes
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from penstock.engine.cuda.kernels import nvrtc  # noqa: E402
from penstock.engine.cuda.kernels.cpp_launching import CppLaunch, text  # noqa: E402
from penstock.engine.cuda.kernels.lstm import LstmCut, by_unit, lstm_cuts, lstm_launch, packed  # noqa: E402

pytestmark = pytest.mark.torch

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Layer:
    time: int
    batch: int
    hidden: int
    directions: int
    cut: LstmCut
    dtype: torch.dtype = torch.float16
    products: torch.dtype = torch.float32
    out: torch.dtype = torch.float16
    states: torch.dtype = torch.float32
    begins: bool = False
    batch_first: bool = False

    def __str__(self) -> str:
        cut = f"{self.cut.cluster}x{self.cut.split}x{self.cut.tiles}"
        return f"{self.time}x{self.batch}x{self.hidden}x{self.directions} {cut} {self.dtype} {self.begins}"


BF16 = torch.bfloat16
LAYERS = [
    Layer(1, 3, 32, 1, LstmCut(1, 1, 1)),
    Layer(5, 8, 32, 2, LstmCut(2, 1, 1), batch_first=True),
    Layer(4, 11, 32, 2, LstmCut(4, 1, 1), products=torch.float16, begins=True, out=torch.float32),
    Layer(4, 19, 64, 1, LstmCut(2, 2, 2), begins=True),
    Layer(3, 9, 96, 2, LstmCut(4, 1, 1), BF16, out=BF16, states=BF16, begins=True),
    Layer(3, 30, 64, 1, LstmCut(4, 2, 4), products=torch.float16, states=torch.float16),
]


@dataclass(frozen=True)
class Tensors:
    products: torch.Tensor
    recurrence: torch.Tensor
    out: torch.Tensor
    last_hidden: torch.Tensor
    last_cell: torch.Tensor
    hidden: torch.Tensor | None
    cell: torch.Tensor | None

    def launch(self, layer: Layer) -> CppLaunch:
        time, batch, directions, hidden = self.out.shape
        products = by_unit(self.products.transpose(0, 2).transpose(1, 3).flatten(2)).view(-1, time * batch)
        products = products.T.reshape(time, batch, directions * 4 * hidden).contiguous()
        if layer.batch_first:
            products = products.transpose(0, 1).contiguous().transpose(0, 1)
        return lstm_launch(
            products, packed(self.recurrence), out=self.out, last_hidden=self.last_hidden, last_cell=self.last_cell,
            config=layer.cut, hidden=self.hidden, cell=self.cell,
        )  # fmt: skip


def tensors(layer: Layer, device: str = "cpu") -> Tensors:
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int, dtype: torch.dtype = layer.dtype) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype).to(device)

    time, batch, directions, hidden = layer.time, layer.batch, layer.directions, layer.hidden
    state = (directions, batch, hidden)
    return Tensors(
        normal(time, batch, directions, 4 * hidden, dtype=layer.products),
        (normal(directions, 4 * hidden, hidden) * (2 * hidden**-0.5)).to(layer.dtype),
        torch.full((time, batch, directions, hidden), torch.nan, dtype=layer.out, device=device),
        torch.full(state, torch.nan, dtype=layer.states, device=device),
        torch.full(state, torch.nan, dtype=layer.states, device=device),
        normal(*state) if layer.begins else None,
        normal(*state) if layer.begins else None,
    )


def expected(given: Tensors) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """In float64, gates i, f, c, o."""
    time, batch, directions, units = given.out.shape
    y = torch.zeros(time, batch, directions, units, dtype=torch.float64)
    last = torch.zeros(2, directions, batch, units, dtype=torch.float64)
    for direction in range(directions):
        weight = given.recurrence[direction].double().cpu()
        h, c = (
            torch.zeros(batch, units).double() if each is None else each[direction].double().cpu()
            for each in (given.hidden, given.cell)
        )
        for step in range(time) if direction == 0 else reversed(range(time)):
            gates = given.products[step, :, direction].double().cpu() + h @ weight.T
            i, f, g, o = gates.chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            y[step, :, direction] = h
        last[0, direction], last[1, direction] = h, c
    return y, last[0], last[1]


def difference(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found.double().cpu() - right).norm() / right.norm())


def compiled_for_the_cpu(launch: CppLaunch, folder: Path) -> ctypes.CDLL:
    source = text(launch.source).replace('#include "primitives.cuh"', '#include "emulated.hpp"')
    for declared, found in (
        ("extern __shared__ Quad memory[];", "Quad* memory = block_memory();"),
        ("__shared__ Barrier barriers[2];", "Barrier* barriers = block_barriers();"),
    ):
        source = source.replace(declared, found)
    count = len(launch.bound())
    pointers = ", ".join(f"pointer(arguments[{number}])" for number in range(count))
    source += f"""
struct pointer {{
  void* to;
  explicit pointer(void* to) : to(to) {{}}
  template <class T> operator T*() const {{ return static_cast<T*>(to); }}
}};
extern "C" void run(void** arguments) {{
  launch({launch.grid[0]}, {launch.cluster}, {launch.threads}, [=] {{ {launch.symbol}({pointers}); }});
}}
"""
    file, library = folder / "kernel.cpp", folder / "kernel.so"
    file.write_text(source)
    macros = [f"-D{name}={value}" for name, value in launch.constants.items()]
    command = ["g++", "-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-pthread", f"-I{HERE}", *macros, str(file)]
    subprocess.run([*command, "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_every_lane_of_the_source_does_its_part(layer: Layer, tmp_path: Path) -> None:
    given = tensors(layer)
    launch = given.launch(layer)
    library = compiled_for_the_cpu(launch, tmp_path)
    library.run((ctypes.c_void_p * len(launch.bound()))(*map(int, launch.bound())))
    narrowest = BF16 if BF16 in (layer.dtype, layer.out) else torch.float16
    for found, right in zip((given.out, given.last_hidden, given.last_cell), expected(given), strict=True):
        assert difference(found, right) < (4e-3 if narrowest is BF16 else 5e-4)


FOR_A_GPU = [
    replace(LAYERS[0], hidden=hidden, batch=batch, time=26, directions=2, cut=cut, dtype=dtype, out=torch.float32)
    for hidden, batch, dtype in ((256, 32, torch.float16), (512, 8, BF16), (128, 1, torch.float16), (384, 8, BF16))
    for cut in lstm_cuts(hidden, batch, 2, 132)[:3]
]


@pytest.mark.skipif(not nvrtc.available(), reason="there is no NVRTC")
@pytest.mark.parametrize("layer", FOR_A_GPU, ids=str)
def test_it_compiles_without_a_gpu_and_keeps_everything_in_registers(layer: Layer) -> None:
    launch = tensors(layer).launch(layer)
    found = launch.compile()
    assert found.cubin.startswith(b"\x7fELF")
    assert found.spilled_bytes == 0
    assert launch.threads * found.registers <= 65536
    assert launch.seal().cluster == layer.cut.cluster


@pytest.mark.skipif(not nvrtc.available(), reason="there is no NVRTC")
def test_what_does_not_compile_says_where() -> None:
    with pytest.raises(nvrtc.CompilerError, match=r"kernel.cu\(1\): error"):
        nvrtc.compile_cpp("int f( {", [], [], "sm_90")


@pytest.mark.parametrize(("hidden", "some"), [(256, True), (512, True), (32, True), (40, False), (2048, False)])
def test_layers_that_no_cluster_can_hold_have_no_cut(hidden: int, some: bool) -> None:
    assert bool(lstm_cuts(hidden, 32, 2, 132)) is some


def test_gates_of_a_unit_lie_together() -> None:
    weight = torch.arange(2 * 12 * 5).view(2, 12, 5)
    found = by_unit(weight)
    assert torch.equal(found[4 * 1 + 2], weight[0, 2 * 3 + 1])  # unit 1, gate 2
    assert torch.equal(found[12 + 4 * 2 + 3], weight[1, 3 * 3 + 2])


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
@pytest.mark.parametrize("begins", [False, True])
def test_a_layer_of_a_model_is_a_product_and_a_recurrence(begins: bool, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    pytest.importorskip("onnx")
    from penstock.engine.cuda.executor import Executor
    from penstock.engine.cuda.recurrent import RECURRENT
    from penstock.engine.cuda.ways import Ready
    from tests.engine.cuda.reference import error, lowered
    from tests.graph.small import graph, normal, run

    time, batch, width, hidden = 4, 9, 24, 32
    state = ", , h0, c0" if begins else ""
    weights = {
        "w": normal(2, 4 * hidden, width) / 4,
        "r": normal(2, 4 * hidden, hidden, seed=1) / 4,
        "b": normal(2, 8 * hidden, seed=2),
    }
    inputs = {"x": normal(time, batch, width, seed=3)}
    inputs |= {name: normal(2, batch, hidden, seed=4) for name in ("h0", "c0") if begins}
    given = ", ".join(f"float[{','.join(map(str, each.shape))}] {name}" for name, each in inputs.items())
    answers = f"float[{time},2,{batch},{hidden}] y, float[2,{batch},{hidden}] h, float[2,{batch},{hidden}] c"
    layer = f'y, h, c = LSTM <hidden_size={hidden}, direction="bidirectional"> (x, w, r, b{state})'
    model = graph(f"({given}) => ({answers}) {{ {layer} }}", weights)
    executor = Executor(*lowered(model, inputs), "cpu", "fp16")
    site = next(site for site in executor.sites if site.step.kind == "lstm")
    seen: dict[str, list[torch.Tensor]] = {}
    executor.run(
        {name: torch.from_numpy(each) for name, each in inputs.items()},
        lambda number, operands: seen.update({executor.sites[number].step.kind: list(operands)}),
    )
    operands = seen["lstm"]
    outputs = [torch.empty(site.out_shape(at), dtype=site.out_dtype(at)) for at in range(3)]
    way = RECURRENT["lstm", "cuda_cluster"]
    constants = way.combined(
        {role: form(weight) for role, form in way.forms.items() if (weight := site.weight(role)) is not None}
    )
    ready = Ready(site, (2, 1, 1, 16, 32, 16, 4, 2, 1, 8), constants)
    product, recurrence = way.launches(ready, operands, outputs, None)
    assert isinstance(recurrence, CppLaunch)
    product.run()
    library = compiled_for_the_cpu(recurrence, tmp_path)
    library.run((ctypes.c_void_p * len(recurrence.bound()))(*map(int, recurrence.bound())))
    expected_ = run(model, inputs)
    y = outputs[0].permute(0, 2, 1, 3)
    for found, name in zip((y, *outputs[1:]), "yhc", strict=True):
        assert error(found.float().numpy(), expected_[name]) < 1e-3
