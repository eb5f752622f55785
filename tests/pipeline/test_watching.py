"""What a pipeline did can be seen: statistics by step, and a line for each request in a trace."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penstock as ps
from penstock.errors import NotFound
from penstock.pipeline.statistics import percentile
from penstock.pipeline.waterfall import records, render
from tests.pipeline.toy import Recogniser, detector, picture, reader, texts
from tests.serve.calls import Client, infer, serving
from tests.servers.raw import dumps

IMAGE = picture((1, 0, 0, 0), (2, 0, 0, 0))
MILLISECOND = 1_000_000


def test_statistics_count_the_steps_of_a_pipeline() -> None:
    def slowly(image: Any) -> Any:
        time.sleep(0.02)
        return image

    @ps.pipeline
    async def body(image: ps.U8[-1, 4]) -> ps.Bytes[-1]:
        image = await ps.cpu(slowly, image)
        return await ps.gather(ps.use("recogniser")(row) for row in image)

    with serving(Recogniser().model, body) as server, Client(server) as client:
        for _ in range(3):
            assert client.infer("body", image=IMAGE).status == 200
        found = server.pipeline_statistics("body")
        # Triton's statistics of the pipeline itself are there, too.
        assert client.statistics("body")["inference_stats"]["success"]["count"] == 3
    steps = {step.name: step for step in found.steps}
    assert {name: (step.kind, step.count) for name, step in steps.items()} == {
        "recogniser": ("call", 6),
        "slowly": ("cpu", 3),
    }
    assert steps["slowly"].total_ns >= 3 * 20 * MILLISECOND
    assert 10 * MILLISECOND <= steps["slowly"].p50_ns <= steps["slowly"].p99_ns <= steps["slowly"].longest_ns
    assert 0 < steps["recogniser"].queue_ns < steps["recogniser"].total_ns
    assert found.request.count == 3
    assert found.request.total_ns >= steps["slowly"].total_ns
    assert (found.request.errors, found.request.cancelled) == (0, 0)


def test_only_pipelines_have_statistics_of_steps() -> None:
    server = ps.Server(http_port=0, grpc_port=None, metrics_port=None)
    with pytest.raises(NotFound, match="not running"):
        server.pipeline_statistics("read")
    server.add(detector)
    with server:
        for name in ("detector", "nobody"):
            with pytest.raises(NotFound, match=name):
                server.pipeline_statistics(name)


@pytest.mark.parametrize(
    ("buckets", "share", "microseconds"),
    [([0, 0, 0], 0.5, 0), ([0, 0, 4], 0.5, 3), ([0, 0, 4], 1.0, 4), ([1, 0, 0, 1], 0.5, 1), ([1, 0, 0, 1], 0.99, 7.92)],
)
def test_percentiles_are_interpolated_between_powers_of_two(
    buckets: list[int], share: float, microseconds: float
) -> None:
    assert percentile(buckets, share) == int(microseconds * 1000)


# ---- the trace ----


def test_a_trace_has_a_line_for_each_request_with_its_steps(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    tensor = {"name": "image", "shape": [2, 4], "datatype": "UINT8", "data": IMAGE.ravel().tolist()}
    with serving(detector, Recogniser().model, reader(), trace=trace) as server, Client(server) as client:
        reply = client.ask("POST", "/v2/models/read/infer", dumps(id="page 7", inputs=[tensor]))
        assert json.loads(reply.body)["outputs"][0]["data"] == [text.decode() for text in texts(IMAGE)]
        assert infer(server, "read", image=np.zeros((2, 3), np.uint8)).status == 400  # never reaches the pipeline
        infer(server, "read", image=IMAGE)
    first, second = records(trace)
    assert (first["pipeline"], first["request"], first["status"]) == ("read", "page 7", "ok")
    assert second["request"].isdigit()
    assert [(step["step"], step["kind"], step["status"]) for step in first["steps"]] == [
        ("detector", "call", "ok"),
        ("crop_rows", "cpu", "ok"),
        ("recogniser", "call", "ok"),
        ("recogniser", "call", "ok"),
    ]
    ends = [step["end_ms"] for step in first["steps"]]
    starts = [step["start_ms"] for step in first["steps"]]
    assert 0 <= starts[0] < ends[0] <= starts[1] < ends[1] <= starts[2]
    assert max(ends) <= first["total_ms"]
    assert all(0 < step["queue_ms"] <= step["end_ms"] - step["start_ms"] + 0.001 for step in first["steps"])


def test_a_trace_says_which_step_failed_and_which_were_cancelled(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    recogniser = Recogniser(max_batch_size=1)

    def fail() -> None:
        raise ValueError("bad")

    @ps.pipeline
    async def body(image: ps.U8[-1, 4]) -> ps.Bytes[-1]:
        calls = [ps.use("recogniser")(row) for row in image]
        return await ps.gather([*calls, ps.cpu(fail)])

    recogniser.hold()
    with serving(recogniser.model, body, trace=trace) as server:
        assert infer(server, "body", image=IMAGE).status == 500
        recogniser.release()
    (record,) = records(trace)
    assert record["status"] == "failed"
    assert [(step["step"], step["status"]) for step in record["steps"]] == [
        ("recogniser", "cancelled"),
        ("recogniser", "cancelled"),
        ("fail", "failed"),
    ]


def test_a_trace_that_can_not_be_written_is_an_error_of_the_start(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"), serving(detector, trace=tmp_path / "absent/trace.jsonl"):
        pass


def test_a_trace_is_drawn_to_scale() -> None:
    steps = [
        {"step": "detector", "kind": "call", "status": "ok", "start_ms": 0.0, "end_ms": 5.0, "queue_ms": 2.5},
        {"step": "crop", "kind": "cpu", "status": "failed", "start_ms": 5.0, "end_ms": 10.0, "queue_ms": None},
    ]
    record = {"pipeline": "read", "request": "7", "status": "failed", "total_ms": 10, "queue_ms": 1, "steps": steps}
    assert render(record).splitlines() == [
        "read 7  failed  10.00 ms  (1.00 ms in the queue)",
        f"detector  call  |{'░' * 15}{'█' * 15}{' ' * 30}|      0.00 ->     5.00 ms",
        f"crop      cpu   |{' ' * 30}{'█' * 30}|      5.00 ->    10.00 ms  failed",
    ]


def test_a_line_that_is_still_being_written_is_left_out_and_a_broken_one_is_named(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"a": 1}\n{"b": ')
    assert list(records(trace)) == [{"a": 1}]
    trace.write_text('{"a": 1}\nnonsense\n')
    with pytest.raises(ValueError, match="line 2"):
        list(records(trace))
