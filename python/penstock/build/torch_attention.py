"""Attention of any number of axes as one of four, which is all that torch's ONNX exporter writes.

`scaled_dot_product_attention` takes [..., T, D] with any axes ahead: one head alone has three or two, windows of images
(Twins, NesT, Hiera) have five. While a module is traced the axes ahead become [batch, heads]; nothing is copied. Called
by `torch_export`.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any


def of_four_axes() -> AbstractContextManager[Any]:
    """Inside, every call of torch's attention is one of four axes. Imports torch."""
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
        if query.dim() == 4:
            return attend(query, key, value, attn_mask, *rest, **more)
        if attn_mask is not None and attn_mask.dim() > 2:
            attn_mask = _four(attn_mask.expand(*query.shape[:-2], *attn_mask.shape[-2:]))
        found = attend(_four(query), _four(key), _four(value), attn_mask, *rest, **more)
        return found.reshape(*query.shape[:-1], value.shape[-1])

    return OfFourAxes()


def _four(tensor: Any) -> Any:
    """[..., T, D] as [batch, heads, T, D]."""
    axes = tensor.dim()
    return tensor.reshape(-1, *tensor.shape[-3:]) if axes > 4 else tensor[(None,) * (4 - axes)]
