"""Settings as text: what they mean, and what is said of those that mean nothing."""

import math
import re
from pathlib import Path
from typing import Any

import pytest

from penstock.build import options
from penstock.build.gate import Cosine
from penstock.build.options import BuildOptions, allowed
from penstock.engine.plan import PRECISIONS, Profile
from penstock.errors import InvalidArgument
from penstock.tensors import TensorSpec

IMAGE = TensorSpec("x", "FP32", (-1, 3, 224, 224), axes=("batch", None, None, None))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("5m", 300), ("2h", 7200), ("1h30m", 5400), ("1.5m", 90), (" 10 s ", 10), ("500ms", 0.5), ("1M", 60)],
)
def test_durations(text: str, seconds: float) -> None:
    assert options.parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "m", "5 minutes", "-5m", "5mx", "x5m", "5d", "1e3s", "٥m"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(InvalidArgument, match="unit"):
        options.parse_seconds(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1GiB", 2**30), ("512MiB", 2**29), ("1.5GB", 1_500_000_000), ("4096B", 4096), ("2 gib", 2**31), ("1KiB", 1024)],
)
def test_sizes(text: str, size: int) -> None:
    assert options.parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "5", "GiB", "1G", "-1GiB", "1GiBs", "1 000 MiB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidArgument, match="unit"):
        options.parse_bytes(text)


@pytest.mark.parametrize(
    ("given", "batches"), [("1,8,64", (1, 8, 64)), ("64, 1,8,8", (1, 8, 64)), ([4], (4,)), ((2, 1), (1, 2))]
)
def test_buckets(given: Any, batches: tuple[int, ...]) -> None:
    assert options.parse_buckets(given) == batches


@pytest.mark.parametrize("given", ["", "0", "1,", "1;8", "-1", "x", "1.5", "²", "9" * 12, [], [0], [True], [1.5]])
def test_what_are_no_buckets(given: Any) -> None:
    with pytest.raises(InvalidArgument, match="buckets"):
        options.parse_buckets(given)


@pytest.mark.parametrize(
    ("text", "device"), [("auto", "auto"), ("CPU", "cpu"), ("cuda", "cuda:0"), ("cuda:3", "cuda:3")]
)
def test_devices(text: str, device: str) -> None:
    assert options.parse_device(text) == device


@pytest.mark.parametrize("text", ["", "gpu", "cuda:", "cuda:x", "cpu:0", "cuda:-1"])
def test_what_is_no_device(text: str) -> None:
    with pytest.raises(InvalidArgument, match="expected auto, cpu or cuda:N"):
        options.parse_device(text)


@pytest.mark.parametrize(
    ("precision", "narrowest", "count"),
    [
        ("auto", "int8", 6),
        ("int8", "int8", 6),
        ("fp8", "fp8", 5),
        ("fp16", "fp16", 4),
        ("bf16", "bf16", 3),
        ("fp32", "fp32", 1),
    ],
)
def test_a_precision_allows_itself_and_everything_wider(precision: str, narrowest: str, count: int) -> None:
    found = allowed(precision)
    assert (found[0], found[-1], len(found)) == (narrowest, "fp32", count)
    assert found == PRECISIONS[-count:]


@pytest.mark.parametrize(
    ("contexts", "device", "expected"),
    [
        (0, "auto", "expected from 1 to 16"),
        (17, "cuda:0", "expected from 1 to 16"),
        (2, "cpu", "only a GPU's kernels are chosen for several at once"),
    ],
)
def test_contexts_that_cant_be_meant(contexts: int, device: str, expected: str) -> None:
    with pytest.raises(InvalidArgument, match=expected):
        BuildOptions.of(contexts=contexts, device=device)
    assert BuildOptions.of(contexts=4).contexts == 4


@pytest.mark.parametrize("text", ["", "fp64", "half", "int4"])
def test_what_is_no_precision(text: str) -> None:
    with pytest.raises(InvalidArgument, match="expected one of auto, fp32, tf32, bf16, fp16, fp8, int8"):
        allowed(text)


def test_nothing_asked_is_a_complete_set_of_options() -> None:
    found = BuildOptions.of()
    assert (found.precision, found.device, found.gate) == ("auto", "auto", Cosine(0.999))
    (profile,) = options.profiles(found, [IMAGE])
    assert [each["x"][0] for each in options.buckets(found, [IMAGE], profile)] == [1, 8, 64]


def test_everything_asked_is_kept() -> None:
    found = BuildOptions.of(
        precision="fp16",
        device="cpu",
        shapes=["x:1x3x224x224", {"x": [(1, 3, 224, 224), (2, 3, 224, 224), (4, 3, 224, 224)]}],
        buckets="1,2",
        calibration="data.npz",
        accuracy="cosine>=0.99",
        budget_seconds=60,
        timing_cache="cache.json",
        workspace_bytes=2**30,
        preprocess="x:uint8,nhwc",
        reduce=["y:argmax@1"],
    )
    assert found.to_json() == {
        "precision": "fp16",
        "device": "cpu",
        "shapes": ["x:1x3x224x224", {"x": [[1, 3, 224, 224], [2, 3, 224, 224], [4, 3, 224, 224]]}],
        "buckets": [1, 2],
        "accuracy": "cosine>=0.99",
        "calibration": "data.npz",
        "budget_seconds": 60,
        "workspace_bytes": 2**30,
        "preprocess": ["x:uint8,nhwc"],
        "reduce": ["y:argmax@1"],
        "custom_ops": [],
        "contexts": 1,
    }
    assert found.timing_cache == Path("cache.json")
    assert len(options.profiles(found, [IMAGE])) == 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"budget_seconds": 0}, "budget"),
        ({"budget_seconds": math.nan}, "budget"),
        ({"workspace_bytes": 0}, "workspace"),
        ({"accuracy": "good"}, "accuracy"),
        ({"precision": "int3"}, "precision"),
        ({"device": "tpu"}, "device"),
        ({"buckets": "none"}, "buckets"),
    ],
)
def test_what_can_not_be_meant_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        BuildOptions.of(**given)


def test_buckets_outside_their_profile_are_left_out_and_none_left_is_an_error() -> None:
    found = BuildOptions.of(shapes="x:1x3x224x224,4x3x224x224,8x3x224x224", buckets="2,8,16")
    (profile,) = options.profiles(found, [IMAGE])
    assert [each["x"][0] for each in options.buckets(found, [IMAGE], profile)] == [2, 8]
    static = Profile({"x": (1, 3, 224, 224)}, {"x": (1, 3, 224, 224)}, {"x": (1, 3, 224, 224)})
    with pytest.raises(InvalidArgument, match=re.escape("buckets 2,8,16: none lies between x:1x3x224x224")):
        options.buckets(found, [IMAGE], static)
