"""Provenance: which of the source's nodes each node of an optimized graph stands for."""

from pathlib import Path

import pytest

from penstock.graph import SOURCE_KEY, load, optimize, save, sources
from tests.graph.small import graph, normal


def test_a_folded_node_stands_for_all_it_took_in(tmp_path: Path) -> None:
    text = """(float[1,3,8,8] x) => (float[?,?,?,?] y) {
        p = Pad(x, pads)
        c = Conv(p, w)
        n = BatchNormalization(c, v, v, v, v)
        s = Mul(n, two)
        r = Relu(s)
        y = Identity(r)
    }"""
    weights = {"pads": normal(8).astype(int) * 0, "w": normal(4, 3, 3, 3), "v": abs(normal(4)), "two": normal(1)}
    weights["pads"][2] = 1
    model = optimize(graph(text, weights)).model
    assert [(node.op_type, sources(node)) for node in model.graph] == [
        ("Conv", ("n0", "n1", "n2", "n3")),
        ("Relu", ("n4",)),
    ]
    save(model, tmp_path / "m.onnx")
    assert [sources(node) for node in load(tmp_path / "m.onnx").graph] == [sources(node) for node in model.graph]
    # A second round keeps what is written: the names are still those of the first model.
    again = optimize(load(tmp_path / "m.onnx")).model
    assert [sources(node) for node in again.graph] == [sources(node) for node in model.graph]


def test_one_node_in_place_of_two_equal_ones_stands_for_both() -> None:
    model = optimize(graph("(float[2] x) => (float[2] y) { a = Tanh(x) b = Tanh(x) y = Add(a, b) }")).model
    assert {node.op_type: sources(node) for node in model.graph} == {"Tanh": ("n0", "n1"), "Add": ("n2",)}


def test_a_new_node_stands_for_those_it_replaces() -> None:
    text = "(float[N,8] x) => (float[?,5] y) { m = MatMul(x, w) y = Add(m, b) }"
    (gemm,) = optimize(graph(text, {"w": normal(8, 5), "b": normal(5)})).model.graph
    assert sources(gemm) == ("n0", "n1")


@pytest.mark.parametrize("entry", ["no JSON", "3", "{}", '"name"'])
def test_an_entry_that_is_no_list_counts_for_nothing(entry: str) -> None:
    (node,) = graph("(float[2] x) => (float[2] y) { y = Tanh(x) }").graph
    assert sources(node) == ("n0",)
    node.metadata_props[SOURCE_KEY] = entry
    assert sources(node) == ("n0",)
