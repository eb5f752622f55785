"""One real request to a server, for verification, readiness and statistics.

It promises the same bytes that the generators will repeat, over the same wire: HTTP by the standard library, gRPC by
nghttp (of the package that brings h2load). Called by the rounds.
"""

import http.client
import re
import subprocess
from pathlib import Path

from harness.dialects import JSON_LENGTH, Answer, Post
from harness.workload import Wire

TIMEOUT_SECONDS = 10


class RefusedError(Exception):
    """The server answered, but not with success; or it did not answer."""


def get(port: int, path: str, timeout: float = TIMEOUT_SECONDS) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        text = response.read().decode()
    except (OSError, http.client.HTTPException, UnicodeDecodeError) as error:
        raise RefusedError(f"GET {path}: {error}") from error
    finally:
        connection.close()
    if response.status != 200:
        raise RefusedError(f"GET {path}: {response.status} {text[:200]}")
    return text


def send(port: int, post: Post, wire: Wire, folder: Path) -> Answer:
    return _grpc(port, post, folder) if wire is Wire.GRPC else _http(port, post)


def _http(port: int, post: Post) -> Answer:
    headers = {"Content-Type": post.content_type}
    if post.json_length is not None:
        headers[JSON_LENGTH] = str(post.json_length)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("POST", post.path, post.body, headers)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise RefusedError(f"POST {post.path}: {error}") from error
    finally:
        connection.close()
    if response.status != 200:
        raise RefusedError(f"POST {post.path}: {response.status} {body[:200]!r}")
    length = response.getheader(JSON_LENGTH)
    return Answer(body, int(length) if length is not None else None)


def _grpc(port: int, post: Post, folder: Path) -> Answer:
    body = folder / "single.bin"
    body.write_bytes(post.body)
    command = ["nghttp", "--timeout", str(TIMEOUT_SECONDS), "-d", str(body), "-H", "content-type: application/grpc"]
    command += ["-H", "te: trailers", f"http://127.0.0.1:{port}{post.path}"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_SECONDS + 5, check=False)
        if done.stdout:
            return Answer(done.stdout)
        # An error travels in the trailers, which only the verbose form shows.
        verbose = [*command, "-v", "--no-color"]
        told = subprocess.run(verbose, capture_output=True, timeout=TIMEOUT_SECONDS + 5, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RefusedError(f"nghttp: {error}") from error
    trailers = re.findall(r"grpc-(?:status|message): .*", told.stdout.decode(errors="replace"))
    reason = ", ".join(dict.fromkeys(trailers)) or done.stderr.decode(errors="replace").strip()[-200:] or "no answer"
    raise RefusedError(f"{post.path}: {reason}")
