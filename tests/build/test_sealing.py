"""What a sealed engine says of itself."""

import pytest

from penstock.build.sealing import narrowest
from penstock.engine.kinds import MULTIPLY
from penstock.engine.plan import Program, Region, Tactic

PROGRAM = Program(Tactic("openvino", "bf16"), "artifacts/0.blob", {}, 0, ("y",))


@pytest.mark.parametrize(
    ("regions", "precision"),
    [
        ([("convolution", "bf16"), ("fullyconnected", "fp32"), ("pooling", "fp32")], "bf16"),
        ([("convolution", "int8"), ("fullyconnected", "bf16")], "int8"),
        ([("fullyconnected", "fp32"), ("subgraph", "int8"), ("convert", "int8"), ("eltwise", "int8")], "fp32"),
        ([("Conv", "fp32"), ("QLinearConv", "int8")], "int8"),
        ([("conv+bias+relu", "fp16"), ("layer_norm", "fp32")], "fp16"),
        ([("eltwise", "fp32"), ("softmax", "bf16")], "bf16"),
        ([("eltwise", ""), ("convolution", "")], "bf16"),
        ([], "bf16"),
    ],
)
def test_an_engine_is_named_for_what_it_multiplies_in(regions: list[tuple[str, str]], precision: str) -> None:
    """Masks are compared as bytes in every model; where nothing is reported, what was asked for counts."""
    found = [Region(kind, kind, (), achieved) for kind, achieved in regions]
    assert narrowest([PROGRAM], found) == precision


@pytest.mark.parametrize("kind", sorted(MULTIPLY))
def test_every_kind_of_step_that_multiplies_counts(kind: str) -> None:
    found = [Region("a", "gemm+bias", (), "fp16"), Region("b", f"{kind}+bias", (), "int8")]
    assert narrowest([PROGRAM], found) == "int8"
