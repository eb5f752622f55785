"""How convolutions over pictures of a few planes read them."""

from dataclasses import dataclass

import pytest

from penstock.engine.lowered import LoweredGraph, Step, View, from_json, to_json
from penstock.engine.stem_pools import apart
from penstock.graph import boundary, optimize
from penstock.graph.lowering import Weights, lower
from tests.graph.small import graph, normal


@dataclass(frozen=True)
class Conv:
    weight: tuple[int, ...]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: int = 1
    group: int = 1


def lowered(case: Conv, x: tuple[int, ...]) -> tuple[LoweredGraph, Weights]:
    sizes = [x[0], case.weight[0]]
    for axis in (0, 1):
        reach = (case.weight[2 + axis] - 1) * case.dilation + 1
        sizes.append((x[2 + axis] + case.pads[axis] + case.pads[2 + axis] - reach) // case.strides[axis] + 1)
    given, made = (",".join(map(str, each)) for each in (x, sizes))
    attributes = f"strides={list(case.strides)}, pads={list(case.pads)}, group={case.group}"
    body = f"y = Conv <{attributes}, dilations=[{case.dilation},{case.dilation}]> (x, w)"
    model = graph(f"(float[{given}] x) => (float[{made}] y) {{ {body} }}", {"w": normal(*case.weight)})
    return lower(optimize(model, shapes={"x": x}).model)


def conv_of(found: LoweredGraph) -> Step:
    (conv,) = (step for step in found.steps if step.kind == "conv")
    return conv


def test_a_column_sees_a_row_of_its_window_as_channels() -> None:
    found, weights = lowered(Conv((8, 3, 7, 7), (2, 2), (3, 3, 3, 3)), (2, 3, 224, 224))
    pad, conv, _ = found.steps
    assert pad.kind == "pad"
    assert pad.attributes == {"begin": (0, 3, 3, 0), "end": (0, 2, 3, 1), "value": 0.0}
    assert found.values[pad.outputs[0]].shape == (2, 229, 230, 4)
    assert conv.inputs[0].view == View((2, 229, 112, 32), (229 * 230 * 4, 230 * 4, 8, 1))
    names = ("kernel", "strides", "pads", "dilations", "products")
    assert [conv.attributes[name] for name in names] == [(7, 1), (2, 1), (0, 0, 0, 0), (1, 1), 147]
    array = weights[conv.inputs[1].value]
    assert array.shape == (8, 7, 1, 32)
    window = array.reshape(8, 7, 8, 4)
    assert (window[:, :, :7, :3] == normal(8, 3, 7, 7).transpose(0, 2, 3, 1)).all()
    assert not window[:, :, 7].any()
    assert not window[..., 3].any()
    assert from_json(to_json(found)) == found


@pytest.mark.parametrize(
    ("size", "strides", "pads", "stored"),
    [
        ((8, 8), (1, 1), (1, 1, 1, 1), (10, 12)),  # the last column's run is a pixel longer than its window
        ((9, 7), (2, 2), (1, 1, 1, 1), (11, 10)),
        ((6, 6), (2, 2), (0, 0, 1, 1), (7, 8)),
        ((11, 15), (4, 4), (0, 0, 0, 0), (11, 16)),
        ((5, 5), (1, 1), (0, 3, 2, 0), (7, 10)),
    ],
)
def test_rows_begin_at_sixteen_bytes_and_hold_all_that_is_read(
    size: tuple[int, int], strides: tuple[int, int], pads: tuple[int, int, int, int], stored: tuple[int, int]
) -> None:
    found, _ = lowered(Conv((8, 3, 3, 3), strides, pads), (1, 3, *size))
    assert found.values[found.steps[0].outputs[0]].shape == (1, *stored, 4)
    assert stored[1] % 2 == 0
    assert conv_of(found).inputs[0].view is not None


def test_two_convolutions_with_one_window_share_the_picture() -> None:
    text = """(float[1,3,16,16] x) => (float[1,8,8,8] y) { a = Conv <strides=[2,2], pads=[1,1,1,1]> (x, v)
        b = Conv <strides=[2,2], pads=[1,1,1,1]> (x, w) c = Relu(a) y = Mul(b, c) }"""
    model = graph(text, {"v": normal(8, 3, 3, 3, seed=1), "w": normal(8, 3, 3, 3, seed=2)})
    found = lower(optimize(model, shapes={"x": (1, 3, 16, 16)}).model)[0]
    assert sum(step.kind == "pad" for step in found.steps) == 1


AS_THEY_ARE = {
    "patches": (Conv((8, 3, 2, 2), (2, 2)), 3),
    "five planes": (Conv((8, 5, 3, 3)), 5),
    "groups": (Conv((6, 1, 3, 3), group=3), 3),
    "one pixel at a time": (Conv((8, 3, 1, 1)), 3),
}


@pytest.mark.parametrize("why", AS_THEY_ARE)
def test_other_windows_read_pixels_as_they_are(why: str) -> None:
    case, channels = AS_THEY_ARE[why]
    found, _ = lowered(case, (2, channels, 8, 8))
    assert "pad" not in {step.kind for step in found.steps}
    assert found.shape(conv_of(found).inputs[0]) == (2, 8, 8, channels)
    assert "products" not in conv_of(found).attributes


PIXELS = {
    "dilated": Conv((8, 3, 3, 3), dilation=2),
    "one row": Conv((8, 3, 1, 3)),
    "one column": Conv((8, 3, 3, 1)),
}


@pytest.mark.parametrize("why", PIXELS)
def test_pixels_get_a_channel_more_where_windows_have_no_rows_side_by_side(why: str) -> None:
    found, _ = lowered(PIXELS[why], (2, 3, 8, 8))
    conv = conv_of(found)
    assert found.shape(conv.inputs[0]) == (2, 8, 8, 4)
    assert [found.shape(operand)[-1] for operand in conv.inputs] == [4, 4]
    assert conv.attributes["products"] == 3 * PIXELS[why].weight[2] * PIXELS[why].weight[3]


PICTURES = {
    "planes of bytes": ("x:uint8,mean=1/2/3,std=4/5/6", (2, 3, 16, 12), (3 * 16 * 12, 12, 1, 16 * 12)),
    "pixels of bytes": ("x:uint8,nhwc,mean=1/2/3,std=4/5/6", (2, 16, 12, 3), (3 * 16 * 12, 36, 3, 1)),
    "one number for all": ("x:float32,nhwc,mean=127.5,std=127.5", (2, 16, 12, 3), (3 * 16 * 12, 36, 3, 1)),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_mean_is_taken_away_where_the_picture_gets_its_zeros(name: str) -> None:
    text, shape, strides = PICTURES[name]
    body = "y = Conv <strides=[2,2], pads=[1,1,1,1]> (x, w)"
    model = graph(f"(float[2,3,16,12] x) => (float[2,8,8,6] y) {{ {body} }}", {"w": normal(8, 3, 3, 3)})
    found = lower(optimize(boundary.preprocess(model, text), shapes={"x": shape}).model)[0]
    pad, conv, *_ = found.steps
    assert (pad.kind, conv.kind) == ("pad", "conv")
    assert pad.inputs[0].view == View((2, 16, 12, 3), strides)
    assert "sub" in {line.name for line in pad.program}
    assert from_json(to_json(found)) == found


def test_a_picture_that_others_read_too_is_computed_once() -> None:
    text = """(uint8[1,3,16,16] x) => (float[1,8,8,8] y, float[1,8,8,8] z) { f = Cast <to=1> (x) m = Mul(f, s)
        y = Conv <strides=[2,2], pads=[1,1,1,1]> (m, w) z = Conv <strides=[2,2], pads=[1,1,1,1]> (m, v) }"""
    weights = {"w": normal(8, 3, 3, 3), "v": normal(8, 3, 3, 3, seed=1), "s": normal(1, 3, 1, 1)}
    model = graph(text, weights)
    found = lower(optimize(model, shapes={"x": (1, 3, 16, 16)}).model)[0]
    assert sum("sub" in str(step.program) or "mul" in str(step.program) for step in found.steps) == 1


def test_a_narrow_map_inside_a_network_is_read_as_it_is() -> None:
    text = """(float[1,8,16,16] x) => (float[1,8,16,16] y) { a = Conv <pads=[1,1,1,1]> (x, v) b = Relu(a)
        y = Conv <pads=[1,1,1,1]> (b, w) }"""
    model = graph(text, {"v": normal(4, 8, 3, 3), "w": normal(8, 4, 3, 3, seed=1)})
    found = lower(optimize(model, shapes={"x": (1, 8, 16, 16)}).model)[0]
    assert [step.kind for step in found.steps if step.kind != "copy"] == ["conv", "conv"]


STEM = "a = Conv <strides=[2,2], pads=[3,3,3,3]> (x, w) r = Relu(a)"
POOL = "MaxPool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>"
POOLED = {
    "the picture is read by the stem alone": (f"{STEM} y = {POOL} (r)", ["picture_pool"]),
    "another stem reads the picture that is laid out": (
        f"{STEM} p = {POOL} (r) b = Conv <strides=[2,2], pads=[3,3,3,3]> (x, v) q = {POOL} (b) y = Add(p, q)",
        ["pad", "conv_pool", "conv_pool"],
    ),
    "another pool": (
        f"{STEM} y = AveragePool <kernel_shape=[2,2], strides=[2,2]> (r)",
        ["pad", "conv", "average_pool"],
    ),
}


@pytest.mark.parametrize("why", POOLED)
def test_a_stem_and_its_pool_take_the_picture_as_it_came(why: str) -> None:
    body, kinds = POOLED[why]
    weights = {name: normal(16, 3, 7, 7, seed=seed) / 12 for seed, name in enumerate("wv") if f" {name})" in body}
    model = graph(f"(float[2,3,24,32] x) => (float[2,16,6,8] y) {{ {body} }}", weights)
    found, _ = lower(optimize(model, shapes={"x": (2, 3, 24, 32)}).model)
    assert [step.kind for step in found.steps if step.kind not in ("copy", "pointwise")] == kinds
    assert from_json(to_json(found)) == found
    if kinds == ["picture_pool"]:
        step = found.steps[0]
        assert step.inputs[0].view == View((2, 24, 32, 3), (3 * 24 * 32, 32, 1, 24 * 32))
        assert step.attributes["begin"] == (0, 3, 3, 0)
        split, pad, pool = apart(found, step)
        assert split.shape(pool.inputs[0]) == (2, 29, 16, 32)
        assert split.values[pad.outputs[0]].shape == (2, 29, 38, 4)


def test_pictures_of_bytes_are_laid_out_before() -> None:
    body = f"{STEM} y = {POOL} (r)"
    model = graph(f"(float[2,3,24,32] x) => (float[2,16,6,8] y) {{ {body} }}", {"w": normal(16, 3, 7, 7)})
    given = boundary.preprocess(model, "x:uint8,mean=1/2/3,std=4/5/6")
    found, _ = lower(optimize(given, shapes={"x": (2, 3, 24, 32)}).model)
    assert [step.kind for step in found.steps if step.kind != "copy"] == ["pad", "conv_pool"]
