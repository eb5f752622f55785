"""Candidates: the safe one first, nothing that is not allowed or that the processor has not."""

from itertools import product
from pathlib import Path

import pytest

from penstock.engine.plan import PRECISIONS, Tactic
from penstock.tactics import Form, candidates, for_gpu
from penstock.tactics.candidates import one_thread, siblings

ONE = [{"x": (1, 4)}]
TWO = [{"x": (1, 4)}, {"x": (8, 4)}]
FORMS = {
    "source": Form(Path("source.onnx"), "fp32", False),
    "optimized": Form(Path("optimized.onnx"), "fp32", False),
    "int8-kl": Form(Path("int8-kl.onnx"), "int8", True),
}
FEATURES = {
    "plain": (),
    "bf16": ("avx512_bf16",),
    "amx": ("amx_bf16", "amx_fp16", "avx512_bf16", "avx512_fp16"),
    "arm": ("asimdhp", "bf16"),
}
SAFE = Tactic("onnxruntime", "fp32", "source")


def _hint(tactic: Tactic) -> str | None:
    return dict(tactic.options).get("INFERENCE_PRECISION_HINT")


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
@pytest.mark.parametrize("narrowest", PRECISIONS)
def test_nothing_narrower_than_allowed_or_unknown_to_the_processor(narrowest: str, features: tuple[str, ...]) -> None:
    allowed = PRECISIONS[PRECISIONS.index(narrowest) :]
    found = candidates(FORMS, allowed, features, TWO)
    assert found[0] == SAFE
    assert len(set(found)) == len(found)
    for tactic in found:
        types = {tactic.precision, {"bf16": "bf16", "f16": "fp16"}.get(_hint(tactic) or "", "fp32")}
        assert types <= set(allowed)
        assert not types & {"bf16", "fp16"} or features
        assert "fp16" not in types or {"amx_fp16", "asimdhp"} & set(features)
        assert (tactic.precision == "int8") == (tactic.form == "int8-kl")


def test_every_combination_that_is_allowed_takes_part() -> None:
    found = set(candidates(FORMS, PRECISIONS, FEATURES["amx"], TWO))
    shapes, plain = ("dynamic", "static"), ("source", "optimized")
    wanted = {Tactic("onnxruntime", "fp32", form) for form in plain} | {Tactic("onnxruntime", "int8", "int8-kl")}
    wanted |= {Tactic("openvino", *each) for each in product(("fp32", "bf16", "fp16"), plain, shapes)}  # type: ignore[arg-type]
    for way in shapes:
        plain_int8 = Tactic("openvino", "int8", "int8-kl", "static" if way == "static" else "dynamic")
        wanted |= {plain_int8}
        wanted |= {
            Tactic("openvino", "int8", "int8-kl", plain_int8.shapes, options=(("INFERENCE_PRECISION_HINT", hint),))
            for hint in ("bf16", "f16")
        }
    assert found == wanted


@pytest.mark.parametrize(("buckets", "first"), [(ONE, "static"), (TWO, "dynamic")])
def test_one_bucket_prefers_static_programs_and_several_a_dynamic_one(
    buckets: list[dict[str, tuple[int, ...]]], first: str
) -> None:
    found = [tactic for tactic in candidates(FORMS, PRECISIONS, (), buckets) if tactic.runtime == "openvino"]
    assert found[0].shapes == first
    assert {tactic.shapes for tactic in found} == {"dynamic", "static"}


def test_the_optimized_form_goes_before_the_source_after_the_safe_one() -> None:
    found = candidates(FORMS, PRECISIONS, (), TWO)[1:]
    forms = [tactic.form for tactic in found if (tactic.runtime, tactic.precision) == ("openvino", "fp32")]
    assert forms == ["optimized", "optimized", "source", "source"]


def test_a_source_that_came_quantized_is_the_safe_one_itself() -> None:
    forms = {"source": Form(Path("source.onnx"), "int8", True)}
    assert candidates(forms, PRECISIONS, (), ONE)[0] == Tactic("onnxruntime", "int8", "source")


def test_siblings_differ_in_shapes_only() -> None:
    one = Tactic("openvino", "bf16")
    assert siblings(one, Tactic("openvino", "bf16", shapes="static"))
    assert not siblings(one, one)
    assert not siblings(one, Tactic("openvino", "fp32", shapes="static"))
    assert not siblings(one, one_thread(Tactic("openvino", "bf16", shapes="static")))


@pytest.mark.parametrize("free_shapes", [False, True])
def test_on_a_gpu_plain_steps_come_first_and_the_cpu_last_unless_only_it_takes_every_shape(free_shapes: bool) -> None:
    forms = {"source": FORMS["source"], "lowered": Form(Path("lowered.safetensors"), "fp32", False)}
    found = for_gpu(forms, PRECISIONS, "fp16", free_shapes=free_shapes)
    steps = ["cuda fp16 lowered static steps=plain", "cuda fp16 lowered static steps=tuned"]
    safe = ["onnxruntime fp32 source dynamic"]
    assert [each.name for each in found] == ([*safe, *steps] if free_shapes else [*steps, *safe])
    assert [each.name for each in for_gpu(forms, ("fp32",), "fp32")] == [
        "cuda fp32 lowered static steps=plain", "onnxruntime fp32 source dynamic",
    ]  # fmt: skip
