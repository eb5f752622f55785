"""What is added to the scores of an attention, as one mask that is no longer than what it repeats.

Scores [B, H, T, S] may be seen as [images, windows, H, T, S] while something is added to them: what is the same for all
images is a mask of [windows, H, T, S], which repeats along B. Constants are added up. Called by `attention`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from penstock.engine.plan import Shape
from penstock.graph.editing import Array, static_shape
from penstock.graph.lowering.builder import Builder
from penstock.graph.lowering.views import Ref, expanded, reshaped
from penstock.graph.patterns.matching import constant_of

_MOST: Final = 2**25
"""Numbers of a mask that is a sum: 64 MiB in sixteen bits."""


@dataclass(frozen=True, slots=True)
class Added:
    value: ir.Value
    sizes: Shape
    """Its own, of as many axes as `scores` has."""

    scores: Shape
    """[.., H, T, S], which it is added to."""

    @property
    def batch(self) -> Shape:
        """The last of the axes in front, from the first along which it differs."""
        first = next((axis for axis, size in enumerate(self.sizes[:-3]) if size != 1), len(self.sizes) - 3)
        return self.scores[first:-3]

    @property
    def period(self) -> int:
        return math.prod(self.batch)

    @property
    def is_view(self) -> bool:
        """Whether strides can say how it repeats."""
        return len(self.batch) <= 1


def added(value: ir.Value, scores: Shape, whole: Shape) -> Added | None:
    """What is added to scores seen so, of an attention whose own are `whole`; None where that is no mask of them."""
    own = static_shape(value)
    if own is None or len(own) > len(scores) or not aligned(scores, whole):
        return None
    scores = (1,) * (4 - len(scores)) + scores
    sizes = (1,) * (len(scores) - len(own)) + own
    if any(size not in (1, wide) for size, wide in zip(sizes, scores, strict=True)):
        return None
    found = Added(value, sizes, scores)
    return found if found.is_view or constant_of(value) is not None else None


def aligned(scores: Shape, whole: Shape) -> bool:
    """Whether these are scores of the shape `whole`, [B, H, T, S], but for what B is cut into."""
    scores = (1,) * (4 - len(scores)) + scores
    return scores[-3:] == whole[1:] and math.prod(scores[:-3]) == whole[0]


def summed(parts: Sequence[Added]) -> bool:
    """Whether `mask` can make one of them."""
    if len(parts) < 2:
        return True
    longest = max(part.period for part in parts)
    size = longest * math.prod(np.broadcast_shapes(*(part.sizes[-3:] for part in parts)))
    constant = all(constant_of(part.value) is not None for part in parts)
    return constant and size <= _MOST and all(longest % part.period == 0 for part in parts)


def mask(builder: Builder, parts: Sequence[Added], whole: Shape) -> Ref:
    """[B or its period, H, T, S]."""
    first = parts[0]
    if len(parts) == 1 and first.is_view:
        ref = reshaped(builder.ref(first.value), first.sizes[-4:])
        assert ref is not None  # axes of one in front
    else:
        ref = builder.weight(_sum(parts), f"{first.value.name}.mask")
    period = ref.shape[0]
    return expanded(ref, (period if period > 1 else whole[0], *whole[1:]))


def _sum(parts: Sequence[Added]) -> Array:
    longest = max(part.period for part in parts)
    with np.errstate(over="ignore"):  # twice the lowest number is -inf in the model, too
        total = sum(_rows(part)[np.arange(longest) % part.period].astype(np.float64) for part in parts)
        found: Array = np.asarray(total).astype(_rows(parts[0]).dtype)
    return found


def _rows(part: Added) -> Array:
    """[period, H or 1, T or 1, S or 1]."""
    array = constant_of(part.value)
    assert array is not None
    rest = part.sizes[-3:]
    own = part.sizes[len(part.sizes) - 3 - len(part.batch) : -3]
    return np.broadcast_to(array.reshape(*own, *rest), (*part.batch, *rest)).reshape(part.period, *rest)
