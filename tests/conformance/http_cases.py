"""What the clients hide about HTTP: paths, methods, texts of errors, header lengths, encodings."""

from tests.hostile.json_cases import GOOD
from tests.servers.cases import INFER, HttpCase
from tests.servers.raw import dumps

NOT_FOUND = "Not Found"
MODEL = "/v2/models/double_fp32"


def get(path: str, status: int = 200, text: str | None = None) -> HttpCase:
    return HttpCase(f"http/GET {path}", status, path, "GET", None, text=text)


def other(method: str, path: str) -> HttpCase:
    return HttpCase(f"http/{method} {path}", 405, path, method, b"" if method in ("POST", "PUT", "PATCH") else None)


GOOD_PATHS = (
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/health/live?unknown=1",
    MODEL,
    f"{MODEL}/ready",
    f"{MODEL}/config",
    f"{MODEL}/stats",
    f"{MODEL}/versions/1",
    f"{MODEL}/versions/1/ready",
    f"{MODEL}/versions/1/config",
    f"{MODEL}/versions/1/stats",
    "/v2/models/stats",
    "/v2/systemsharedmemory/status",
    "/v2/cudasharedmemory/status",
)
BAD_PATHS = (
    "/",
    "/v2/",
    "/v1",
    "/v3/health/live",
    "/v2x",
    "/v2/health",
    "/v2/health/alive",
    "/v2/models",
    "/v2/models/",
    f"{MODEL}/",
    f"{MODEL}/nothing",
    f"{MODEL}/versions",
    f"{MODEL}/versions/1/nothing",
    "/v2/repository",
    "/v2/repository/models/double_fp32/nothing",
    "/metrics",
    "/favicon.ico",
    "//v2/health/live",
    "/V2/health/live",
)

CASES: tuple[HttpCase, ...] = (
    *(get(path) for path in GOOD_PATHS),
    *(get(path, 404, NOT_FOUND) for path in BAD_PATHS),
    HttpCase("http/logging", 501, "/v2/logging", "GET", None),
    HttpCase("http/trace", 501, "/v2/trace/setting", "GET", None),
    *(other(method, INFER) for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS")),
    *(other(method, "/v2/health/live") for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS")),
    *(other("POST", path) for path in ("/v2", MODEL, f"{MODEL}/config", f"{MODEL}/ready", f"{MODEL}/stats")),
    *(other("GET", path) for path in ("/v2/repository/index", "/v2/repository/models/double_fp32/load")),
    HttpCase("http/head", 200, "/v2/health/live", "HEAD", None),
    HttpCase("http/head-infer", 405, INFER, "HEAD", None),
    HttpCase("http/index", 200, "/v2/repository/index"),
    HttpCase("http/index-ready", 200, "/v2/repository/index", body=b'{"ready":true}'),
    HttpCase("http/generate", 501, f"{MODEL}/generate", body=b"{}"),
    HttpCase("http/generate-stream", 501, f"{MODEL}/generate_stream", body=b"{}"),
    # A content type is not asked for, whatever it says.
    *(
        HttpCase(f"http/content-type {kind}", 200, body=GOOD, headers={"Content-Type": kind})
        for kind in ("application/json", "application/octet-stream", "text/plain", "application/x-www-form-urlencoded")
    ),
    HttpCase("http/infer-on-a-version", 200, f"{MODEL}/versions/1/infer", body=GOOD),
    HttpCase("http/infer-with-a-query", 200, f"{INFER}?a=b", body=GOOD),
    HttpCase("http/traceparent", 200, body=GOOD, headers={"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01"}),
    HttpCase("http/unknown-model-text", 404, "/v2/models/a%20b/infer", body=dumps(inputs=[])),
)
