"""PP-OCR's detector, recogniser and classifier, as Paddle exported them: what is found; they answer the same."""

import importlib.util
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
import pytest

from penstock.graph import load, optimize
from penstock.graph.binding import prepare
from penstock.graph.optimizing import run_pass
from penstock.graph.passes import PASSES
from penstock.graph.patterns import recognise
from penstock.graph.regions import listing
from tests.graph.small import assert_same, normal, operators
from tests.graph.test_regions import assert_partition

DETECTOR, RECOGNISER = "PP-OCRv6_det_small.onnx", "PP-OCRv6_rec_small.onnx"
CLASSIFIER = "ch_ppocr_mobile_v2.0_cls_mobile.onnx"

FOUND: Mapping[str, Mapping[str, int]] = {
    DETECTOR: {"gelu": 13, "squeeze_excite": 13},
    RECOGNISER: {"gelu": 13, "layer_norm": 5, "attention": 2, "squeeze_excite": 5, "silu": 5},
    CLASSIFIER: {"hard_swish": 18, "squeeze_excite": 9},
}
BECAME: Mapping[str, Mapping[str, int]] = {
    DETECTOR: {"Gelu": 13, "HardSigmoid": 13, "Erf": 0},
    RECOGNISER: {"Gelu": 13, "LayerNormalization": 5, "HardSigmoid": 5, "Erf": 0, "Sqrt": 0},
    CLASSIFIER: {"HardSwish": 18, "HardSigmoid": 9, "Clip": 0},
}
INPUTS = {DETECTOR: (1, 3, 96, 64), RECOGNISER: (2, 3, 48, 96), CLASSIFIER: (2, 3, 48, 192)}
# Layers as exported, and the regions left.
REGIONS = {DETECTOR: (300, 85), RECOGNISER: (320, 80), CLASSIFIER: (200, 50)}


def _path(name: str) -> Path:
    found = importlib.util.find_spec("rapidocr")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the models are in the package rapidocr, which is not installed")
    return Path(found.submodule_search_locations[0]) / "models" / name


# What must be out of the way before patterns show; nothing that moves factors from one layer to the next.
_FIRST = ("fold-constants", "remove-no-ops", "merge-transposes", "merge-reshapes", "remove-dead", "merge-duplicates")


def _tidied(source: ir.Model) -> ir.Model:
    model = prepare(source)
    for name, function in PASSES:
        if name in _FIRST:
            run_pass(model, name, function)
    return model


@pytest.mark.parametrize("name", FOUND)
def test_patterns_are_found_and_answers_stay(name: str) -> None:
    source = load(_path(name))
    model = _tidied(source)
    counts = recognise(model)
    assert {pattern: count for pattern, count in counts.items() if count} == FOUND[name]
    present = operators(model)
    assert {operator: present.get(operator, 0) for operator in BECAME[name]} == BECAME[name]
    assert sum(recognise(model).values()) == 0
    assert_same(source, model, {"x": normal(*INPUTS[name])})


@pytest.mark.parametrize("name", FOUND)
def test_regions_are_few_and_a_partition(name: str) -> None:
    """Groups keep their names while the passes fold norms and biases inside them."""
    source = load(_path(name))
    model = _tidied(source)
    recognise(model)
    after = optimize(model).model
    assert_partition(after)
    made = listing(source, after)
    layers, most = REGIONS[name]
    assert made.layers_before >= layers
    assert len(made.regions) <= most
    kinds = Counter(part for region in made.regions for part in region.kind.split("+"))
    assert {pattern: kinds[pattern] for pattern in FOUND[name]} == dict(FOUND[name])
