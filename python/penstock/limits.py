"""The bounds of the server as typed constants: `limits.BODY_BYTES`. Anyone may import this.

The one source is `limits.toml` beside this file, which the Rust crates read at build time; each bound has its reason
there. A bound is never repeated as a number elsewhere: code names it, and `LIMITS` lists them all for messages and
documentation.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Limit:
    """One bound: bytes, seconds or a count, as its name says."""

    name: str
    value: int
    reason: str


def read(text: str) -> dict[str, Limit]:
    """Parse the limits file; raises ValueError when a table is not exactly an integer `value` and a `reason`."""
    limits: dict[str, Limit] = {}
    for name, table in tomllib.loads(text).items():
        if not isinstance(table, dict) or set(table) != {"value", "reason"}:
            raise ValueError(f"limit {name}: expected a table of value and reason")
        value, reason = table["value"], table["reason"]
        if type(value) is not int or value <= 0 or not isinstance(reason, str) or not reason:
            raise ValueError(f"limit {name}: expected a positive integer value and a reason in words")
        limits[name] = Limit(name, value, reason)
    return limits


LIMITS: Final[Mapping[str, Limit]] = MappingProxyType(
    read(Path(__file__).with_name("limits.toml").read_text(encoding="utf-8"))
)

BODY_BYTES: Final = LIMITS["body_bytes"].value
INFLATE_STEP_BYTES: Final = LIMITS["inflate_step_bytes"].value
HEADER_COUNT: Final = LIMITS["header_count"].value
HEADER_BYTES: Final = LIMITS["header_bytes"].value
TARGET_BYTES: Final = LIMITS["target_bytes"].value
CHUNKS: Final = LIMITS["chunks"].value
HEADER_SECONDS: Final = LIMITS["header_seconds"].value
BODY_GRACE_SECONDS: Final = LIMITS["body_grace_seconds"].value
BODY_MIN_BYTES_PER_SECOND: Final = LIMITS["body_min_bytes_per_second"].value
WRITE_SECONDS: Final = LIMITS["write_seconds"].value
WRITE_BUFFER_BYTES: Final = LIMITS["write_buffer_bytes"].value
IDLE_SECONDS: Final = LIMITS["idle_seconds"].value
LONGEST_SECONDS: Final = LIMITS["longest_seconds"].value
LARGEST_BODY_BYTES: Final = LIMITS["largest_body_bytes"].value
IO_THREADS: Final = LIMITS["io_threads"].value
CONNECTIONS: Final = LIMITS["connections"].value
HTTP2_STREAMS: Final = LIMITS["http2_streams"].value
HTTP2_RESET_STREAMS: Final = LIMITS["http2_reset_streams"].value
HTTP2_HEADER_BYTES: Final = LIMITS["http2_header_bytes"].value
HTTP2_WINDOW_BYTES: Final = LIMITS["http2_window_bytes"].value
HTTP2_FRAME_BYTES: Final = LIMITS["http2_frame_bytes"].value
JSON_DEPTH: Final = LIMITS["json_depth"].value
JSON_HEADER_BYTES: Final = LIMITS["json_header_bytes"].value
INPUTS_PER_REQUEST: Final = LIMITS["inputs_per_request"].value
OUTPUTS_PER_REQUEST: Final = LIMITS["outputs_per_request"].value
PARAMETERS_PER_REQUEST: Final = LIMITS["parameters_per_request"].value
TENSOR_DIMS: Final = LIMITS["tensor_dims"].value
ID_BYTES: Final = LIMITS["id_bytes"].value
NAME_BYTES: Final = LIMITS["name_bytes"].value
REPOSITORY_OVERRIDE_BYTES: Final = LIMITS["repository_override_bytes"].value
REPOSITORY_OVERRIDE_FILES: Final = LIMITS["repository_override_files"].value
QUEUE_REQUESTS: Final = LIMITS["queue_requests"].value
QUEUE_BYTES: Final = LIMITS["queue_bytes"].value
DRAIN_SECONDS: Final = LIMITS["drain_seconds"].value
RETRY_AFTER_SECONDS: Final = LIMITS["retry_after_seconds"].value
CONFIG_BYTES: Final = LIMITS["config_bytes"].value
MAX_BATCH_SIZE: Final = LIMITS["max_batch_size"].value
INSTANCES: Final = LIMITS["instances"].value
WARMUP_BYTES: Final = LIMITS["warmup_bytes"].value
WARMUP_EXECUTIONS: Final = LIMITS["warmup_executions"].value
ONNX_DEPTH: Final = LIMITS["onnx_depth"].value
EXTERNAL_TENSORS: Final = LIMITS["external_tensors"].value
ONNX_NODES: Final = LIMITS["onnx_nodes"].value
ONNX_INITIALISERS: Final = LIMITS["onnx_initialisers"].value
FOLDED_BYTES: Final = LIMITS["folded_bytes"].value
FOLDED_TOTAL_BYTES: Final = LIMITS["folded_total_bytes"].value
ENGINE_MEMBERS: Final = LIMITS["engine_members"].value
ENGINE_JSON_BYTES: Final = LIMITS["engine_json_bytes"].value
SHARED_MEMORY_REGIONS: Final = LIMITS["shared_memory_regions"].value
SHARED_MEMORY_OBJECTS: Final = LIMITS["shared_memory_objects"].value
SHARED_MEMORY_REQUEST_BYTES: Final = LIMITS["shared_memory_request_bytes"].value
