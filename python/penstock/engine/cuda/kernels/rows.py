"""Tensors seen as rows: the last dimension contiguous, all others one regular step apart.

A feature map that is a slice of the channels of a wider one (a concat written in place) is such a tensor too, and
that is why the kernels take a pitch and not a shape. Strides of dimensions of size 1 say nothing and are not read.
"""

import torch

INDEX_LIMIT = 2**31  # offsets are computed in 32 bits


def pitch(tensor: torch.Tensor, name: str) -> int:
    """Elements from one row of `tensor` to the next. ValueError if they are not one step apart."""
    shape, strides = tensor.shape, tensor.stride()
    if shape[-1] > 1 and strides[-1] != 1:
        raise ValueError(f"{name}: expected a contiguous last dimension, got strides {strides} of shape {tuple(shape)}")
    step: int | None = None
    rows = 1
    for size, stride in zip(reversed(shape[:-1]), reversed(strides[:-1]), strict=True):
        if size == 1:
            continue
        if step is None:
            step = stride
        elif stride != step * rows:
            raise ValueError(f"{name}: expected rows one step apart, got strides {strides} of shape {tuple(shape)}")
        rows *= size
    step = shape[-1] if step is None else step
    if rows * step >= INDEX_LIMIT:
        raise ValueError(f"{name}: expected less than 2**31 elements, got {rows} rows of pitch {step}")
    return int(step)


def picture_strides(tensor: torch.Tensor, name: str) -> tuple[int, int, int]:
    """Elements from one pixel of [N, H, W, C] to the next, from a row to the next and from an image to the next.

    Pixels may overlap, as where a pixel and its neighbours are seen as one with more channels; channels lie side by
    side. Of an axis of size 1 the stride says nothing, and what a dense map would have is taken.
    """
    (images, height, width, channels), strides = tensor.shape, tensor.stride()
    if channels > 1 and strides[3] != 1:
        raise ValueError(f"{name}: expected a contiguous last dimension, got strides {strides} of {list(tensor.shape)}")
    across = int(strides[2]) if width > 1 else channels
    row = int(strides[1]) if height > 1 else width * across
    image = int(strides[0]) if images > 1 else height * row
    if images * image >= INDEX_LIMIT or height * row >= INDEX_LIMIT:
        raise ValueError(f"{name}: expected less than 2**31 elements, got {images} images of {image}")
    return across, row, image


def expect_shape(tensor: torch.Tensor, name: str, *shape: int) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")


def expect_contiguous(tensor: torch.Tensor, name: str, what: str = "a contiguous tensor") -> None:
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: expected {what}, got strides {tensor.stride()}")


def expect_aligned(tensor: torch.Tensor, name: str, size: int = 16) -> None:
    """Its first element at a multiple of so many bytes; without memory, as far as its offset says."""
    if tensor.data_ptr() % size or tensor.storage_offset() * tensor.itemsize % size:
        raise ValueError(f"{name}: expected an address that is a multiple of {size}")


def power_of_two(size: int, at_least: int = 1) -> int:
    """The smallest power of two that is not below `size` and `at_least`."""
    return 1 << (max(size, at_least) - 1).bit_length()
