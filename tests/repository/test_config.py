"""What a configuration may say: the typed view, contradictions, unsupported settings, harmless notes."""

import pytest

from penstock.backends.settings import DynamicBatching, QueuePolicy
from penstock.errors import ConfigError
from penstock.repository.config import All, Latest, Specific, VersionPolicy, parse
from penstock.repository.padding import InputPadding, OutputCut, Padding
from penstock.tensors import TensorSpec


def test_the_typed_view_reads_the_message() -> None:
    config = parse(
        "m",
        """
        max_batch_size: 8
        input [ { name: "x" data_type: TYPE_STRING dims: [ 3 ] optional: true } ]
        output [ { name: "y" data_type: TYPE_BF16 dims: [ -1 ] } ]
        instance_group [ { count: 2 }, { kind: KIND_CPU } ]
        dynamic_batching {
          max_queue_delay_microseconds: 100 preferred_batch_size: 4 preserve_ordering: true
          priority_levels: 2 default_priority_level: 2
          default_queue_policy { timeout_action: DELAY allow_timeout_override: true max_queue_size: 9 }
          priority_queue_policy { key: 1 value { default_timeout_microseconds: 5 } }
        }
        parameters { key: "intra_op_thread_count" value { string_value: "3" } }
        parameters { key: "batching" value { string_value: "triton" } }
        """,
    )
    assert (config.name, config.max_batch_size, config.instance_count, config.threads) == ("m", 8, 3, 3)
    assert config.inputs == (TensorSpec("x", "BYTES", (3,), optional=True),)
    assert config.outputs == (TensorSpec("y", "BF16", (-1,)),)
    assert config.batching == "triton"
    assert config.dynamic_batching == DynamicBatching(
        100, (4,), True, 2, 2, QueuePolicy("delay", 0, True, 9), {1: QueuePolicy("reject", 5)}
    )
    assert not config.dynamic_batching.automatic


def test_an_empty_configuration_has_defaults() -> None:
    config = parse("m", None)
    assert (config.instance_count, config.threads, config.batching, config.dynamic_batching) == (1, None, None, None)
    assert config.version_policy == Latest(1)
    assert config.padding is None


@pytest.mark.parametrize("block", ["", "preferred_batch_size: 8", "max_queue_delay_microseconds: 0"])
def test_a_block_that_repeats_the_defaults_is_automatic(block: str) -> None:
    config = parse("m", f"max_batch_size: 8 dynamic_batching {{ {block} }}")
    assert config.dynamic_batching is not None
    assert config.dynamic_batching.automatic


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("version_policy { all {} }", All()),
        ("version_policy { latest { num_versions: 3 } }", Latest(3)),
        ("version_policy { latest {} }", Latest(1)),
        ("version_policy { specific { versions: [ 2, 5 ] } }", Specific((2, 5))),
    ],
)
def test_version_policies(text: str, policy: VersionPolicy) -> None:
    assert parse("m", text).version_policy == policy


X = 'input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name: "other"', "unexpected name 'other' in the configuration of model 'm'"),
        ("max_batch_size: -1", "max_batch_size is -1, expected 0 to"),
        ("max_batch_size: 1000000", "max_batch_size is 1000000, expected 0 to"),
        ('input [ { name: "x" dims: [ 0 ] } ]', r"input 'x' has dims \[0\]"),
        ('output [ { name: "y" dims: [ -2 ] } ]', r"output 'y' has dims \[-2\]"),
        ('input [ { name: "x" dims: [ 1 ] reshape { shape: [ 0 ] } } ]', "input 'x' has dims"),
        ('input [ { name: "x" dims: [ ' + ",".join("1" * 33) + " ] } ]", "at most 32 sizes"),
        ("input [ { dims: [ 1 ] } ]", "an input needs a name"),
        (f"{X} {X}", "input 'x' is configured twice"),
        ("instance_group [ { count: -1 } ]", "count is -1"),
        ("instance_group [ { count: 5000 } ]", "more than 1024 instances"),
        ("max_batch_size: 4 dynamic_batching { preferred_batch_size: 8 }", "preferred_batch_size 8 is not within"),
        ("max_batch_size: 4 dynamic_batching { preferred_batch_size: 0 }", "preferred_batch_size 0 is not within"),
        ("dynamic_batching { priority_levels: 2 }", "default_priority_level is 0, expected 1 to 2"),
        ("dynamic_batching { priority_queue_policy { key: 1 value {} } }", "priority_queue_policy 1 is not within"),
        ("version_policy { specific {} }", "names no versions"),
        (
            'parameters { key: "batching" value { string_value: "fast" } }',
            "batching is 'fast', expected auto or triton",
        ),
        ('parameters { key: "intra_op_thread_count" value { string_value: "-2" } }', "'-2', expected a number"),
        ("sequence_batching {}", "sequence_batching is not supported"),
        ("ensemble_scheduling {}", "ensemble_scheduling is not supported"),
        ('platform: "ensemble"', "ensemble is not supported"),
        ("model_transaction_policy { decoupled: true }", "decoupled is not supported"),
        ("response_cache { enable: true }", "response_cache is not supported"),
        ('input [ { name: "x" allow_ragged_batch: true } ]', "allow_ragged_batch is not supported"),
        ("batch_input [ { kind: BATCH_ELEMENT_COUNT } ]", "batch_input is not supported"),
        ("batch_output [ { kind: BATCH_SCATTER_WITH_INPUT_SHAPE } ]", "batch_output is not supported"),
        ("instance_group [ { kind: KIND_GPU } ]", "KIND_GPU is not supported: models run on the CPU; use KIND_CPU"),
        ("instance_group [ { gpus: [ 0 ] } ]", "KIND_GPU is not supported"),
        ("instance_group [ { passive: true } ]", "passive is not supported"),
        ('model_repository_agents { agents [ { name: "checksum" } ] }', "model_repository_agents is not supported"),
        ('model_operations { op_library_filename: "x.so" }', "model_operations is not supported"),
        ('runtime: "libtriton_x.so"', "runtime is not supported"),
    ],
)
def test_a_configuration_that_cannot_be_honoured_names_the_field(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse("m", text)


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("instance_group [ { rate_limiter { priority: 1 } } ]", "rate_limiter has no effect"),
        (
            'optimization { execution_accelerators { gpu_execution_accelerator [ { name: "cuda" } ] } }',
            "gpu_execution_accelerator cuda has no effect: models run on the CPU",
        ),
        ('output [ { name: "y" label_filename: "labels.txt" } ]', "label_filename has no effect"),
        (
            'parameters { key: "inter_op_thread_count" value { string_value: "4" } }',
            "inter_op_thread_count has no effect",
        ),
    ],
)
def test_settings_that_only_tune_another_server_are_noted(text: str, note: str) -> None:
    assert any(note in line for line in parse("m", text).notes)


@pytest.mark.parametrize("text", ["response_cache { enable: false }", "model_transaction_policy { decoupled: false }"])
def test_a_feature_that_is_switched_off_is_no_obstacle(text: str) -> None:
    assert parse("m", text).notes == ()


PADDED = """
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 3, 48, -1 ] }, { name: "n" data_type: TYPE_UINT8 dims: [ -1 ] },
        { name: "s" data_type: TYPE_STRING dims: [ -1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ -1, 5 ] } ]
parameters { key: "padding" value { string_value: '%s' } }
"""


def test_the_padding_rule_of_the_text_recogniser_is_read() -> None:
    rule = '{"inputs": {"x": {"axis": 3, "multiple": 32, "value": 0}}, "outputs": {"y": {"axis": 1, "divisor": 8}}}'
    assert parse("m", PADDED % rule).padding == Padding((InputPadding("x", 3, 32, 0.0),), (OutputCut("y", 1, 8),))


def test_padding_defaults_are_one_and_zero() -> None:
    rule = '{"inputs": {"n": {"axis": 1}, "x": [{"axis": 3, "value": -1.5}]}}'
    padding = Padding((InputPadding("n", 1, 1, 0.0), InputPadding("x", 3, 1, -1.5)), ())
    assert parse("m", PADDED % rule).padding == padding


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "expected"),
        ("{}", "expected"),
        ('{"inputs": {}}', "expected"),
        ('{"inputs": {"x": {"axis": 3}}, "more": 1}', "expected"),
        ('{"inputs": [1]}', "objects by tensor name"),
        ('{"inputs": {"z": {"axis": 1}}}', "names .z., the model has x, n, s"),
        ('{"inputs": {"x": {}}}', "expected an object of axis, multiple, value"),
        ('{"inputs": {"x": 3}}', "expected an object"),
        ('{"inputs": {"x": {"axis": 3, "divisor": 1}}}', "expected an object"),
        ('{"inputs": {"x": {"axis": 0}}}', "axis is 0, expected 1 to 3"),
        ('{"inputs": {"x": {"axis": 4}}}', "axis is 4"),
        ('{"inputs": {"x": {"axis": true}}}', "axis is True"),
        ('{"inputs": {"x": {"axis": 1}}}', "axis 1 has the fixed size 3"),
        ('{"inputs": {"x": {"axis": 3, "multiple": 0}}}', "multiple is 0"),
        ('{"inputs": {"x": {"axis": 3, "multiple": 1.5}}}', "multiple is 1.5"),
        ('{"inputs": {"x": {"axis": 3, "value": NaN}}}', "value is nan"),
        ('{"inputs": {"x": {"axis": 3, "value": "0"}}}', "value is '0'"),
        ('{"inputs": {"n": {"axis": 1, "value": 256}}}', "256 is no UINT8"),
        ('{"inputs": {"n": {"axis": 1, "value": 0.5}}}', "0.5 is no UINT8"),
        ('{"inputs": {"s": {"axis": 1}}}', "BYTES can.t be padded"),
        ('{"inputs": {"x": [{"axis": 3}, {"axis": 3}]}}', "same axis of a tensor twice"),
        ('{"inputs": {"x": {"axis": 3}}, "outputs": {"y": {"axis": 2}}}', "axis 2 has the fixed size 5"),
        ('{"inputs": {"x": {"axis": 3}}, "outputs": {"y": {"axis": 1, "divisor": 0}}}', "divisor is 0"),
    ],
)
def test_a_padding_rule_that_cannot_work_says_why(rule: str, message: str) -> None:
    config = parse("m", PADDED.replace("'%s'", "'" + rule.replace("'", "\\'") + "'"))
    with pytest.raises(ConfigError, match=message):
        _ = config.padding
