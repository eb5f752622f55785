"""ONNX Runtime with a provider of its own: the CPU's stands in for a GPU's, the code is the same but for the device."""

from pathlib import Path

import numpy as np
import pytest

from penstock import graph
from penstock.engine import runtimes
from penstock.engine.plan import Tactic
from penstock.engine.runtimes import onnxruntime_gpu, settings
from penstock.errors import InvalidArgument, ModelLoadError, Unsupported
from tests.quantize import networks

SHAPES = {"x": (3, 3, 64, 64)}


def tactic(provider: str, precision: str = "fp32", *options: tuple[str, str], static: bool = True) -> Tactic:
    given = tuple(sorted([*options, (settings.PROVIDER, provider)]))
    return Tactic("onnxruntime", precision, "source", "static" if static else "dynamic", options=given)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("providers") / "m.onnx"
    graph.save(networks.residual(), found)
    return found


def pictures(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, 3, 64, 64)).astype(np.float32)


def test_what_is_bound_answers_as_a_plain_session_call_after_call(path: Path) -> None:
    made = runtimes.compile(path, tactic(settings.CPU), shapes=SHAPES)
    assert isinstance(made, onnxruntime_gpu.OnnxRuntimeOnGpu)
    assert [spec.shape for spec in (*made.inputs, *made.outputs)] == [(3, 3, 64, 64), (3, 10)]
    plain = runtimes.compile(path, Tactic("onnxruntime", "fp32"))
    first, second = made.instance(), made.instance()
    assert type(first).__name__ == "_Bound"
    kept = first.execute({"x": pictures(3)})["fc"]
    other = second.execute({"x": pictures(3) * 2})["fc"]
    first.execute({"x": pictures(3) * 3})
    np.testing.assert_allclose(kept, plain(x=pictures(3))["fc"], rtol=1e-4, atol=1e-5)  # its own, whatever came after
    np.testing.assert_allclose(other, plain(x=pictures(3) * 2)["fc"], rtol=1e-4, atol=1e-5)


def test_without_shapes_any_number_of_rows_is_taken(path: Path) -> None:
    made = runtimes.compile(path, tactic(settings.CPU, static=False))
    plain = runtimes.compile(path, Tactic("onnxruntime", "fp32"))
    for rows in (1, 5):
        np.testing.assert_allclose(made(x=pictures(rows))["fc"], plain(x=pictures(rows))["fc"], rtol=1e-4, atol=1e-5)


def test_what_was_exported_is_reopened_at_its_shapes(path: Path) -> None:
    which = tactic(settings.CPU)
    made = runtimes.compile(path, which, shapes=SHAPES)
    again = runtimes.reopen(memoryview(made.export()), which, output_names=("fc",), name="m.engine")
    np.testing.assert_array_equal(again(x=pictures(3))["fc"], made(x=pictures(3))["fc"])


@pytest.mark.parametrize("provider", [settings.CUDA_PROVIDER, settings.TENSORRT])
def test_a_provider_that_is_not_there_is_no_program_on_the_cpu(provider: str, path: Path) -> None:
    if provider in onnxruntime_gpu.available():
        pytest.skip("it is there")
    with pytest.raises(ModelLoadError, match=provider):
        runtimes.compile(path, tactic(provider), shapes=SHAPES)


@pytest.mark.parametrize(
    ("which", "error", "words"),
    [
        (tactic("CoreMLExecutionProvider"), InvalidArgument, "expected one of"),
        (tactic(settings.CUDA_PROVIDER, "fp32", ("user_compute_stream", "1")), InvalidArgument, "user_compute_stream"),
        (tactic(settings.CUDA_PROVIDER, "int8"), Unsupported, "int8 is not among them"),
    ],
)
def test_tactics_nobody_wrote_are_refused(which: Tactic, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        settings.provider(which)


def test_precision_is_said_in_the_providers_own_words() -> None:
    nhwc = ("prefer_nhwc", "1")
    assert settings.provider(tactic(settings.CUDA_PROVIDER, "tf32", nhwc)).options == {
        "use_tf32": "1", "prefer_nhwc": "1",
    }  # fmt: skip
    assert settings.provider(tactic(settings.TENSORRT, "fp16")).options == {"trt_fp16_enable": "1"}
    assert settings.on_gpu(tactic(settings.TENSORRT))
    assert not settings.on_gpu(Tactic("onnxruntime", "fp32"))
