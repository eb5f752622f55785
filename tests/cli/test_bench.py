"""`penstock bench` as a process, against a running server: perf_analyzer's layout, its columns, and one document."""

import csv
import json
import re
from pathlib import Path

import pytest

from tests.bench.loads import Target, served
from tests.cli.processes import run
from tests.docs.documented import unexplained

pytestmark = pytest.mark.slow

SHORT = ("-p", "200", "-r", "3", "--warm-up", "0.1", "-s", "80")


@pytest.fixture(scope="module")
def target() -> Target:  # type: ignore[misc]
    with served() as found:
        yield found


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_report_is_perf_analyzers(protocol: str, target: Target, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    found = run(
        "bench", "-m", "double", "-u", target.address(protocol), "-i", protocol, "-b", "2",
        "--concurrency-range", "1:3:2", "-f", str(table), *SHORT,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    for line in (
        "*** Measurement Settings ***", "Request concurrency: 3", "  Client: ", "    Throughput: ", "  Server: ",
        "    Avg request latency: ", "Inferences/Second vs. Client Average Batch Latency",
    ):  # fmt: skip
        assert line in found.stdout
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["Concurrency"] for row in rows] == ["1", "3"]
    assert list(rows[0])[:4] == ["Concurrency", "Inferences/Second", "Client Send", "Network+Server Send/Recv"]
    assert all(float(row["Inferences/Second"]) > 0 and float(row["p99 latency"]) > 0 for row in rows)


def test_the_document_is_explained_and_holds_every_request(target: Target) -> None:
    found = run(
        "bench", "-m", "double", "-u", target.address("http"), "--request-rate-range", "200", "--json", "--records",
        *SHORT,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    document = json.loads(found.stdout)
    assert not unexplained("bench", document)
    (level,) = document["levels"]
    assert level["mode"] == "request_rate"
    assert level["inferences_per_s"] == pytest.approx(200, rel=0.3)
    assert len(level["records"]) >= level["requests"]
    assert {each["outcome"] for each in level["records"]} == {"answered"}


def test_a_page_draws_the_curve(target: Target, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    found = run(
        "bench", "-m", "double", "-u", target.address("http"), "--concurrency-range", "1:2", "--html", str(page), *SHORT
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    text = page.read_text()
    assert "inferences a second" in text
    assert "<table>" in text
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", text)  # nothing is fetched


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("-m", "absent"), "absent"),
        (("-m", "double", "-b", "9"), "batch size 9: model double takes up to 8 rows"),
        (("-m", "double", "--shape", "x:99999999999"), "the model's is [4]"),
        (("-m", "double", "-f", "absent/table.csv"), "directory 'absent' for table.csv does not exist"),
        (("-m", "double", "--html", "absent/page.html"), "directory 'absent' for page.html does not exist"),
        (("-m", "double", "--html", "."), "is a directory, expected the name of a file"),
        (("-m", "double", "--input-data", "absent.json"), "no such file of inputs"),
    ],
)
def test_what_cant_be_benched_is_one_line(arguments: tuple[str, ...], expected: str, target: Target) -> None:
    found = run("bench", "-u", target.address("http"), *arguments)
    assert found.returncode == 1
    assert expected in found.stderr
    assert found.stderr.count("\n") == 1, found.stderr


def test_a_server_that_is_not_there_is_one_line() -> None:
    for protocol in ("http", "grpc"):
        found = run("bench", "-m", "m", "-u", "127.0.0.1:1", "-i", protocol)
        assert found.returncode == 1
        assert "no v2 server answers there" in found.stderr
        assert found.stderr.count("\n") == 1, found.stderr
