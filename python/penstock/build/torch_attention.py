"""Attention of any number of axes as one of four, which is all that torch's ONNX exporter writes.

`scaled_dot_product_attention` takes [..., T, D] with any axes ahead: one head alone has three or two, windows of images
(Twins, NesT, Hiera) have five. While a module is traced the axes ahead become [batch, heads], and masks keep the axes
along which they are the same, so that none is written out for every window. Called by `torch_export`.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
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
        mask = _mask(attn_mask, ahead) if attn_mask is not None else None
        found = attend(_four(query), _four(key), _four(value), mask, *rest, **more)
        return found.reshape(*ahead, query.shape[-2], value.shape[-1])

    return OfFourAxes()


def _four(tensor: Any) -> Any:
    """[..., T, D] as [batch, heads, T, D]."""
    axes = tensor.dim()
    return tensor.reshape(-1, *tensor.shape[-3:]) if axes > 4 else tensor[(None,) * (4 - axes)]


def _with(tensor: Any, ahead: Sequence[int]) -> Any:
    """Repeated along those axes ahead of the last two that others have."""
    return tensor if tensor.shape[:-2] == ahead else tensor.expand(*ahead, *tensor.shape[-2:])


def _mask(mask: Any, ahead: Sequence[int]) -> Any:
    """A mask of as few numbers as it has, for queries with these axes ahead, which become two."""
    if mask.dim() <= 2:
        return mask if mask.dim() == 2 else mask[None]
    own = mask.shape[-3:]
    if len(ahead) <= 2:
        return _four(mask)
    if all(size == 1 for size in mask.shape[:-3]):
        return mask.reshape(1, *own)
    return mask.expand(*ahead[:-1], *own).reshape(-1, *own)
