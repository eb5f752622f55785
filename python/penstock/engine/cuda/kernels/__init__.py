"""Our own kernels for NVIDIA GPUs, in Triton and, where that has no words for it, CUDA C++: plain functions on torch
tensors.

Every function takes the tensor to write as `out`, allocates nothing, never synchronises, and may be captured in a CUDA
graph. Each has a twin whose name ends in `_launch` that only says what would be launched (`launching.Launch`): the
tuner times those, and they compile for a GPU that is not there. Feature maps are NHWC and a value may be a slice of
the channels of a wider one (`rows.py`); weights of a convolution are [K, R, S, C], of a matrix product [N, K] or any
2-D view with one unit stride. Sums are FP32 (INT8: INT32), and every result is bitwise the same on every run.

This module imports neither torch nor triton; the modules below do, so import them where a kernel is wanted. The package
uses nothing of the rest of the house (misuse is a ValueError) so that it can be carried to a machine alone.

    tiles            how a matrix product is cut, and the few ways worth timing for a shape
    launching        a launch as data: run it, or compile it elsewhere and read registers and shared memory
    driver           what was compiled, launched without Triton or a compiler
    implicit_gemm    convolution and matrix product with their epilogues, FP16, BF16, INT8; split-K
    depthwise        depthwise convolution, with sums per channel for a squeeze-and-excite on the side
    squeeze_excite   the gate from a map or from those sums, and its application
    gated_mlp        gate, two pointwise layers and the residual in one
    moves            channels side by side, a picture's planes made pixels
    reductions       layer norm, global average pool
    top_1            softmax, its largest value and where
    attention        softmax(QK^T + mask)V straight from packed QKV
    lstm             the recurrence of a layer, on clusters of blocks
    nvrtc            CUDA C++ compiled by the library that torch brings
    cpp_launching    a launch of a kernel in CUDA C++ as data, the twin of launching; sources lie in cpp/
    tuning           the fastest of several launches, timed inside CUDA graphs
"""

from .tiles import Product, Tile, tiles

__all__ = ["Product", "Tile", "tiles"]
