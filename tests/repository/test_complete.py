"""Completion from the model, as Triton completes, and what the two may not disagree on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from penstock.errors import ConfigError
from penstock.repository.complete import complete, reshaped
from penstock.repository.config import Config, parse
from penstock.tensors import TensorSpec


@dataclass
class Signature:
    """A backend of which only the signature matters."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    name: str = "onnxruntime"
    platform: str = "onnxruntime_onnx"

    def instance(self, index: int, count: int, threads: int | None) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is held."""


def signature(x: tuple[int, ...] = (-1, 3, -1), y: tuple[int, ...] = (-1, 5)) -> Signature:
    return Signature((TensorSpec("x", "FP32", x),), (TensorSpec("y", "INT64", y),))


def finished(text: str | None, backend: Signature | None = None) -> Config:
    return complete(parse("m", text), backend or signature())


def test_an_empty_configuration_is_completed_from_the_model() -> None:
    config = finished(None)
    assert config.max_batch_size == 4
    assert config.inputs == (TensorSpec("x", "FP32", (3, -1)),)
    assert config.outputs == (TensorSpec("y", "INT64", (5,)),)
    assert config.dynamic_batching is not None
    assert config.dynamic_batching.automatic
    message = config.message
    assert (message.backend, message.platform) == ("onnxruntime", "onnxruntime_onnx")
    assert (message.instance_group[0].name, message.instance_group[0].count) == ("m", 1)
    assert message.version_policy.latest.num_versions == 1
    assert list(message.dynamic_batching.preferred_batch_size) == [4]


FULL = "input [ { name: 'x' data_type: TYPE_FP32 dims: [ -1, 3, -1 ] } ] output [ { name: 'y' dims: [ -1, 5 ] } ]"


@pytest.mark.parametrize(
    ("text", "backend", "max_batch_size", "dynamic"),
    [
        ("max_batch_size: 0", signature(), 0, False),
        ("max_batch_size: 1", signature(), 1, False),
        ("max_batch_size: 16", signature(), 16, False),
        ("max_batch_size: 16 dynamic_batching {}", signature(), 16, True),
        (FULL, signature(), 0, False),
        ("input [ { name: 'x' dims: [ 3, -1 ] } ]", signature(), 4, True),
        (None, signature(x=(1, 3, 4)), 0, False),
        (None, signature(y=(5,)), 0, False),
        (None, signature(y=()), 0, False),
    ],
)
def test_batching_follows_what_was_written_and_what_the_model_can(
    text: str | None, backend: Signature, max_batch_size: int, dynamic: bool
) -> None:
    config = finished(text, backend)
    assert config.max_batch_size == max_batch_size
    assert (config.dynamic_batching is not None) is dynamic
    batch = 1 if max_batch_size else 0
    assert config.inputs[0].shape == backend.inputs[0].shape[batch:]


def test_a_zero_in_a_load_request_counts_as_written() -> None:
    assert complete(parse("m", None, '{"max_batch_size": 0}'), signature()).max_batch_size == 0
    assert complete(parse("m", None, "{}"), signature()).max_batch_size == 4


def test_fields_are_filled_one_by_one() -> None:
    config = finished("max_batch_size: 2 input [ { name: 'x' dims: [ 3, 7 ] } ] output [ { name: 'y' } ]")
    assert config.inputs == (TensorSpec("x", "FP32", (3, 7)),)
    assert config.outputs == (TensorSpec("y", "INT64", (5,)),)


@pytest.mark.parametrize(
    ("text", "backend", "message"),
    [
        ("max_batch_size: 8", signature(x=(1, 3, 4)), r"does not support batching, but max_batch_size is 8: x FP32\[1"),
        ("max_batch_size: 8", signature(y=()), "does not support batching"),
        ("max_batch_size: 8 input [ { name: 'z' } ]", signature(), "unexpected input 'z', the model has x"),
        ("max_batch_size: 8 output [ { name: 'z' } ]", signature(), "unexpected output 'z', the model has y"),
        (
            "max_batch_size: 8 input [ { name: 'x' data_type: TYPE_INT8 dims: [ 3, -1 ] } ]",
            signature(),
            "'x' has data_type TYPE_INT8 in the configuration and TYPE_FP32 in the model",
        ),
        (
            "max_batch_size: 8 input [ { name: 'x' dims: [ -1, 3, -1 ] } ]",
            signature(),
            r"dims \[-1, 3, -1\] in the configuration, the model has \[3, -1\] \(max_batch_size > 0",
        ),
        ("max_batch_size: 8 input [ { name: 'x' dims: [ 4, -1 ] } ]", signature(), r"the model has \[3, -1\]"),
        ("max_batch_size: 8 input [ { name: 'x' dims: [ -1, -1 ] } ]", signature(), r"the model has \[3, -1\]"),
        (
            "input [ { name: 'a' } ]",
            Signature((TensorSpec("a", "FP32", (-1, 1)), TensorSpec("b", "FP32", (-1, 1))), signature().outputs),
            "has 1 inputs, the model needs 2: b missing",
        ),
        (
            'parameters { key: "padding" value { string_value: \'{"inputs": {"x": {"axis": 1}}}\' } }',
            signature(),
            "padding of 'x': axis 1 has the fixed size 3",
        ),
        ("dynamic_batching { preferred_batch_size: 8 }", signature(), "preferred_batch_size 8 is not within 1 to"),
    ],
)
def test_a_configuration_that_contradicts_its_model_is_refused(text: str, backend: Signature, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        finished(text, backend)


def test_reshaped_tensors_are_compared_on_the_models_side_and_offered_on_the_clients() -> None:
    config = finished("max_batch_size: 2 input [ { name: 'x' dims: [ 3, -1, 1 ] reshape { shape: [ 3, -1 ] } } ]")
    assert config.inputs[0].shape == (3, -1, 1)
    assert reshaped(config, signature()).inputs[0].shape == (-1, 3, -1, 1)
    plain = signature()
    assert reshaped(finished(None), plain) is plain
    with pytest.raises(ConfigError, match="the model has"):
        finished("max_batch_size: 2 input [ { name: 'x' dims: [ 12 ] reshape { shape: [ 3, 4, 1 ] } } ]")


def test_the_configuration_as_written_is_left_as_it_was() -> None:
    written = parse("m", None)
    before = written.to_bytes()
    complete(written, signature())
    assert written.to_bytes() == before


def test_several_groups_get_names_and_counts() -> None:
    config = finished("instance_group [ { count: 2 }, { name: 'mine' } ]")
    groups: Mapping[str, int] = {group.name: group.count for group in config.message.instance_group}
    assert groups == {"m_0": 2, "mine": 1}
    assert config.instance_count == 3
