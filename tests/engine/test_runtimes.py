"""What both runtimes promise: FP32, owned arrays, thread safety, clear refusals."""

import gc
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import penstock as ps
from penstock.engine import RUNTIMES, Runtime
from penstock.engine.runtimes.openvino import PLAIN, OpenVinoRuntime
from penstock.errors import ExecutionError, InvalidArgument, ModelLoadError, NotFound, Unavailable
from tests import onnx_models

BOTH = pytest.mark.parametrize("runtime", sorted(RUNTIMES))


@BOTH
def test_a_call_computes_and_describes_itself(runtime: str, tmp_path: Path) -> None:
    model = ps.load(onnx_models.double(tmp_path / "m.onnx"), runtime=runtime, threads=1)
    assert model.name == runtime
    assert [str(spec) for spec in model.inputs] == ["x FP32[-1, 16]"]
    assert [str(spec) for spec in model.outputs] == ["y FP32[-1, 16]"]
    for rows in (1, 7, 3):
        x = np.random.default_rng(rows).random((rows, 16), dtype=np.float32)
        np.testing.assert_array_equal(model(x=x)["y"], x + x)


def test_symbolic_names_of_dimensions_are_kept(tmp_path: Path) -> None:
    model = ps.load(onnx_models.identity(tmp_path / "m.onnx", shape=("batch", 3, None, "width")))
    assert model.inputs[0].shape == (-1, 3, -1, -1)
    assert model.inputs[0].axes[0] == "batch"
    assert model.inputs[0].axes[3] == "width"


SAMPLES: list[tuple[int, Any]] = [
    (TensorProto.FLOAT, np.array([[1.5, -2, 0, 3]], np.float32)),
    (TensorProto.DOUBLE, np.array([[1.5, -2, 0, 3]], np.float64)),
    (TensorProto.FLOAT16, np.array([[1.5, -2, 0, 3]], np.float16)),
    (TensorProto.BFLOAT16, np.array([[0x3F80, 0xC000, 0, 0x4040]], np.uint16)),
    (TensorProto.BOOL, np.array([[True, False, True, True]])),
    (TensorProto.INT8, np.array([[1, -2, 0, 127]], np.int8)),
    (TensorProto.UINT8, np.array([[1, 2, 0, 255]], np.uint8)),
    (TensorProto.INT16, np.array([[1, -2, 0, 32767]], np.int16)),
    (TensorProto.UINT16, np.array([[1, 2, 0, 65535]], np.uint16)),
    (TensorProto.INT32, np.array([[1, -2, 0, 2**31 - 1]], np.int32)),
    (TensorProto.UINT32, np.array([[1, 2, 0, 2**32 - 1]], np.uint32)),
    (TensorProto.INT64, np.array([[1, -2, 0, 2**62]], np.int64)),
    (TensorProto.UINT64, np.array([[1, 2, 0, 2**63]], np.uint64)),
]


@BOTH
@pytest.mark.parametrize(("kind", "x"), SAMPLES, ids=lambda item: str(getattr(item, "dtype", "")))
def test_every_element_type_passes_through(runtime: str, kind: int, x: Any, tmp_path: Path) -> None:
    if runtime == "openvino" and x.dtype in (np.int64, np.uint64):
        x = x.clip(0, 2**31 - 1)
    model = ps.load(onnx_models.identity(tmp_path / "m.onnx", kind), runtime=runtime)
    y = model(x=x)["y"]
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, x)


def test_strings_are_utf8_bytes_in_and_out(tmp_path: Path) -> None:
    model = ps.load(onnx_models.identity(tmp_path / "m.onnx", TensorProto.STRING))
    x = np.array([[b"a", "Köln".encode(), b"", b"d"]], dtype=object)
    assert model(x=x)["y"].tolist() == x.tolist()
    with pytest.raises(InvalidArgument, match="UTF-8"):
        model(x=np.array([[b"\xff", b"", b"", b""]], dtype=object))


def test_openvino_refuses_strings_and_names_the_runtime_that_serves_them(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="use runtime onnxruntime"):
        ps.load(onnx_models.identity(tmp_path / "m.onnx", TensorProto.STRING), runtime="openvino")


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 2**62])
def test_openvino_refuses_integers_that_it_would_silently_cut(value: int, tmp_path: Path) -> None:
    model = ps.load(onnx_models.identity(tmp_path / "m.onnx", TensorProto.INT64), runtime="openvino")
    with pytest.raises(InvalidArgument, match="input 'x' holds integers beyond 32 bits"):
        model(x=np.array([[0, 0, 0, value]], np.int64))
    assert model(x=np.zeros((0, 4), np.int64))["y"].shape == (0, 4)


@BOTH
def test_answers_never_share_memory_with_inputs_or_later_answers(runtime: str, tmp_path: Path) -> None:
    instance = ps.load(onnx_models.identity(tmp_path / "m.onnx"), runtime=runtime).instance()
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    first = instance.execute({"x": x})["y"]
    assert not np.shares_memory(first, x)
    second = instance.execute({"x": x + 1})["y"]
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, x)


@BOTH
def test_an_instance_keeps_no_reference_to_its_inputs(runtime: str, tmp_path: Path) -> None:
    instance = ps.load(onnx_models.identity(tmp_path / "m.onnx"), runtime=runtime).instance()
    x = np.ones((20_000, 4), np.float32)
    before = sys.getrefcount(x)
    instance.execute({"x": x})
    gc.collect()
    assert sys.getrefcount(x) == before


@BOTH
def test_inputs_need_not_be_contiguous(runtime: str, tmp_path: Path) -> None:
    instance = ps.load(onnx_models.identity(tmp_path / "m.onnx"), runtime=runtime).instance()
    x = np.arange(16, dtype=np.float32).reshape(4, 4).T
    np.testing.assert_array_equal(instance.execute({"x": x})["y"], x)


@BOTH
@pytest.mark.parametrize("width", [3, 30_000], ids=["small", "large"])
def test_inputs_of_every_kind_may_take_turns_and_stay_as_they_are(runtime: str, width: int, tmp_path: Path) -> None:
    """Large ones are read where they lie, where that can be."""
    path = onnx_models.add_and_subtract(tmp_path / "m.onnx", ("n", width), ("n", width))
    instance = ps.load(path, runtime=runtime).instance()
    whole = np.random.default_rng(5).standard_normal((6, 2 * width), dtype=np.float32)
    fixed = whole[:, :width].copy()
    fixed.flags.writeable = False
    odd = np.frombuffer(b"\0" + fixed.tobytes(), np.uint8)[1:].view(np.float32).reshape(6, width)
    kinds = [fixed.copy(), fixed, whole[:, :width], np.asfortranarray(fixed), odd]
    for rows in (6, 2, 0, 5):
        for left in kinds:
            for right in kinds:
                a, b = left[:rows], right[6 - rows :]
                found = instance.execute({"a": a, "b": b})
                np.testing.assert_array_equal(found["sum"], fixed[:rows] + fixed[6 - rows :])
                np.testing.assert_array_equal(found["difference"], fixed[:rows] - fixed[6 - rows :])
    for each in kinds:
        np.testing.assert_array_equal(each, fixed)


def test_an_input_that_can_not_be_taken_leaves_nothing_behind(tmp_path: Path) -> None:
    """Neither the memory of the inputs before it, which the caller may free, nor a shape without memory."""
    size = 100_000
    model = ps.load(onnx_models.add_and_subtract(tmp_path / "m.onnx", ("n", size), ("n", size)), runtime="openvino")
    instance = model.instance()
    large, ones = np.full((1, size), 100, np.float32), np.ones((1, size), np.float32)
    ones.flags.writeable = False
    huge = np.broadcast_to(np.float32(0), (1 << 28, size))
    for wrong in ({"a": large}, {"a": large, "b": huge}, {"a": large, "b": np.zeros((2, 2, 2), np.float32)}):
        before = sys.getrefcount(large)
        with pytest.raises((ExecutionError, KeyError)):
            instance.execute(wrong)
        assert sys.getrefcount(large) == before
        for _ in range(2):
            found = instance.execute({"a": ones, "b": np.zeros((1, size), np.float32)})["sum"]
            np.testing.assert_array_equal(found, ones)


def test_what_is_closed_during_a_call_still_answers(tmp_path: Path) -> None:
    size = 4_000_000
    model = ps.load(onnx_models.add_and_subtract(tmp_path / "m.onnx", ("n", size), ("n", size)), runtime="openvino")
    x = np.ones((4, size), np.float32)
    for delay in (0.0, 0.001, 0.005, 0.02):
        instance = model.instance()
        timer = threading.Timer(delay, instance.close)
        timer.start()
        try:
            np.testing.assert_array_equal(instance.execute({"a": x, "b": x})["sum"][:, :9], 2 * x[:, :9])
        except Unavailable:  # before it began
            assert delay == 0
        timer.join()


@BOTH
@pytest.mark.parametrize(
    "body",
    [
        "r = Reshape(x, flat) y = Relu(r)",
        "a, b = Split<axis=1>(x) y = Add(a, one)",
        "r = Reshape(x, flat) s = Add(r, one) t = Sigmoid(s) u = Reshape(t, flat) y = Mul(u, r)",
    ],
)
def test_layers_that_work_in_place_leave_the_callers_arrays_alone(runtime: str, body: str, tmp_path: Path) -> None:
    text = f"(float[n,40000] x) => (float[?,?] y) <int64[2] flat = {{-1, 20000}}, float one = {{1}}> {{ {body} }}"
    (tmp_path / "m.onnx").write_bytes(
        onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 13]> g {text}').SerializeToString()
    )
    instance = ps.load(tmp_path / "m.onnx", runtime=runtime).instance()
    for seed in range(3):
        x = np.random.default_rng(seed).standard_normal((6, 40_000), dtype=np.float32)
        given = x.copy()
        first = instance.execute({"x": x})["y"]
        np.testing.assert_array_equal(x, given)
        np.testing.assert_array_equal(instance.execute({"x": np.asfortranarray(x)})["y"], first)


@BOTH
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "input 'x' is missing"),
        ({"x": np.ones((1, 4), np.float32), "z": 1}, "unexpected input 'z'"),
        ({"x": np.ones((1, 4))}, "input 'x' is FP32, got an array of FP64"),
        ({"x": np.ones((1, 5), np.float32)}, r"has shape \[-1, 4\], got \[1, 5\]"),
        ({"x": np.ones(4, np.float32)}, r"has shape \[-1, 4\], got \[4\]"),
    ],
)
def test_a_call_that_does_not_fit_says_what_was_expected(
    runtime: str, arrays: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = ps.load(onnx_models.identity(tmp_path / "m.onnx"), runtime=runtime)
    with pytest.raises(InvalidArgument, match=message):
        model(**arrays)


@BOTH
def test_an_instance_survives_a_batch_that_the_library_refuses(runtime: str, tmp_path: Path) -> None:
    instance = ps.load(onnx_models.double(tmp_path / "m.onnx"), runtime=runtime).instance()
    with pytest.raises(ExecutionError) as caught:
        instance.execute({"x": np.ones((1, 3), np.float32)})
    assert str(tmp_path) not in caught.value.message
    assert "\n" not in caught.value.message
    x = np.ones((2, 16), np.float32)
    np.testing.assert_array_equal(instance.execute({"x": x})["y"], 2 * x)


@BOTH
@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"\x08\x09", b"\x3a\xff\xff\xff\xff\x0f", b"\x3a\x02\x0a\x00" * 3, b"{" * 1000]
)
def test_a_file_that_is_no_model_is_refused_in_one_clean_sentence(
    runtime: str, content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"broken\.onnx") as caught:
        ps.load(path, runtime=runtime)
    assert str(tmp_path) not in caught.value.message
    assert "\n" not in caught.value.message
    assert str(tmp_path) not in "".join(capfd.readouterr())


@BOTH
def test_a_truncated_model_is_refused(runtime: str, tmp_path: Path) -> None:
    whole = onnx_models.scale(tmp_path / "whole.onnx", 2).read_bytes()
    path = tmp_path / "cut.onnx"
    for size in range(1, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelLoadError):
            ps.load(path, runtime=runtime)


@BOTH
def test_many_threads_share_one_runtime_without_mixing_answers(runtime: str, tmp_path: Path) -> None:
    model = ps.load(onnx_models.double(tmp_path / "m.onnx"), runtime=runtime, instances=2)
    failures: list[object] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(50):
            x = random.random((int(random.integers(1, 9)), 16), dtype=np.float32)
            y = model(x=x)["y"]
            if not np.array_equal(y, x + x):
                failures.append((seed, x, y))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@BOTH
def test_a_closed_runtime_says_so(runtime: str, tmp_path: Path) -> None:
    model = ps.load(onnx_models.double(tmp_path / "m.onnx"), runtime=runtime)
    model.close()
    with pytest.raises(Unavailable, match="closed"):
        model(x=np.ones((1, 16), np.float32))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"runtime": "tensorrt"}, InvalidArgument, "unknown runtime 'tensorrt', expected one of onnxruntime, openvino"),
        ({"threads": 0}, InvalidArgument, "at least 1"),
        ({"instances": 0}, InvalidArgument, "at least 1"),
    ],
)
def test_bad_settings_are_refused(
    settings: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        ps.load(onnx_models.double(tmp_path / "m.onnx"), **settings)


def test_a_missing_file_is_named_without_its_directory(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"^model file 'absent\.onnx' does not exist$"):
        ps.load(tmp_path / "absent.onnx")


def test_openvino_names_outputs_as_the_onnx_file_does(tmp_path: Path) -> None:
    model = ps.load(onnx_models.add_and_subtract(tmp_path / "m.onnx"), runtime="openvino")
    one = np.ones((1, 3), np.float32)
    answers = model(a=one, b=one)
    assert {name: float(array[0, 0]) for name, array in answers.items()} == {"sum": 2.0, "difference": 0.0}


@pytest.mark.parametrize(
    "text",
    [
        "(float[N,4] x) => (float[N,4] y) { a = Cast<to=10>(x) b = Add(a, a) y = Cast<to=1>(b) }",  # FP16, FP32 outside
        "(float[N,4] x) => (float[N,4] y) { a = Dropout(x) y = Add(a, a) }",
        "(float[N,4] x, float[N,4] z) => (float[N,4] y, float[N,4] w) "
        "{ a = Dropout(x) b = Identity(z) y = Sub(a, b) w = Identity(y) }",
        "(float[N,4] x, float[N,4] z) => (float[N,4] y) { b = Dropout(z) a = Dropout(x) y = Sub(b, a) }",
        "(float[N,4] x, float[N,4] beside, float[N,4] z) => (float[N,4] y) { y = Sub(x, z) }",
        "(float[N,4] x) => (float[N,4] a, float[N,4] y) { a = Dropout(x) y = Add(a, x) }",
    ],
)
def test_openvino_names_inputs_as_the_onnx_file_does(text: str, tmp_path: Path) -> None:
    path = onnx_models.save(
        onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 13]> g {text}'), tmp_path / "m"
    )
    path = path.rename(path.with_suffix(".onnx"))
    right = ps.load(path, runtime="onnxruntime")
    given = {spec.name: np.random.default_rng(at).random((3, 4), np.float32) for at, spec in enumerate(right.inputs)}
    found = OpenVinoRuntime.load(path, instances=1, threads=1)
    again = OpenVinoRuntime.reopen(
        memoryview(found.export()), PLAIN, tuple(spec.name for spec in right.outputs), "m", instances=1, threads=1
    )
    for each in (found, again):
        assert [spec.name for spec in each.inputs] == list(given)
        for name, expected in right(**given).items():
            np.testing.assert_allclose(each(**given)[name], expected, atol=2e-3)


def test_openvino_reads_its_own_format(tmp_path: Path) -> None:
    import openvino

    core = openvino.Core()
    openvino.save_model(core.read_model(onnx_models.scale(tmp_path / "m.onnx", 3)), tmp_path / "model.xml", False)
    model = ps.load(tmp_path / "model.xml", runtime="openvino")
    np.testing.assert_array_equal(model(x=np.ones((2, 4), np.float32))["y"], np.full((2, 4), 3, np.float32))


def agree(model: Runtime, other: Runtime, x: Any) -> float:
    a, b = (next(iter(runtime(x=x).values())) for runtime in (model, other))
    return float(np.abs(a - b).max())


def test_the_recogniser_computes_in_fp32_on_both_runtimes(recogniser: Path) -> None:
    """BF16 and FP16 differ by 1e-3 and more on these probabilities; FP32 libraries agree to about 1e-5."""
    x = np.random.default_rng(0).random((2, 3, 48, 160), dtype=np.float32) * 2 - 1
    assert agree(ps.load(recogniser), ps.load(recogniser, runtime="openvino"), x) < 1e-4


@BOTH
def test_the_recogniser_answers_two_instances_at_once_as_it_answers_one(runtime: str, recogniser: Path) -> None:
    model = ps.load(recogniser, runtime=runtime, instances=2)
    inputs = [np.random.default_rng(seed).random((1, 3, 48, 64 + 32 * seed), dtype=np.float32) for seed in range(4)]
    alone = [next(iter(model(x=x).values())) for x in inputs]
    together: dict[int, Any] = {}

    def work(index: int) -> None:
        instance = model.instance()
        for _ in range(3):
            together[index] = next(iter(instance.execute({"x": inputs[index]}).values()))
        instance.close()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, expected in enumerate(alone):
        np.testing.assert_allclose(together[index], expected, atol=1e-5)
