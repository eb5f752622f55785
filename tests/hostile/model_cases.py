"""Names and versions that do not exist or try to leave the repository, and operations that are off."""

from collections.abc import Mapping

from tests.hostile.json_cases import GOOD
from tests.servers.cases import HttpCase
from tests.servers.raw import dumps

MODEL = "/v2/models/double_fp32"


def get(name: str, status: int, path: str, *names: str) -> HttpCase:
    return HttpCase(f"models/{name}", status, path, "GET", None, names=names)


def post(name: str, status: int, path: str, *names: str, body: bytes = b"") -> HttpCase:
    return HttpCase(f"models/{name}", status, path, "POST", body, names=names)


UNKNOWN = (
    HttpCase(
        "models/unknown-infer",
        404,
        "/v2/models/absent/infer",
        body=GOOD,
        text="Request for unknown model: 'absent' is not found",
    ),
    HttpCase(
        "models/unknown-metadata",
        404,
        "/v2/models/absent",
        "GET",
        None,
        text="Request for unknown model: 'absent' is not found",
    ),
    HttpCase(
        "models/unknown-config",
        404,
        "/v2/models/absent/config",
        "GET",
        None,
        text="Request for unknown model: 'absent' is not found",
    ),
    get("unknown-ready", 400, "/v2/models/absent/ready"),
    get("unknown-stats", 400, "/v2/models/absent/stats", "absent"),
    post("unknown-version-infer", 404, f"{MODEL}/versions/9/infer", "double_fp32", "9", body=GOOD),
    get("unknown-version-metadata", 404, f"{MODEL}/versions/9", "double_fp32", "9"),
    get("unknown-version-config", 404, f"{MODEL}/versions/9/config", "double_fp32", "9"),
    get("unknown-version-ready", 400, f"{MODEL}/versions/9/ready"),
    get("unknown-version-stats", 400, f"{MODEL}/versions/9/stats", "double_fp32"),
    *(
        each
        for version in ("-1", "x", "1.0", "+1", "0x1", "99999999999999999999")
        for each in (
            get(f"version-{version}-metadata", 404, f"{MODEL}/versions/{version}"),
            post(f"version-{version}-infer", 404, f"{MODEL}/versions/{version}/infer", body=GOOD),
        )
    ),
    get("version-0-metadata", 404, f"{MODEL}/versions/0"),
    get("name-in-capitals", 404, "/v2/models/DOUBLE_FP32"),
    get("name-with-markup", 404, "/v2/models/%3Cscript%3E"),
)

# Names that leave the repository, or would on some system; `load` of them under explicit control is 400.
ESCAPES: Mapping[str, str] = {
    "dot-dot": "..",
    "dot": ".",
    "dot-dot-etc": "../etc",
    "a-dot-dot-b": "a/../b",
    "space-dot-dot": "%20..",
    "encoded-dot-dot": "%2e%2e",
    "encoded-slash": "..%2fetc",
    "twice-encoded": "%252e%252e",
    "backslash": "..%5cetc",
    "absolute": "%2fetc%2fpasswd",
    "nul": "first%00",
    "line-break": "first%0a",
    "bad-percent": "first%zz",
    "bad-utf8": "first%ff",
    "256-characters": "a" * 256,
}

CONTROL_OFF = (
    post("load-while-off", 503, "/v2/repository/models/double_fp32/load"),
    post("unload-while-off", 503, "/v2/repository/models/double_fp32/unload"),
    *(
        HttpCase(f"models/{what}-while-off", 501, path, "POST", body)
        for what, path, body in (
            ("trace-file", "/v2/trace/setting", dumps(trace_file="escaped.json", trace_level=["TIMESTAMPS"])),
            ("log-file", "/v2/logging", dumps(log_file="escaped.log")),
            ("model-trace-file", f"{MODEL}/trace/setting", dumps(trace_file="escaped.json")),
        )
    ),
)

REGION = "/v2/systemsharedmemory/region/r"
SHARED_MEMORY = (
    *(
        HttpCase(f"models/shared-memory-register-{name}-while-off", 501, f"{REGION}/register", body=dumps(**document))
        for name, document in (
            ("plain", {"key": "/a", "offset": 0, "byte_size": 64}),
            ("reserved", {"key": "/triton_python_backend_shm_region_1", "offset": 0, "byte_size": 64}),
            ("overflow", {"key": "/a", "offset": 2**64 - 1, "byte_size": 64}),
        )
    ),
    HttpCase(
        "models/cuda-memory-register-while-off",
        501,
        "/v2/cudasharedmemory/region/r/register",
        body=dumps(raw_handle={"b64": "AAAA"}, device_id=0, byte_size=64),
    ),
    # perf_analyzer unregisters everything before it starts, also on hosts without CUDA.
    HttpCase("models/shared-memory-unregister-all", 200, "/v2/systemsharedmemory/unregister"),
    HttpCase("models/cuda-memory-unregister-all", 200, "/v2/cudasharedmemory/unregister"),
    HttpCase(
        "models/unregistered-region",
        501,
        body=dumps(
            inputs=[
                {
                    "name": "x",
                    "shape": [1, 16],
                    "datatype": "FP32",
                    "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 64},
                }
            ]
        ),
    ),
)

REFUSED: tuple[HttpCase, ...] = (*UNKNOWN, *CONTROL_OFF, *SHARED_MEMORY)
