"""Writes model repositories in Triton's layout for a real Triton, from `zoo`; the explicit one mirrors `onnx_files`."""

import shutil
from pathlib import Path

from tests.servers.zoo import MODELS, Model, Tensor

MODEL_PY = Path(__file__).with_name("triton_model.py")


def _tensors(kind: str, tensors: tuple[Tensor, ...]) -> str:
    blocks = []
    for tensor in tensors:
        datatype = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
        optional = " optional: true" if tensor.optional else ""
        dims = list(tensor.shape)
        blocks.append(f'{{ name: "{tensor.name}" data_type: TYPE_{datatype} dims: {dims}{optional} }}')
    return f"{kind} [ {', '.join(blocks)} ]"


def _batching(model: Model) -> str:
    if not model.max_batch_size:
        return ""
    if model.max_queue_size:
        return f"dynamic_batching {{ default_queue_policy {{ max_queue_size: {model.max_queue_size} }} }}"
    return "dynamic_batching { }"


def config_pbtxt(model: Model, behaviour: str) -> str:
    return "\n".join(
        [
            f'name: "{model.name}"',
            'backend: "python"',
            f"max_batch_size: {model.max_batch_size}",
            _tensors("input", model.inputs),
            _tensors("output", model.outputs),
            f"instance_group [ {{ count: {model.instances} kind: KIND_CPU }} ]",
            _batching(model),
            f'parameters [ {{ key: "behaviour" value: {{ string_value: "{behaviour}" }} }} ]',
            "",
        ]
    )


def write_model(repository: Path, model: Model, behaviour: str, versions: tuple[int, ...] = (1,)) -> None:
    directory = repository / model.name
    for version in versions:
        (directory / str(version)).mkdir(parents=True)
        shutil.copy(MODEL_PY, directory / str(version) / "model.py")
    (directory / "config.pbtxt").write_text(config_pbtxt(model, behaviour), encoding="utf-8")


def write_zoo(repository: Path) -> None:
    for model in MODELS:
        write_model(repository, model, model.behaviour)


def write_explicit(repository: Path) -> None:
    """`first` (one version), `second` (versions 1 and 2) and `broken`, which never loads."""
    x, y = (Tensor("x", "FP32", (4,)),), (Tensor("y", "FP32", (4,)),)

    def entry(name: str) -> Model:
        return Model(name, "double", x, y, MODELS[0].reference)

    write_model(repository, entry("first"), "double")
    write_model(repository, entry("second"), "double", versions=(1, 2))
    write_model(repository, entry("broken"), "broken")
