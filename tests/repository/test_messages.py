"""The configuration message: compiled from our .proto, private, and printed as Triton prints it."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.errors import ConfigError
from penstock.repository import messages

ROOT = Path(__file__).resolve().parents[2]

TEXT = """
name: "full"  # a comment with max_batch_size: 3 {
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 3, -1 ] } ]
version_policy { specific { versions: [ 1, 9007199254740993 ] } }
dynamic_batching {
  preferred_batch_size: [ 4, 8 ]
  max_queue_delay_microseconds: 500
  priority_levels: 2
  default_priority_level: 1
  priority_queue_policy { key: 2 value { timeout_action: DELAY default_timeout_microseconds: 7 } }
}
instance_group [ { kind: KIND_CPU count: 2 } ]
parameters { key: "b" value { string_value: "2" } }
parameters { key: "a" value { string_value: "1" } }
"""


@pytest.mark.skipif(importlib.util.find_spec("grpc_tools") is None, reason="grpcio-tools is not installed")
def test_the_checked_in_descriptors_are_those_of_the_proto_file(tmp_path: Path) -> None:
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    out = tmp_path / "fresh.binpb"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", f"--descriptor_set_out={out}"]
    subprocess.run([*command, "model_config.proto"], check=True)
    kept = ROOT / "python/penstock/repository/model_config.binpb"
    assert FileDescriptorSet.FromString(kept.read_bytes()) == FileDescriptorSet.FromString(out.read_bytes())


IN_A_FRESH_PROCESS = """
from google.protobuf import descriptor_pool
from penstock.repository import messages
messages.new()
try:
    descriptor_pool.Default().FindMessageTypeByName("inference.ModelConfig")
except KeyError:
    raise SystemExit(0)
raise SystemExit("registered in the default pool")
"""


def test_the_messages_stay_out_of_the_default_pool_where_tritonclient_registers_its_own() -> None:
    # In a process of its own: here tritonclient may have been imported.
    subprocess.run([sys.executable, "-c", IN_A_FRESH_PROCESS], check=True)


def test_json_has_snake_case_names_numbers_for_64_bit_integers_and_defaults() -> None:
    value = json.loads(messages.to_json(messages.from_text(TEXT, "config")))
    assert value["input"] == [
        {
            "name": "x",
            "data_type": "TYPE_FP32",
            "format": "FORMAT_NONE",
            "dims": [3, -1],
            "is_shape_tensor": False,
            "allow_ragged_batch": False,
            "optional": False,
            "is_non_linear_format_io": False,
        }
    ]
    assert value["version_policy"] == {"specific": {"versions": [1, 9007199254740993]}}
    assert value["dynamic_batching"]["max_queue_delay_microseconds"] == 500
    assert value["dynamic_batching"]["priority_queue_policy"] == {
        "2": {
            "timeout_action": "DELAY",
            "default_timeout_microseconds": 7,
            "allow_timeout_override": False,
            "max_queue_size": 0,
        }
    }
    assert list(value["parameters"]) == ["a", "b"]
    assert value["output"] == []
    assert value["platform"] == ""
    assert "sequence_batching" not in value


def test_floats_are_printed_as_short_as_they_are() -> None:
    message = messages.from_text("sequence_batching { direct { minimum_slot_utilization: 0.1 } }", "config")
    assert '"minimum_slot_utilization":0.1}' in messages.to_json(message)


def test_json_reads_back_as_the_same_message() -> None:
    message = messages.from_text(TEXT, "config")
    assert messages.from_json(messages.to_json(message), "config") == message


def test_written_names_are_those_at_the_top_level_only() -> None:
    assert {"name", "max_batch_size", "input"} <= messages.names_in_text(TEXT)
    assert "dims" not in messages.names_in_text(TEXT)
    assert "max_batch_size" not in messages.names_in_text(
        'name: "max_batch_size" # max_batch_size: 1\n a < max_batch_size: 1 >'
    )
    assert messages.names_in_json('{"maxBatchSize": 0, "name": "x"}') == {"max_batch_size", "name"}


@pytest.mark.parametrize(
    "text",
    ["nonsense: 1", "name: 3", 'name: "a', "max_batch_size: 1e99", "input {", "\0", "max_batch_size: 99999999999", "}"],
)
def test_text_that_is_no_configuration_is_one_clean_error(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^config\.pbtxt of x can't be read: ") as caught:
        messages.from_text(text, "config.pbtxt of x")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        '{"nonsense": 1}',
        '{"max_batch_size": "x"}',
        '{"input": 3}',
        "[" * 200_000,
        '{"name": null, "dims"',
    ],
)
def test_json_that_is_no_configuration_is_one_clean_error(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^what was sent ") as caught:
        messages.from_json(text, "what was sent")
    assert "\n" not in caught.value.message


def test_a_configuration_of_megabytes_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(ConfigError, match="expected at most"):
        messages.from_text("#" * 2_000_000, "config")
