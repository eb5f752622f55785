"""torch's own ways: eager, a CUDA graph of it, and torch.compile with freezing, in channels-last 16 bits.

The model is a module of `torch_models` with its batch norms folded, or, where only an ONNX file exists, the lowered
steps as a traced module. torch.compile's default code is replayed from a CUDA graph of ours, which is the fastest way
to run it; `reduce-overhead` brings its own. Needs torch.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from benches.gpu import torch_models
from benches.gpu.ours import Model
from benches.gpu.ready import Ready
from benches.gpu.subjects import Subject
from benches.gpu.weights import Tensors, tensors_like

Compute = Callable[..., "torch.Tensor | Sequence[torch.Tensor]"]

EAGER, GRAPH, DEFAULT, REDUCED, SEARCHED = (
    "eager", "CUDA graph of eager", "torch.compile default, CUDA graph", "torch.compile reduce-overhead",
    "torch.compile max-autotune, CUDA graph",
)  # fmt: skip
NEEDS_GPU = (GRAPH, REDUCED, SEARCHED)


class Rival:
    """A torch module on a device with inputs, and what it answers in FP32."""

    def __init__(
        self, module: nn.Module, given: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], precision: str
    ) -> None:
        self.module, self.given, self.expected, self.precision = module, list(given), list(expected), precision
        self.flops = math.nan
        """Of the module; NaN where it is made of our steps."""

        self.about = ""
        """What the module is, where it is not the model as its author wrote it."""

        self.arithmetic: Callable[[], AbstractContextManager[object]] = nullcontext

    @property
    def device(self) -> torch.device:
        return self.given[0].device


def of_steps(model: Model) -> Rival:
    """The lowered graph's reference steps."""
    executor = model.executor()
    found = Rival(executor.module(), list(model.inputs().values()), model.expected, model.precision)
    found.about = "the lowered steps as a module"
    found.arithmetic = lambda: executor.arithmetic(search=True)
    return found


def of_module(subject: Subject, given: Tensors, device: str) -> Rival:
    """FP16, or BF16 where that overflows; the FP32 that it is judged by has the same rounded weights."""
    whole = folded(merged(torch_models.build(subject.model)))
    work = torch_models.flops(copy.deepcopy(whole), given)
    for precision, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        narrow = copy.deepcopy(whole).to(device=device, dtype=dtype)
        with torch.no_grad():
            wide = copy.deepcopy(narrow).float()
            expected = _listed(wide(*tensors_like(given, torch.float32, device).values()))
            del wide
            _turn(narrow)
            inputs = [_laid_out(each) for each in tensors_like(given, dtype, device).values()]
            if precision == "bf16" or all(bool(each.isfinite().all()) for each in _listed(narrow(*inputs))):
                break
    found = Rival(narrow, inputs, [each.double().cpu() for each in expected], precision)
    found.flops = work
    return found


def _turn(module: nn.Module) -> None:
    """Filters and maps channels-last; buffers of other ranks have no such order."""
    for each in (*module.parameters(), *module.buffers()):
        if each.dim() == 4:
            each.data = each.data.contiguous(memory_format=torch.channels_last)


def merged(module: nn.Module) -> nn.Module:
    """As timm's authors would serve it: parallel convolutions (RepVGG, MobileOne, RepViT, FastViT) are one."""
    if not type(module).__module__.startswith("timm."):
        return module
    from timm.utils import reparameterize_model

    found: nn.Module = reparameterize_model(module)
    return found


def folded(module: nn.Module) -> nn.Module:
    """Batch norms into the convolutions before them, in FP32; as it is where there are none, or it can't be traced."""
    module = module.eval().requires_grad_(False)
    if not any(isinstance(each, nn.BatchNorm2d) for each in module.modules()):
        return module
    from torch.fx import symbolic_trace
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for each in list(module.modules()):  # sequences of ours: no tracing needed
        for place in range(len(each) - 1 if isinstance(each, nn.Sequential) else 0):
            first, second = each[place], each[place + 1]
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                each[place], each[place + 1] = fuse_conv_bn_eval(first, second), nn.Identity()
    if not any(isinstance(each, nn.BatchNorm2d) for each in module.modules()):
        return module.requires_grad_(False)
    try:
        traced = symbolic_trace(module)
    except Exception:  # any that the module's own code raises when it asks a proxy for a number
        return module.requires_grad_(False)
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        before = node.args[0] if isinstance(norm, nn.BatchNorm2d) else None
        if norm is None or not isinstance(before, torch.fx.Node) or len(before.users) != 1:
            continue
        convolution = modules.get(str(before.target)) if before.op == "call_module" else None
        if isinstance(convolution, nn.Conv2d):
            traced.set_submodule(str(before.target), fuse_conv_bn_eval(convolution, norm))
            modules[str(before.target)] = traced.get_submodule(str(before.target))
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.recompile()
    return traced.eval().requires_grad_(False)


def makers(rival: Rival, *, search: bool) -> Iterator[tuple[str, Callable[[], Ready]]]:
    """Name and maker of each way, the most telling first."""
    yield EAGER, lambda: _calling(EAGER, rival, rival.module, rival.about)
    yield DEFAULT, lambda: _compiled(DEFAULT, rival, None)
    yield GRAPH, lambda: _graph(GRAPH, rival, rival.module, rival.about)
    if search:
        yield SEARCHED, lambda: _compiled(SEARCHED, rival, "max-autotune-no-cudagraphs")
    # Last: compiling anything else throws away the graphs that this one keeps for itself.
    yield REDUCED, lambda: _compiled(REDUCED, rival, "reduce-overhead")


def _compiled(name: str, rival: Rival, mode: str | None) -> Ready:
    from torch._inductor import config

    started = time.perf_counter()
    torch._dynamo.reset()
    with torch.no_grad(), rival.arithmetic(), config.patch(freezing=True):
        compute = torch.compile(rival.module, mode=mode, dynamic=False)
        compute(*rival.given)
        seconds = f"compiled in {time.perf_counter() - started:.0f} s"
        note = ", ".join(filter(None, (rival.about, seconds)))
        if rival.device.type != "cuda" or mode == "reduce-overhead":
            return _calling(name, rival, compute, note, step=mode == "reduce-overhead")
        return _graph(name, rival, compute, note)


def _calling(name: str, rival: Rival, compute: Compute, note: str = "", *, step: bool = False) -> Ready:
    last: list[torch.Tensor] = []
    stream = torch.cuda.Stream(rival.device) if rival.device.type == "cuda" else None

    def replay() -> None:
        if step:
            torch.compiler.cudagraph_mark_step_begin()
        with rival.arithmetic():
            last[:] = _listed(compute(*rival.given))

    found = Ready(name, replay, rival.given, lambda: last, rival.expected, rival.precision, stream, note=note)
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream(rival.device))
    with torch.no_grad(), found.on_stream():
        for _ in range(3):
            replay()
    found.wait()
    return found


def _graph(name: str, rival: Rival, compute: Compute, note: str = "") -> Ready:
    stream = torch.cuda.Stream(rival.device)
    given = [each.clone() for each in rival.given]  # this graph's alone
    stream.wait_stream(torch.cuda.current_stream(rival.device))
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.stream(stream), rival.arithmetic():
        for _ in range(3):
            compute(*given)
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            outputs = _listed(compute(*given))
    return Ready(
        name, graph.replay, given, lambda: outputs, rival.expected, rival.precision, stream, static=True, note=note
    )


def _listed(answer: "torch.Tensor | Sequence[torch.Tensor]") -> list[torch.Tensor]:
    return [answer] if isinstance(answer, torch.Tensor) else list(answer)


def _laid_out(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
