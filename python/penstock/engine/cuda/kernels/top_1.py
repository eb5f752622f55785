"""Which class of a row is the likeliest, and how likely: softmax, its largest value and where, in one reading.

A text recogniser has a row of tens of thousands of classes for each place on a line, and nobody wants the others.
"""

# What Triton compiles has Triton's types, which are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from typing import Final

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .launching import Launch
from .rows import expect_contiguous, expect_shape, pitch, power_of_two

WIDEST: Final = 1 << 15
"""Classes: a row is kept in the registers of 512 threads."""


def top_1(x: torch.Tensor, *, index: torch.Tensor, score: torch.Tensor, pdl: bool = False) -> None:
    """The first of the largest of each row of x [rows, classes] into index, and its softmax into score, both [rows].

    A row with NaN has a NaN for its score.
    """
    top_1_launch(x, index=index, score=score, pdl=pdl).run()


def top_1_launch(x: torch.Tensor, *, index: torch.Tensor, score: torch.Tensor, pdl: bool = False) -> Launch:
    rows, classes = x.shape
    if not 2 <= classes <= WIDEST:
        raise ValueError(f"x: expected 2 to {WIDEST} classes, got {classes}")
    for name, each in (("index", index), ("score", score)):
        expect_shape(each, name, rows)
        expect_contiguous(each, name, "contiguous numbers")
    if index.dtype != torch.int64 or not score.dtype.is_floating_point:
        raise ValueError(f"index, score: expected int64 and a float, got {index.dtype} and {score.dtype}")
    block = power_of_two(classes, 64)
    return Launch(
        top_1_kernel,
        (rows, 1, 1),
        (x, index, score),
        {"CLASSES": classes, "X_PITCH": pitch(x, "x"), "BLOCK": block, "PDL": pdl},
        num_warps=max(1, min(16, block // 512)),
        pdl=pdl,
    )


@triton.jit
def top_1_kernel(x, index, score, CLASSES: tl.constexpr, X_PITCH: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Grid: (rows,)."""
    row = tl.program_id(0)
    classes = tl.arange(0, BLOCK)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    values = tl.load(x + row * X_PITCH + classes, mask=classes < CLASSES, other=float("-inf")).to(tl.float32)
    largest = tl.max(values, axis=0)
    place = tl.argmax(values, axis=0, tie_break_left=True)
    total = tl.sum(tl.exp(values - largest), axis=0)
    tl.store(index + row, place.to(tl.int64))
    tl.store(score + row, (1.0 / total).to(score.dtype.element_ty))
