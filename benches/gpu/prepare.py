"""Lowers the models of the bench on a machine with ONNX, so that the one with the GPU needs none: NAME.bN.json.

Models of `torch_models` are exported by torch and lowered without their weights, which the measuring machine makes
from a seed (`weights`); whole numbers and single ones, which are arithmetic and not parameters, go along. Trained
models are lowered from the ONNX files that packages carry, with their weights in FP16 beside the smallest batch.
Needs torch, onnx, onnx-ir and onnxscript.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from safetensors.numpy import save_file

from benches.gpu import floor, torch_models
from benches.gpu.subjects import Subject
from penstock.build.torch_attention import of_four_axes
from penstock.engine.lowered import LoweredGraph, to_json
from penstock.graph import load, optimize, to_bytes
from penstock.graph.lowering import SUPPORTED, lower

Arrays = Mapping[str, NDArray[Any]]

_PACKAGE: Final = "rapidocr"
_FP16_MAX: Final = 65504.0
_OPSET: Final = 18
_AXES_ARE_INPUTS: Final = 18  # of ReduceMax, since this opset


class AbsentError(Exception):
    """A model's file is not on this machine."""


def prepare(subject: Subject, folder: Path, lab: Path, batches: Sequence[int], *, onnx: bool = False) -> list[str]:
    """Writes the lowered graphs; answers a line for each. `lab`: where exported ONNX files lie.

    `onnx`: the models too, with all their weights, as ONNX Runtime reads them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    said = []
    known: dict[str, bytes] = {}
    for batch in batches:
        name = f"{subject.name}.b{batch}"
        model = source(subject, batch, lab)
        if onnx:
            file = name if subject.source == "torch" else subject.name
            (folder / f"{file}.onnx").write_bytes(to_bytes(model))
        graph, weights = lowered(subject, batch, model)
        (folder / f"{name}.json").write_text(to_json(graph))
        kept = {key: _half(array) for key, array in weights.items() if subject.source == "onnx" or not _made(array)}
        new = {key: array for key, array in kept.items() if known.get(key) != array.tobytes()}
        known |= {key: array.tobytes() for key, array in new.items()}
        save_file(new, folder / f"{name}.safetensors")
        cost = floor.cost(graph)
        said.append(
            f"{name}: {len(graph.steps)} steps, {cost.flops / 1e9:.2f} GFLOP, floor {cost.milliseconds:.4f} ms, "
            f"{sum(array.nbytes for array in new.values()) / 2**20:.2f} MiB of {len(weights)} weights"
        )
    return said


def source(subject: Subject, batch: int, lab: Path) -> ir.Model:
    model = exported(subject, batch) if subject.source == "torch" else load(path_of(subject, lab))
    if subject.indices:
        _reduce_to_indices(model)
    return model


def lowered(subject: Subject, batch: int, model: ir.Model) -> tuple[LoweredGraph, Arrays]:
    shapes = {each.name: (batch, *each.shape) for each in subject.inputs}
    return lower(optimize(model, shapes=shapes, known=SUPPORTED).model, joined=not subject.eight)


def exported(subject: Subject, batch: int) -> ir.Model:
    """Of this batch and no other, as torch writes it."""
    import torch

    module = torch_models.build(subject.model)
    given = torch_models.example(subject, batch)
    with of_four_axes():
        program = torch.onnx.export(
            module, tuple(given.values()), input_names=list(given), opset_version=_OPSET, dynamo=True, verbose=False,
        )  # fmt: skip
    assert program is not None
    found: ir.Model = program.model
    return found


def path_of(subject: Subject, lab: Path) -> Path:
    """Raises AbsentError where neither the package nor the folder has it."""
    found = importlib.util.find_spec(_PACKAGE)
    roots = [Path(each) / "models" for each in (found.submodule_search_locations or ())] if found else []
    for root in (*roots, lab):
        if (path := root / subject.onnx).is_file():
            return path
    raise AbsentError(f"{subject.onnx} is neither in the package {_PACKAGE} nor in {lab}")


def _reduce_to_indices(model: ir.Model) -> None:
    """In place of every class's probability: the index of the largest one, INT64, and its probability."""
    (scores,) = model.graph.outputs
    index = ir.Value(name="index", type=ir.TensorType(ir.DataType.INT64))
    score = ir.Value(name="score", type=ir.TensorType(ir.DataType.FLOAT))
    given = [scores]
    options: dict[str, int | list[int]] = {"keepdims": 0}
    if model.opset_imports.get("", _OPSET) < _AXES_ARE_INPUTS:
        options["axes"] = [-1]
    else:
        axes = ir.Value(name="last_axis", const_value=ir.tensor(np.array([-1]), name="last_axis"))
        model.graph.initializers["last_axis"] = axes
        given.append(axes)
    model.graph.append(ir.node("ArgMax", [scores], {"axis": -1, "keepdims": 0}, outputs=[index]))
    model.graph.append(ir.node("ReduceMax", given, options, outputs=[score]))
    model.graph.outputs[:] = [index, score]


def _made(array: NDArray[Any]) -> bool:
    """Whether the measuring machine makes it from a seed: the parameters."""
    return array.dtype.kind == "f" and array.size > 1


def _half(array: NDArray[Any]) -> NDArray[Any]:
    fits = array.dtype == np.float32 and bool(np.abs(array).max(initial=0) < _FP16_MAX)
    return np.ascontiguousarray(array.astype(np.float16) if fits else array).reshape(array.shape)
