"""Lowered graphs in eight bits by the reference: what is stored how, and how far that is from floats."""

from dataclasses import replace

import pytest

pytest.importorskip("torch")

import torch

from penstock.engine.cuda.eight_bits import quantized
from penstock.engine.cuda.executor import Executor
from penstock.engine.eight_bits import Grids, in_eight_bits, rounded_array
from penstock.engine.lowered import LoweredGraph, Value, from_json, to_json, validate
from penstock.errors import InvalidArgument
from tests.engine.cuda.narrowing import NETWORKS, Network
from tests.graph.small import normal

pytestmark = pytest.mark.torch

each_network = pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)


@each_network
def test_values_are_stored_in_eight_bits_where_all_readers_can_read_them(network: Network) -> None:
    graph, weights, _ = network.narrowed()
    validate(graph)
    assert from_json(to_json(graph)) == graph
    narrow = {name for name, value in graph.values.items() if value.scale is not None}
    copies = {name for name in narrow if name.endswith(f".{network.datatype.lower()}")}
    assert narrow - copies == {name for name in network.stored if not name.endswith(".int8")}
    assert {graph.values[name].datatype for name in narrow} == {network.datatype}
    for step in graph.steps:
        weight, scale = step.operand("weight"), step.operand("scale")
        if weight is not None and scale is not None:
            assert graph.weights[weight.value].datatype == network.datatype
            assert graph.weights[scale.value].shape == graph.weights[weight.value].shape[:1]
    assert weights.keys() == graph.weights.keys()


@each_network
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_network_in_eight_bits_is_near_the_one_in_floats(network: Network, precision: str) -> None:
    before, floats = network.lowered()
    graph, weights, _ = network.narrowed()
    x = network.inputs()
    right = Executor(before, floats, "cpu", "fp32").run(x)
    for name, found in Executor(graph, weights, "cpu", precision).run(x).items():
        assert found.dtype == right[name].dtype
        off = float((found - right[name]).norm() / right[name].norm())
        assert 0 < off < 0.06


def test_layers_without_scales_stay_as_they_are() -> None:
    network = NETWORKS[0]
    graph, _, grids = network.narrowed()
    before, floats = network.lowered()
    last = next(step for step in before.steps if step.kind == "gemm").operand("weight")
    assert last is not None
    few = Grids(grids.values, {name: rows for name, rows in grids.weights.items() if name != last.value})
    narrower, _ = in_eight_bits(before, {name: each.numpy() for name, each in floats.items()}, few)
    layers = [step for step in graph.steps if step.operand("scale") is not None]
    assert len([step for step in narrower.steps if step.operand("scale") is not None]) == len(layers) - 1
    unchanged, same = in_eight_bits(before, floats, Grids({}, {}))
    assert unchanged == before
    assert same.keys() == floats.keys()


def test_a_pool_moves_what_has_one_scale() -> None:
    network = NETWORKS[0]
    before, floats = network.lowered()
    _, _, grids = network.narrowed()
    values = {**grids.values, "t": 2 * grids.values["p"]}
    graph, _ = in_eight_bits(
        before, {name: each.numpy() for name, each in floats.items()}, Grids(values, grids.weights)
    )
    # The pool reads 16 bits then, and layers behind it read a copy.
    assert graph.values["t"].scale is None
    assert graph.values["p"].scale is None
    assert graph.values["p.int8"].scale == grids.values["p"]


def test_other_types_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="can't multiply UINT8"):
        in_eight_bits(LoweredGraph((), (), {}, {}, ()), {}, Grids({}, {}), "UINT8")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Value((2,), "INT8", "plain", 0.0), "with the scale 0.0"),
        (Value((2,), "INT8", "plain", float("inf")), "with the scale inf"),
        (Value((2,), "FP16", "plain", 0.5), "is FP16 with the scale 0.5"),
        (Value((2,), "FP8"), "is FP8 with the scale None"),
    ],
)
def test_scales_that_mean_nothing_are_refused(value: Value, message: str) -> None:
    graph, _, _ = NETWORKS[0].narrowed()
    with pytest.raises(InvalidArgument, match=message):
        validate(replace(graph, values={**graph.values, "more": value}))
    ends = {name: replace(each, datatype="INT8", scale=1.0) for name, each in graph.values.items() if name == "y"}
    with pytest.raises(InvalidArgument, match="'y' is INT8"):
        validate(replace(graph, values={**graph.values, **ends}))


def test_numbers_are_rounded_to_even_and_saturate() -> None:
    x = torch.tensor([0.25, 0.75, 1.25, -0.75, 1000.0, -1000.0])
    assert quantized(x, torch.int8, 0.5).tolist() == [0, 2, 2, -2, 127, -128]
    assert quantized(x, torch.float8_e4m3fn, 0.5).float().tolist() == [0.5, 1.5, 2.5, -1.5, 448.0, -448.0]


def test_weights_keep_their_largest_number_in_every_row() -> None:
    weight = normal(5, 3, 3, 7)
    rows = abs(weight).reshape(5, -1).max(axis=1) / 127
    found = rounded_array(weight, rows, "INT8")
    assert abs(found).reshape(5, -1).max(axis=1).tolist() == [127] * 5
    assert abs(found * rows.reshape(5, 1, 1, 1) - weight).max() <= rows.max() / 2 * 1.001
    e4m3 = rounded_array(weight, rows * 127 / 448, "FP8")
    assert e4m3.dtype.name == "float8_e4m3fn"
