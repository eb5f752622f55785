"""One operator alone, as `test_operators` has them; those that resize."""

from dataclasses import dataclass, field

import numpy as np

from tests.engine.cuda.reference import Array


@dataclass(frozen=True)
class Case:
    """`Operator(x, weights...)` on inputs and weights of these shapes; tuples are drawn, arrays are as they are."""

    text: str
    """The node, as ONNX's text form has it."""

    inputs: dict[str, tuple[int, ...] | Array]
    out: tuple[int, ...] | None
    """None: whatever shape inference says; the rank is `rank`."""

    weights: dict[str, tuple[int, ...] | Array] = field(default_factory=dict)
    outputs: str = "float[{}] y"
    opset: int = 20
    kinds: tuple[str, ...] = ()
    """The steps it becomes; empty where that is not the point."""


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


X4 = {"x": (2, 6, 9, 7)}
RESIZING = [
    Case(
        'y = Resize <mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"> (x, , w)',
        X4,
        (2, 6, 18, 21),
        {"w": np.array([1, 1, 2, 3], np.float32)},
        kinds=("copy", "resize", "copy"),
    ),
    *(
        Case(
            f'y = Resize <mode="nearest", nearest_mode="{how}"> (x, , , w)', X4, (2, 6, 13, 5), {"w": ints(2, 6, 13, 5)}
        )
        for how in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ),
    *(
        Case(
            f'y = Resize <mode="linear", coordinate_transformation_mode="{how}"> (x, , w)',
            X4,
            (2, 6, 18, 10),
            {"w": np.array([1, 1, 2, 1.5], np.float32)},
        )
        for how in ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel", "half_pixel_symmetric")
    ),
    *(
        Case(
            f'y = Resize <mode="{mode}", coordinate_transformation_mode="align_corners"> (x, , , w)',
            {"x": (3, 5)},
            (3, 1),
            {"w": ints(3, 1)},
        )
        for mode in ("nearest", "linear", "cubic")
    ),
    *(
        Case(f'y = Resize <mode="{mode}"> (x, , , w)', {"x": (2, 6, 1, 1)}, (2, 6, 3, 2), {"w": ints(2, 6, 3, 2)})
        for mode in ("nearest", "linear")
    ),
    Case(
        'y = Upsample <mode="nearest"> (x, w)', X4, (2, 6, 18, 21), {"w": np.array([1, 1, 2, 3], np.float32)}, opset=9
    ),
    Case(
        'y = Resize <mode="nearest"> (x, w)', X4, (2, 6, 12, 9), {"w": np.array([1, 1, 1.4, 1.3], np.float32)}, opset=10
    ),
    *(
        Case(
            f'y = Resize <mode="{mode}", {rest}> (x, , w)',
            X4,
            (2, 6, *out),
            {"w": np.array([1, 1, *scales], np.float32)},
        )
        for mode, rest in (
            *(
                ("cubic", f'coordinate_transformation_mode="{how}"')
                for how in ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel", "half_pixel_symmetric")
            ),
            ("cubic", "cubic_coeff_a=-0.5, exclude_outside=1"),
            ("cubic", "antialias=1"),
            ("linear", "antialias=1"),
            ("cubic", "antialias=1, exclude_outside=1"),
        )
        for scales, out in (((2, 1.5), (18, 10)), ((0.45, 0.6), (4, 4)), ((1, 0.3), (9, 2)))
    ),
    Case(
        'y = Resize <mode="cubic"> (x, , , w)',
        X4,
        (2, 6, 13, 5),
        {"w": ints(2, 6, 13, 5)},
        kinds=("matmul", "gemm"),
    ),
    Case(
        't = Transpose <perm=[0,2,3,1]> (x) u = Transpose <perm=[0,3,1,2]> (t) y = Resize <mode="cubic"> (u, , , w)',
        {"x": (2, 9, 7, 6)},
        (2, 9, 14, 12),
        {"w": ints(2, 9, 14, 12)},
    ),
    Case('y = Resize <mode="linear", axes=[3,2]> (x, , w)', X4, (2, 6, 18, 10), {"w": np.array([1.5, 2], np.float32)}),
    Case(
        'y = Resize <mode="linear", axes=[2,3], keep_aspect_ratio_policy="not_larger"> (x, , , w)',
        X4,
        (2, 6, 20, 16),
        {"w": ints(20, 25)},
    ),
    Case(
        'y = Resize <mode="nearest", nearest_mode="floor"> (x, , w)',
        X4,
        (4, 9, 9, 3),
        {"w": np.array([2, 1.5, 1, 0.5], np.float32)},
        kinds=("gather", "gather", "gather"),
    ),
    Case('y = Resize <mode="linear"> (x, , w)', {"x": (2, 3, 6)}, (2, 3, 15), {"w": np.array([1, 1, 2.5], np.float32)}),
    Case(
        'y = Resize <mode="nearest"> (x, , w)',
        {"x": (1, 3, 4, 5, 6)},
        (1, 3, 8, 10, 12),
        {"w": np.array([1, 1, 2, 2, 2], np.float32)},
        kinds=("gather", "gather", "gather"),
    ),
]
