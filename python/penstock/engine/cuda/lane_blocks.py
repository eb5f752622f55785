"""Bottlenecks of 64 channels by our own kernel in CUDA C++ (`kernels/lane_bottleneck.py`).

Compiled by NVRTC when tuned. Needs compute capability 9.0; elsewhere, and for other widths, Triton's kernels stay.
"""

from collections.abc import Mapping
from dataclasses import astuple
from typing import Final

import torch

from penstock.engine.cuda.kernels.bottleneck import Steps
from penstock.engine.cuda.kernels.epilogue import Scratch, added, fold
from penstock.engine.cuda.kernels.lane_bottleneck import (
    DEPTH,
    BlockCut,
    block_cuts,
    lane_bottleneck_launch,
)
from penstock.engine.cuda.sites import Site, narrow
from penstock.engine.cuda.ways import (
    Config,
    Form,
    Launched,
    Ready,
    Tensors,
    Way,
    compiles_cpp,
    dtype_of,
    multiprocessors_of,
)


def _block(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launched:
    del scratch
    site, constants = ready.site, ready.constants
    source = site.index("source")
    scale, third, shortcut = (constants.get(role) for role in ("scale", "third_scale", "shortcut_scale"))
    return lane_bottleneck_launch(
        operands[0],
        ready.weight,
        constants["bias"],
        constants["second"],
        constants["second_bias"],
        wide=outputs[0],
        config=BlockCut(*ready.config),
        steps=None if scale is None else Steps(scale, constants["second_scale"], third, shortcut),
        inner=ready.activation("inner_"),
        epilogue=ready.epilogue,
        residual=ready.residual(operands),
        worth=constants.get("worth"),
        source=None if source is None else operands[source],
        shortcut=constants.get("shortcut"),
        third=constants.get("third"),
        third_bias=constants.get("third_bias"),
        out=outputs[1] if len(outputs) > 1 else None,
        outer=ready.activation("outer_"),
        multiprocessors=multiprocessors_of(site.device),
        pdl=site.early,
    )


def _folded(site: Site, constants: dict[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Each layer's sums in steps of what is made of them; one bias for what is added up."""
    found = dict(constants)
    wide = site.out_scale() or 1.0
    biases = [constants[name] for name in ("second_bias", "shortcut_bias") if name in constants]
    found["scale"], found["bias"] = fold(constants["scale"], constants.get("bias"), site.number("inner_step"), 0)
    both = added(biases) if biases else None
    found["second_scale"], found["second_bias"] = fold(constants["second_scale"], both, wide, 0)
    if "shortcut" in constants:
        found["shortcut_scale"], _ = fold(constants["shortcut_scale"], None, wide, 0)
    if "third" in constants:
        scale, bias = constants["third_scale"], constants.get("third_bias")
        found["third_scale"], found["third_bias"] = fold(scale, bias, site.out_scale(1) or 1.0, 0)
    index = site.index("residual")
    if index is not None:
        worth = (site.scale(index) or 1.0) / wide
        found["worth"] = torch.full((1,), worth, dtype=torch.float32, device=constants["scale"].device)
    return found


def _with_biases(constants: dict[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Of floats: one for each layer, and one for what is added up."""
    found = dict(constants)
    for role, bias in (("weight", "bias"), ("second", "second_bias"), ("third", "third_bias")):
        if role in constants and bias not in constants:
            weight = constants[role]
            found[bias] = torch.zeros(weight.shape[0], dtype=torch.float32, device=weight.device)
    if "shortcut_bias" in constants and "scale" not in constants:
        found["second_bias"] = added([found["second_bias"], constants["shortcut_bias"]])
    return found


def _cuts(site: Site) -> list[Config]:
    _, high, across, _ = site.out_shape()
    return [astuple(cut) for cut in block_cuts(high, across, dtype_of(site, 0).itemsize)]


def _suits(site: Site) -> bool:
    if not compiles_cpp(site):
        return False
    attributes = site.step.attributes
    window = tuple(site.integers(name) for name in ("strides", "pads", "dilations"))
    apart = tuple(site.integers("shortcut_strides")) if "shortcut_strides" in attributes else (1, 1)
    usual = (window, apart) == (((1, 1), (1, 1, 1, 1), (1, 1)), (1, 1)) and site.integer("groups") == 1
    narrow = site.shape("weight") == (DEPTH, 3, 3, DEPTH)
    return usual and narrow


def _types(site: Site) -> bool:
    x = dtype_of(site, 0)
    outputs = range(len(site.step.outputs))
    fits = narrow(x) if site.step.operand("scale") is None else x == torch.int8
    return fits and all(site.out_dtype(index) == x for index in outputs)


def _dense(weight: torch.Tensor) -> torch.Tensor:
    return weight.contiguous()


_FORMS: Final[dict[str, Form]] = dict.fromkeys(("weight", "second", "third", "shortcut"), _dense)

LANE_BLOCKS: Final[dict[tuple[str, str], Way]] = {
    (kind, "cuda_lanes"): Way(
        _block, _cuts, forms=_FORMS, suits=_suits, types=_types, scales=True, folded=_folded, combined=_with_biases
    )
    for kind in ("bottleneck", "bottleneck_next")
}
"""Kind and name -> kernel."""
