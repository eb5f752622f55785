"""Weights and inputs of the lowered models on the measuring machine: from files, or from a seed.

Made ones have the size of a trained network's: products keep the variance, norms begin at one. Each comes from its own
name and the seed, so that a model has the same ones at every batch. Needs torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final
from zlib import crc32

import torch
from safetensors.torch import load_file

from benches.gpu.subjects import Subject
from benches.gpu.subjects import Tensor as Given
from penstock.engine.lowered import LoweredGraph

Tensors = dict[str, torch.Tensor]

_WORDS: Final = 30000
_BLOCKS: Final = ("conv_shortcut", "bottleneck", "bottleneck_next", "conv_pool", "picture_pool")
_MATRICES: Final = ("second", "third", "shortcut")
_NOISE: Final = 0.02  # deviation of biases and positions


def carried(folder: Path, subject: Subject, batch: int) -> Tensors:
    """What `prepare` wrote for this batch and the ones before it, which a later one adds to."""
    found: Tensors = {}
    for each in sorted(_batches(folder, subject)):
        path = folder / f"{subject.name}.b{each}.safetensors"
        if each <= batch and path.is_file():
            found |= load_file(path)
    return found


def _batches(folder: Path, subject: Subject) -> list[int]:
    names = (path.name.removesuffix(".safetensors") for path in folder.glob(f"{subject.name}.b*.safetensors"))
    return [int(name.rpartition(".b")[2]) for name in names]


def complete(graph: LoweredGraph, there: Tensors, device: str, seed: int = 1) -> Tensors:
    """`there`, and for what it lacks numbers of the right size, in FP16 and on the device."""
    seen = [(operand.value, step.kind, operand.role) for step in graph.steps for operand in step.inputs]
    roles = {value: (kind, role) for value, kind, role in seen if role != "column_sums"}
    found: Tensors = {}
    batch = graph.inputs[0].shape[0]
    for name, weight in graph.weights.items():
        if name in there:
            found[name] = there[name]
            continue
        kind, role = roles.get(name, ("", ""))
        if (kind == "layer_norm" and role in ("weight", "bias")) or role in ("residual_scale", "residual_shift"):
            one = float(role in ("weight", "residual_scale"))
            found[name] = torch.full(weight.shape, one, dtype=torch.float16, device=device)
            continue
        deviation = _NOISE
        if role in ("weight", "recurrence", *_MATRICES) or (kind in ("gather", "layer_norm") and role == "x"):
            fan = math.prod(weight.shape[1:]) if kind in ("conv", "gemm", "gemm_norm", *_BLOCKS) else weight.shape[-1]
            deviation = max(fan, 1) ** -0.5
        generator = torch.Generator(device).manual_seed(crc32(name.encode()) ^ seed)
        # A constant that was folded after it had been expanded to the batch: all its rows are one. Layers' weights are
        # none of that, though a convolution may have as many filters as the batch has rows.
        layer = role in ("weight", "recurrence", *_MATRICES)
        expanded = len(weight.shape) > 2 and weight.shape[:2] == (batch, 1) and not layer
        made = torch.randn(weight.shape[1:] if expanded else weight.shape, generator=generator, device=device)
        found[name] = (made * deviation).half().expand(weight.shape).contiguous()
    return found


def in_16_bits(graph: LoweredGraph, datatype: str) -> LoweredGraph:
    """Inputs and outputs in 16 bits too, as torch's ways have them."""
    ends = {each.name for each in graph.inputs} | {each.value for each in graph.outputs}
    values = {
        name: replace(value, datatype=datatype) if name in ends and value.datatype == "FP32" else value
        for name, value in graph.values.items()
    }
    inputs = tuple(replace(each, datatype=values[each.name].datatype) for each in graph.inputs)
    return replace(graph, inputs=inputs, values=values)


def inputs(subject: Subject, batch: int, seed: int) -> Tensors:
    """On the CPU; floats in FP32, rounded to FP16, so that every precision gets the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    return {each.name: _drawn(each, batch, generator) for each in subject.inputs}


def _drawn(given: Given, batch: int, generator: torch.Generator) -> torch.Tensor:
    shape: Sequence[int] = (batch, *given.shape)
    if given.kind == "tokens":
        return torch.randint(1000, _WORDS, shape, generator=generator)
    if given.kind == "mask":  # sentences of many lengths; the first fills it
        lengths = torch.randint(shape[1] // 4, shape[1] + 1, (batch, 1), generator=generator)
        lengths[0] = shape[1]
        return (torch.arange(shape[1])[None] < lengths).long()
    found = torch.randn(shape, generator=generator)
    if given.kind == "page":
        found = _page(found, generator)
    return found.half().float()


def _page(noise: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Rows of strokes on paper: on pure noise a text detector answers 1e-5 everywhere, of which any error is large."""
    page = 1 + 0.05 * noise
    batch, _, height, width = page.shape
    for row in range(batch):
        for top in range(height // 8, height - 12, 28):
            for left in range(10, width - 10, 9):
                bar = top + int(torch.randint(0, 10, (), generator=generator))
                page[row, :, top : top + 12, left : left + 2] = -1
                page[row, :, bar : bar + 2, left : left + 6] = -1
    return page


def tensors_like(given: Mapping[str, torch.Tensor], dtype: torch.dtype, device: str) -> Tensors:
    return {name: (each.to(dtype) if each.is_floating_point() else each).to(device) for name, each in given.items()}
