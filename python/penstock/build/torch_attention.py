"""Attention of any number of axes as one of four, which is all that torch's ONNX exporter writes.

`scaled_dot_product_attention` takes [..., T, D] with any axes ahead: one head alone has three or two, windows of images
(Twins, NesT, Hiera) have five. While a module is traced the axes ahead become [batch, heads], so that little has to be
copied, and masks keep the axes along which they are the same, so that none is written out for every window. Called by
`torch_export`.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any


def of_four_axes() -> AbstractContextManager[Any]:
    """Inside, every call of torch's attention is one of four axes. Imports torch."""
    import torch
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode

    attend = functional.scaled_dot_product_attention

    class OfFourAxes(TorchFunctionMode):  # type: ignore[misc]  # torch may be absent
        def __torch_function__(
            self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
        ) -> Any:
            del types
            return (_attended if func is attend else func)(*args, **(kwargs or {}))

    def _attended(query: Any, key: Any, value: Any, attn_mask: Any = None, *rest: Any, **more: Any) -> Any:
        if query.dim() == key.dim() == value.dim() == 4:
            return attend(query, key, value, attn_mask, *rest, **more)
        ahead = query.shape[:-2]
        if not more.get("enable_gqa", False):
            ahead = torch.broadcast_shapes(ahead, key.shape[:-2], value.shape[:-2])
            query, key, value = (_with(each, ahead) for each in (query, key, value))
            heads = _heads(query, key, value)
        else:
            heads = len(ahead) - 1
        mask = _mask(attn_mask, ahead, heads) if attn_mask is not None else None
        found = attend(_four(query, heads), _four(key, heads), _four(value, heads), mask, *rest, **more)
        if len(ahead) <= 2:
            return found.reshape(*ahead, query.shape[-2], value.shape[-1])
        others = *ahead[:heads], *ahead[heads + 1 :]
        return found.reshape(*others, ahead[heads], query.shape[-2], value.shape[-1]).movedim(-3, heads)

    return OfFourAxes()


def _four(tensor: Any, heads: int) -> Any:
    """[..., T, D] as [batch, heads, T, D], where that axis ahead becomes the heads and the others the batch."""
    axes = tensor.dim()
    if axes <= 4:
        return tensor[(None,) * (4 - axes)]
    moved = tensor.movedim(heads, -3)
    return moved.reshape(-1, *moved.shape[-3:])


def _heads(*tensors: Any) -> int:
    """The axis ahead without which most of the tensors have one axis of the others as they lie, and need no copy.

    Windows lie beside the pictures that they are cut from, and heads within a row (NesT): the last if it is all one.
    """
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    def is_one(tensor: Any, heads: int) -> bool:
        axes = [axis for axis in range(tensor.dim() - 2) if axis != heads and not known(tensor.shape[axis] == 1)]
        return all(
            known(tensor.stride(left) == tensor.stride(right) * tensor.shape[right]) for left, right in pairwise(axes)
        )

    known = statically_known_true
    count = tensors[0].dim() - 2
    return max(reversed(range(count)), key=lambda heads: sum(is_one(each, heads) for each in tensors), default=0)


def _with(tensor: Any, ahead: Sequence[int]) -> Any:
    """Repeated along those axes ahead of the last two that others have."""
    return tensor if tensor.shape[:-2] == ahead else tensor.expand(*ahead, *tensor.shape[-2:])


def _mask(mask: Any, ahead: Sequence[int], heads: int) -> Any:
    """A mask of as few numbers as it has, for queries with these axes ahead, which become two."""
    if mask.dim() <= 2:
        return mask if mask.dim() == 2 else mask[None]
    if len(ahead) <= 2:
        return _four(mask, heads)
    mask = mask[(None,) * (len(ahead) + 2 - mask.dim())].movedim(heads, -3)
    own = mask.shape[-3:]
    if all(size == 1 for size in mask.shape[:-3]):
        return mask.reshape(1, *own)
    others = *ahead[:heads], *ahead[heads + 1 :]
    return mask.expand(*others, *own).reshape(-1, *own)
