"""Which layers stay in 16 bits when times say so."""

import pytest

pytest.importorskip("torch")

from penstock.engine.cuda.eight_bits import rounded
from penstock.engine.cuda.mixing import slower, without
from penstock.engine.eight_bits import in_eight_bits
from tests.engine.cuda.narrowing import NETWORKS, Network

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_layers_that_are_slower_in_eight_bits_stay_in_16(network: Network) -> None:
    graph, _, grids = network.narrowed()
    before, floats = network.lowered()
    layers = [step.name for step in graph.steps if step.operand("scale") is not None]
    narrow = {step.name: 2.0 for step in graph.steps}
    wide = {step.name: 40.0 for step in before.steps}
    assert slower(graph, narrow, wide) == frozenset()
    lost = slower(graph, narrow, {**wide, layers[0]: 1.0})
    assert lost == {layers[0]}
    mixed, _ = in_eight_bits(before, floats, without(grids, before, lost), network.datatype, rounded)
    weights = {step.name: weight.value for step in before.steps if (weight := step.operand("weight")) is not None}
    alone = {name for name in layers if weights[name] != weights[layers[0]]}
    assert {step.name for step in mixed.steps if step.operand("scale") is not None} == alone


def test_a_layer_pays_for_the_copy_that_only_it_reads() -> None:
    network = next(each for each in NETWORKS if each.name == "a float reader")
    graph, _, _ = network.narrowed()
    before, _ = network.lowered()
    copies = {step.outputs[0]: step.name for step in graph.steps if step.name.endswith(".made")}
    reader = next(step for step in graph.steps if step.operand("scale") is not None and step.inputs[0].value in copies)
    narrow, wide = {step.name: 2.0 for step in graph.steps}, {step.name: 4.0 for step in before.steps}
    readers = len(graph.readers()[reader.inputs[0].value])
    assert reader.name not in slower(graph, narrow, wide)
    narrow[copies[reader.inputs[0].value]] = 3.0 * readers
    assert reader.name in slower(graph, narrow, wide)
