"""What a pipeline did can be seen: statistics by step, and a line for each request in a trace."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penstock as ps
from penstock.errors import InvalidArgument, NotFound
from penstock.pipeline.statistics import percentile
from penstock.pipeline.summary import summary
from penstock.pipeline.waterfall import records, render
from penstock.serve.trace import Trace
from tests.pipeline.toy import Recogniser, detector, picture, reader, texts
from tests.serve.calls import SECONDS, Client, eventually, infer, serving
from tests.servers.raw import dumps

IMAGE = picture((1, 0, 0, 0), (2, 0, 0, 0))
MILLISECOND = 1_000_000
STEPS = [
    {"step": "detector", "kind": "call", "status": "ok", "start_ms": 0.0, "end_ms": 5.0, "queue_ms": 2.5},
    {"step": "crop", "kind": "cpu", "status": "failed", "start_ms": 5.0, "end_ms": 10.0, "queue_ms": None},
]
RECORD = {"pipeline": "read", "request": "7", "status": "failed", "total_ms": 10, "queue_ms": 1, "steps": STEPS}


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
    with (
        pytest.raises(OSError, match=r"trace 'trace\.jsonl' can't be opened: No such file.*; name a file") as raised,
        serving(detector, trace=tmp_path / "absent/trace.jsonl"),
    ):
        pass
    assert str(tmp_path) not in str(raised.value)


def test_a_trace_without_pipelines_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(detector, trace=tmp_path / "trace.jsonl"):
        assert "a trace is of pipelines" in caplog.text


def test_a_disk_that_is_full_costs_the_trace_and_no_request(caplog: pytest.LogCaptureFixture) -> None:
    with serving(detector, Recogniser().model, reader(), trace="/dev/full") as server, Client(server) as client:
        for _ in range(3):
            assert client.infer("read", image=IMAGE).arrays["output"].tolist() == texts(IMAGE)
    assert caplog.text.count("trace 'full' ends here: No space left on device") == 1
    assert "3 requests are missing in trace 'full'" in caplog.text


def test_a_disk_that_does_not_keep_up_costs_records_and_nobody_waits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A pipe that nobody reads stands for the disk. The first record alone is more than a pipe holds."""
    pipe, steps = tmp_path / "trace", 1000
    os.mkfifo(pipe)
    with os.fdopen(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), encoding="utf-8") as reading:
        trace = Trace(pipe)
        trace.write({"filling": "x" * 200_000}, steps)
        for number in range(200):
            trace.write({"number": number}, steps)
        os.set_blocking(reading.fileno(), True)
        with ThreadPoolExecutor(1) as pool:
            closing = pool.submit(trace.close)
            lines = [json.loads(line) for line in reading]
            closing.result(SECONDS)
    assert [line.get("number") for line in lines] == [None, *range(64)]
    assert "136 requests are missing in trace 'trace'" in caplog.text


def test_a_disk_that_hangs_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("penstock.serve.trace._CLOSE_SECONDS", 0.05)
    pipe = tmp_path / "trace"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    trace = Trace(pipe)
    trace.write({"filling": "x" * 200_000}, 0)
    trace.close()
    assert "trace 'trace' is left behind: the disk does not answer" in caplog.text
    os.close(reading)  # and its thread ends, for nobody reads the pipe any more
    eventually("its thread has ended", lambda: "trace 'trace' ends here: Broken pipe" in caplog.text)


def test_a_summary_counts_the_rows_of_a_trace_and_shows_the_slowest() -> None:
    def record(total: float, status: str = "ok") -> dict[str, Any]:
        step = {**STEPS[0], "end_ms": total / 2, "status": status}
        return {**RECORD, "request": f"{total:g}", "total_ms": total, "status": status, "steps": [step]}

    requests = [record(total) for total in (1.0, 9.0, 2.0, 4.0)] + [record(8.0, "failed"), record(3.0, "cancelled")]
    found = summary(iter(requests), 2)
    assert [each["request"] for each in found.shown] == ["9", "8"]
    assert [each["request"] for each in summary(requests, None).shown] == ["1", "9", "2", "4", "8", "3"]
    assert found.requests == 6
    whole, step = found.rows
    assert (whole.step, whole.ok, whole.failed, whole.cancelled) == ("request", 4, 1, 1)
    assert (whole.mean_ms, whole.median_ms, whole.max_ms, whole.queue_mean_ms) == (4.0, 3.0, 9.0, 1.0)
    assert (step.step, step.kind, step.ok, step.mean_ms, step.queue_mean_ms) == ("detector", "call", 4, 2.0, 2.5)
    (only, _) = summary([record(8.0, "failed")], 1).rows
    assert (only.failed, only.mean_ms, only.percentile_99_ms) == (1, None, None)
    assert summary([], 1).requests == 0


def test_a_trace_is_drawn_to_scale() -> None:
    assert render(RECORD).splitlines() == [
        "read 7  failed  10.00 ms  (1.00 ms in the queue)",
        f"detector  call  |{'░' * 15}{'█' * 15}{' ' * 30}|      0.00 ->     5.00 ms",
        f"crop      cpu   |{' ' * 30}{'█' * 30}|      5.00 ->    10.00 ms  failed",
    ]


def test_a_line_that_is_still_being_written_is_left_out_and_a_broken_one_is_named(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    whole = json.dumps(RECORD)
    trace.write_text(f"{whole}\n{whole[:20]}")
    assert list(records(trace)) == [RECORD]
    without = json.dumps({**RECORD, "steps": [{"step": "detector"}]})
    for broken, words in (("nonsense", "no JSON"), ("[1]", "no pipeline"), ("{}", "no pipeline"), (without, "end_ms")):
        trace.write_text(f"{whole}\n{broken}\n")
        with pytest.raises(InvalidArgument, match=rf"trace\.jsonl: line 2 .*{words}"):
            list(records(trace))
    with pytest.raises(NotFound, match=r"'absent\.jsonl' does not exist"):
        list(records(tmp_path / "absent.jsonl"))
