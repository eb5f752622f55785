"""The runtime `cuda` on torch's CPU device: everything of it but CUDA graphs and our own kernels' machine code."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from penstock import graph
from penstock.engine.cuda import artifact, form
from penstock.engine.cuda.runtime import CudaRuntime
from penstock.engine.cuda.tuning import Tuning
from penstock.engine.plan import Tactic
from penstock.engine.runtimes.base import Shelf
from penstock.errors import InvalidArgument, ModelLoadError, Unavailable, Unsupported
from penstock.graph.lowering import lower
from tests.quantize import networks

pytestmark = pytest.mark.torch

CPU = torch.device("cpu")
BATCHES = (1, 4)
# Norm-relative; FP16 keeps 11 bits and BF16 eight, over some ten layers.
TOLERANCES = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 3e-2}


def tactic(precision: str = "fp32", steps: str = "plain") -> Tactic:
    return Tactic("cuda", precision, "lowered", "static", options=(("steps", steps),))


def shapes(batch: int) -> dict[str, tuple[int, ...]]:
    return {"x": (batch, 3, 64, 64)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("form")
    graph.save(networks.residual(), found / "m.onnx")
    model = graph.load(found / "m.onnx")
    made = [(shapes(batch), *lower(graph.optimize(model, shapes=shapes(batch)).model)) for batch in BATCHES]
    form.write(found / "lowered.safetensors", made)
    Tuning.prepare(found / "lowered.safetensors", 1.0)
    return found


@pytest.fixture(scope="module")
def path(folder: Path) -> Path:
    return folder / "lowered.safetensors"


def compiled(path: Path, which: Tactic, batch: int | None) -> CudaRuntime:
    at = shapes(batch) if batch is not None else None
    return CudaRuntime.compile(path, which, shapes=at, instances=1, threads=None, device=CPU)


def expected(folder: Path, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "m.onnx"), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def picture(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, 64, 64)).astype(np.float32)


def error(found: np.ndarray, right: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - right) / np.linalg.norm(right))


@pytest.mark.parametrize("steps", ["plain", "tuned"])
@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_a_form_answers_as_its_model(precision: str, steps: str, path: Path, folder: Path) -> None:
    runtime = compiled(path, tactic(precision, steps), 4)
    x = picture(4)
    assert error(runtime(x=x)["fc"], expected(folder, x)) < TOLERANCES[precision]
    assert [str(spec) for spec in (*runtime.inputs, *runtime.outputs)] == ["x FP32[4, 3, 64, 64]", "fc FP32[4, 10]"]


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 9])
def test_with_every_bucket_any_number_of_rows_is_answered(rows: int, path: Path, folder: Path) -> None:
    runtime = compiled(path, tactic(), None)
    assert runtime.inputs[0].shape == (-1, 3, 64, 64)
    x = picture(rows, seed=rows)
    found = runtime(x=x)["fc"]
    assert found.shape == (rows, 10)
    assert error(found, expected(folder, x)) < TOLERANCES["fp32"]


@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_what_was_exported_is_reopened_with_the_weights_of_all_programs_once(precision: str, path: Path) -> None:
    which = tactic(precision, "tuned")
    read = []

    def member(name: str) -> bytes:
        read.append(name)
        return (path.parent / f"{name}.safetensors").read_bytes()

    shelf = Shelf(member)
    for batch in BATCHES:
        runtime = compiled(path, which, batch)
        again = CudaRuntime.reopen(
            memoryview(runtime.export()), which, ("fc",), "m.engine", instances=1, threads=None, shelf=shelf, device=CPU
        )
        np.testing.assert_array_equal(again(x=picture(batch))["fc"], runtime(x=picture(batch))["fc"])
    assert read == ["lowered"]
    (model,) = shelf.kept.values()
    pointers = {tensor.data_ptr() for tensor in model._placed.values()}
    assert len(pointers) == len(model._placed) == len({name for name, _ in model._placed})


def test_choices_are_found_once_and_taken_over_by_precisions_of_the_same_width(path: Path, folder: Path) -> None:
    beside = folder / "lowered.tuning.json"
    Tuning.prepare(path, 1.0)
    compiled(path, tactic("fp16", "tuned"), 1)
    first = beside.read_text()
    assert len(json.loads(first)["choices"]) == 1
    compiled(path, tactic("bf16", "tuned"), 1)
    assert beside.read_text() == first
    compiled(path, tactic("fp32", "tuned"), 1)
    assert len(json.loads(beside.read_text())["choices"]) == 2


def test_regions_name_every_step_with_its_time_and_what_executes_it(path: Path) -> None:
    runtime = compiled(path, tactic("fp32", "tuned"), 4)
    regions = runtime.regions({"x": picture(4)})
    assert len(regions) == len({region.name for region in regions}) > 5
    assert all(region.microseconds > 0 and region.tactic and region.nodes for region in regions)
    assert {region.precision for region in regions} == {"fp32"}
    assert "conv+bias+relu" in {region.kind for region in regions}


@pytest.mark.parametrize(
    ("which", "batch", "words"),
    [
        (tactic(steps="guessed"), 4, "expected steps=plain or steps=tuned"),
        (tactic(), 3, "are not prepared, expected one of"),
        (tactic("int8"), 4, "has no int8"),
    ],
)
def test_what_it_can_not_do_is_refused(which: Tactic, batch: int, words: str, path: Path) -> None:
    with pytest.raises((InvalidArgument, Unsupported), match=words):
        compiled(path, which, batch)


def test_a_closed_program_says_so(path: Path) -> None:
    runtime = compiled(path, tactic(), 1)
    runtime.close()
    with pytest.raises(Unavailable, match="load it again"):
        runtime(x=picture(1))


# ---- files that lie ----


def test_every_cut_and_many_a_changed_byte_of_a_form_is_refused_or_reads_as_a_form(path: Path) -> None:
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    random = np.random.default_rng(1)
    for end in [0, 7, 8, *random.integers(9, len(data), 20)]:
        with pytest.raises(ModelLoadError):
            form.read(data[:end], "m.engine")
    refused = 0
    for place in random.integers(0, header, 150):
        changed = bytearray(data)
        changed[place] ^= 1 << int(random.integers(0, 8))
        try:
            form.read(changed, "m.engine")
        except ModelLoadError:
            refused += 1
    assert refused > 50


def lying(**changes: object) -> bytes:
    data = {
        "format": 1,
        "shapes": {"x": [1]},
        "precision": "fp16",
        "choices": {},
        "early_launch": False,
        "codes": ["AAAA"],
        "kernels": [
            {"code": 0, "symbol": "k", "grid": [1, 1, 1], "threads": 32, "shared_bytes": 0, "parameters": "p",
             "early": False}
        ],
    }  # fmt: skip
    kernel = {key.removeprefix("kernel_"): value for key, value in changes.items() if key.startswith("kernel_")}
    data["kernels"][0].update(kernel)  # type: ignore[index,union-attr]
    data |= {key: value for key, value in changes.items() if not key.startswith("kernel_")}
    return json.dumps(data).encode()


def test_an_artifact_comes_back_as_it_was() -> None:
    found = artifact.from_bytes(lying(), "m.engine")
    assert artifact.from_bytes(artifact.to_bytes(found), "m.engine") == found
    assert found.kernels[0].cubin == b"\0\0\0"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        lying(format=2),
        lying(codes=["!!"]),
        lying(kernel_code=1),
        lying(kernel_grid=[1, 1]),
        lying(kernel_grid=[1, 1, -1]),
        lying(kernel_threads=4096),
        lying(kernel_shared_bytes=1 << 30),
        lying(kernel_parameters="x"),
        lying(choices={"a": ["triton", ["1"]]}),
        lying(shapes={"x": "1"}),
        b"[" * 100_000,
    ],
    ids=range(13),
)
def test_an_artifact_that_lies_is_refused(data: bytes) -> None:
    with pytest.raises(ModelLoadError, match="build it again"):
        artifact.from_bytes(data, "m.engine")
