"""ONNX Runtime's CUDA provider as a way, at its best options, where it is installed and the ONNX file is there.

FP16 by ONNX Runtime's own converter, inputs and outputs bound on the device, its CUDA graph, exhaustive search, no
TF32; NHWC and NCHW are two ways, since neither is the faster one of every model. On a machine without a GPU the CPU
provider runs it in FP32, to try the script. Needs onnxruntime and onnx.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from benches.gpu.ready import Ready
from benches.gpu.subjects import Subject
from benches.gpu.weights import Tensors, tensors_like

NCHW: Final = "ONNX Runtime CUDA, NCHW"
NHWC: Final = "ONNX Runtime CUDA, NHWC"
CPU: Final = "ONNX Runtime CPU, FP32"


class AbsentError(Exception):
    """Why this way is not there."""


def makers(
    subject: Subject, batch: int, folder: Path, given: Tensors, expected: Sequence[torch.Tensor], device: str
) -> Iterator[tuple[str, Callable[[], Ready]]]:
    names = (NHWC, NCHW) if device.startswith("cuda") else (CPU,)
    for name in names:
        yield name, lambda name=name: _made(name, subject, batch, folder, given, expected)  # type: ignore[misc]


def _made(
    name: str, subject: Subject, batch: int, folder: Path, given: Tensors, expected: Sequence[torch.Tensor]
) -> Ready:
    if importlib.util.find_spec("onnxruntime") is None:
        raise AbsentError("onnxruntime is not installed")
    import onnxruntime

    wanted = "CPUExecutionProvider" if name == CPU else "CUDAExecutionProvider"
    if wanted not in onnxruntime.get_available_providers():
        raise AbsentError(f"onnxruntime {onnxruntime.__version__} has no {wanted}: onnxruntime-gpu is not installed")
    files = [folder / f"{subject.model}.b{batch}.onnx", folder / f"{subject.model}.onnx"]
    path = next((each for each in files if each.is_file()), None)
    if path is None:
        raise AbsentError(f"{files[0].name} is not there: `prepare --onnx` writes it")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if name == CPU:
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=[wanted])
        return _on_cpu(name, session, tensors_like(given, torch.float32, "cpu"), expected)
    return _on_gpu(name, onnxruntime, path, options, tensors_like(given, torch.float16, "cuda"), expected)


def _on_cpu(name: str, session: Any, given: Tensors, expected: Sequence[torch.Tensor]) -> Ready:
    arrays = {each: tensor.contiguous().numpy() for each, tensor in given.items()}
    last: list[torch.Tensor] = []

    def replay() -> None:
        last[:] = [torch.from_numpy(each) for each in session.run(None, arrays)]

    return Ready(name, replay, list(given.values()), lambda: last, expected)


def _on_gpu(
    name: str, onnxruntime: Any, path: Path, options: Any, given: Tensors, expected: Sequence[torch.Tensor]
) -> Ready:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    narrow = convert_float_to_float16(onnx.load(path), keep_io_types=False)
    stream = torch.cuda.Stream()
    provider = {
        "prefer_nhwc": "1" if name == NHWC else "0",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "cudnn_conv_use_max_workspace": "1",
        "enable_cuda_graph": "1",
        "use_tf32": "0",
        "user_compute_stream": str(stream.cuda_stream),
        "do_copy_in_default_stream": "1",
    }
    providers = [("CUDAExecutionProvider", provider), "CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(narrow.SerializeToString(), options, providers=providers)
    binding = session.io_binding()
    outputs = []
    for each, tensor in given.items():
        _bind(binding.bind_input, each, tensor)
    for each, right in zip(session.get_outputs(), expected, strict=True):
        dtype = torch.float16 if right.is_floating_point() else right.dtype
        outputs.append(torch.empty(right.shape, dtype=dtype, device="cuda"))
        _bind(binding.bind_output, each.name, outputs[-1])
    run = onnxruntime.RunOptions()
    run.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def replay() -> None:
        session.run_with_iobinding(binding, run)

    for _ in range(3):
        replay()
    return Ready(name, replay, list(given.values()), lambda: outputs, expected, stream=stream, static=True)


_NUMPY: Final = {torch.float16: np.float16, torch.float32: np.float32, torch.int64: np.int64}


def _bind(bind: Callable[..., None], name: str, tensor: torch.Tensor) -> None:
    bind(name, "cuda", 0, _NUMPY[tensor.dtype], tuple(tensor.shape), tensor.data_ptr())
