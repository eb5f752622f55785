"""What `replicas` computes of measurements: arrangements, shares, accounts of processes, results and sentences."""

import json
import math
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benches.stories import replica_asking, replica_results, replica_servers, replicas
from benches.stories import replica_findings as findings
from benches.stories.replica_results import CONTEXTS, COPIES, PEER, PLAIN, Arrangement, Probes, Result, Results, Turn
from benches.stories.report import markdown_table
from penstock.bench.load import ANSWERED, RECORD, REFUSED
from tests.examples import small_networks


def test_every_arrangement_is_there_once() -> None:
    found = replica_results.arrangements((1, 2, 4), 2, peer=True, plain=True)
    assert len(found) == len(set(found))
    assert [(each.copies, each.threads) for each in found if each.kind == COPIES] == [
        (1, 2), (2, 2), (4, 2), (2, 1), (4, 1),
    ]  # fmt: skip
    assert [(each.copies, each.instances, each.threads) for each in found if each.kind == CONTEXTS] == [
        (1, 2, 1), (1, 4, 1),
    ]  # fmt: skip
    assert [(each.copies, each.threads) for each in found if each.kind == PEER] == [(1, 2), (2, 1), (4, 1)]
    assert [each.instances for each in found if each.kind == PLAIN] == [2]
    assert {each.kind for each in replica_results.arrangements((1, 2), 8, peer=False, plain=False)} == {
        COPIES,
        CONTEXTS,
    }
    assert len({each.name for each in found}) == len(found)
    on_gpu = replica_results.arrangements((1, 2), 1, peer=True, plain=False)
    assert [(each.kind, each.copies, each.instances) for each in on_gpu] == [
        (COPIES, 1, 1), (COPIES, 2, 1), (CONTEXTS, 1, 2), (PEER, 1, 1), (PEER, 2, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(("requests", "copies", "shares"), [(8, 4, [2, 2, 2, 2]), (8, 3, [3, 3, 2]), (1, 2, [1, 0])])
def test_requests_under_way_are_shared_out(requests: int, copies: int, shares: list[int]) -> None:
    assert replicas.shared_out(requests, copies) == shares


def test_what_was_answered_in_the_window_counts() -> None:
    rows = [(0, 10, 30, ANSWERED, 0), (0, 20, 50, ANSWERED, 1), (0, 20, 60, REFUSED, 1), (0, 50, 90, ANSWERED, 0)]
    records = np.array([tuple(1_000_000 * time for time in row[:3]) + row[3:] for row in rows], RECORD)
    latencies, failed = replicas.answered(records, 40_000_000, 80_000_000)
    assert latencies == [30.0]
    assert failed == 1


def test_agreement_is_the_share_of_things_found_again() -> None:
    cup, cat = ((0.0, 0.0, 10.0, 10.0), 967), ((20.0, 20.0, 60.0, 60.0), 285)
    moved, elsewhere, other = ((1.0, 0.0, 11.0, 10.0), 967), ((6.0, 0.0, 16.0, 10.0), 967), (cup[0], 504)
    assert replica_asking.agreement([[cup, cat], []], [[cat, moved], [cup]]) == 1
    assert replica_asking.agreement([[cup, cat]], [[elsewhere, cat]]) == 0.5
    assert replica_asking.agreement([[cup], [cat]], [[other], [cup]]) == 0
    assert replica_asking.agreement([[]], [[cup]]) == 1


def test_both_servers_answers_are_understood() -> None:
    peer = {"boxes": [[1, 2, 3, 4]], "scores": [0.5], "class_ids": [7], "class_scores": [0.9]}
    listed = [{"name": "class_ids", "data": [7]}, {"name": "boxes", "data": [1, 2, 3, 4]}]
    assert replica_asking.things(peer) == replica_asking.things({"outputs": listed}) == [((1.0, 2.0, 3.0, 4.0), 7)]


def test_the_kernels_accounts_are_read() -> None:
    status = "Name:\tpython (x)\nvoluntary_ctxt_switches:\t150\nnonvoluntary_ctxt_switches:\t545\n"
    assert replica_servers.parse_switches(status) == (150, 545)
    rollup = "55d0-7ff ---p 00:00 0 [rollup]\nRss:   9000 kB\nPss:   1234 kB\nPss_Dirty:  99 kB\n"
    assert replica_servers.parse_pss_kb(rollup) == 1234


def test_all_threads_of_a_process_count() -> None:
    copies = [replica_servers.Copy(0, os.getpid())]
    before, event = replica_servers.taken(copies), threading.Event()
    waits = threading.Event()

    def wait() -> None:
        for _ in range(50):
            waits.wait(0.001)
        event.set()
        done.wait()

    done = threading.Event()
    thread = threading.Thread(target=wait)
    thread.start()
    event.wait()
    spent = replica_servers.taken(copies).since(before)
    done.set()
    thread.join()
    assert spent.voluntary >= 50
    assert 1 < replica_servers.memory_mb(copies) < 1e5


def test_a_server_that_ends_before_it_answers_is_an_error() -> None:
    servers = replica_servers.serving([sys.executable, "-c", "raise SystemExit(3)"], 1)
    with pytest.raises(RuntimeError, match="ended with status 3 before it answered"):
        servers.__enter__()


def test_servers_end_with_the_block() -> None:
    program = "import sys; print('{\"http_port\": 7}', flush=True); sys.stdin.read()"
    with replica_servers.serving([sys.executable, "-c", program], 2) as copies:
        assert [each.port for each in copies] == [7, 7]
        assert len({each.process for each in copies}) == 2
    for each in copies:
        assert subprocess.run(["kill", "-0", str(each.process)], capture_output=True, check=False).returncode != 0


TURN = Turn(
    2.0,
    (10.0, 20.0, 30.0, 40.0),
    0,
    1.0,
    8,
    4,
    300.0,
    others=0.1,
    crops=6,
    batches=4,
    agreement=1.0,
    gpu_busy=0.0,
    gpu_memory_mb=0.0,
)


def test_turns_add_up() -> None:
    other = replace(
        TURN, seconds=1.0, latencies_ms=(50.0,), cpu_seconds=2.0, voluntary=2, memory_mb=100.0, failed=1, crops=14
    )
    found = replica_results.result(Arrangement(COPIES, 2, 1, 1), [TURN, other])
    assert (found.throughput, found.lowest, found.highest) == (5 / 3, 1.0, 2.0)
    assert (found.p50_ms, found.p95_ms) == (30.0, 50.0)
    assert (found.cores_busy, found.cpu_ms) == (1.0, 600.0)
    assert (found.voluntary, found.involuntary) == (2.0, 1.6)
    assert (found.memory_mb, found.failed, found.batch) == (200.0, 1, 2.5)
    peer = replica_results.result(Arrangement(PEER, 1, 1, 1), [replace(TURN, crops=0, batches=0)])
    assert math.isnan(peer.batch)
    with pytest.raises(ValueError, match="no picture was answered"):
        replica_results.result(Arrangement(COPIES, 2, 1, 1), [replace(TURN, latencies_ms=())])


def row(kind: str, copies: int, instances: int, threads: int, throughput: float, **others: float) -> Result:
    found = replica_results.result(Arrangement(kind, copies, instances, threads), [TURN])
    return replace(found, throughput=throughput, **others)


PROBES = Probes(2, 100.0, 80.0, 12.0, 9.0, 45.0)
ROWS = (
    row(COPIES, 1, 1, 2, 50.0, cores_busy=1.9, cpu_ms=38.0, memory_mb=200.0, involuntary=1.0),
    row(COPIES, 4, 1, 2, 40.0, p95_ms=300.0, cpu_ms=47.0),
    row(COPIES, 4, 1, 1, 48.0, cores_busy=1.95, cpu_ms=41.0, memory_mb=500.0, involuntary=5.0, p95_ms=200.0),
    row(CONTEXTS, 1, 4, 1, 60.0, memory_mb=220.0, p95_ms=150.0),
    row(PEER, 4, 1, 1, 30.0, p95_ms=400.0, memory_mb=900.0),
    row(PLAIN, 1, 2, 1, 36.0, p95_ms=350.0),
)
FOUND = Results(2, (1, 4), ROWS, PROBES, "networks")


def said(found: Results, word: str) -> str:
    (sentence,) = [each for each in findings.findings(found) if word in each]
    return sentence


def test_sentences_have_the_figures() -> None:
    assert "4 copies answer 0.96 times as much as one (48.0 and 50.0" in said(FOUND, "4 copies answer")
    assert "a copy more costs 100 MB" in said(FOUND, "a copy more")
    assert "it is 0.80 times, p95 300 ms" in said(FOUND, "as libraries start them")
    ours = said(FOUND, "One server (")
    assert "1.25 times" in ours
    assert "220 MB against 500" in ours
    assert "keeps 1.90 of 2 busy already" in said(FOUND, "Cores:")
    assert "8 % more CPU time than with one (41.0 and 38.0 ms); threads are taken off a core 5.0" in said(
        FOUND, "switches"
    )
    memory = said(FOUND, "Memory:")
    assert "20 % slower than alone (hardware that cores share holds it back)" in memory
    assert "25 % slower, 18.0 GB/s together" in memory
    assert "2.16 GB/s at 48.0 pictures/s, 12 % of that" in memory
    assert "with engines 2.00 times" in said(FOUND, "at its best (FastAPI")
    assert "answers 1.20 times what FastAPI" in said(FOUND, "same library")


def test_sentences_say_what_spoils_the_figures() -> None:
    assert not any("measure again" in each or "failed" in each for each in findings.findings(FOUND))
    bad = replace(FOUND, rows=(*ROWS[:-1], replace(ROWS[-1], others=0.7, failed=3, agreement=0.75)))
    assert "up to 0.70 of 2 cores" in said(bad, "measure again")
    assert said(bad, "failed") == "3 requests failed."
    assert "75 %" in said(bad, "found everywhere")


def test_cores_that_are_left_and_do_not_disturb_each_other() -> None:
    idle = replace(
        FOUND, rows=(replace(ROWS[0], cores_busy=0.9), *ROWS[1:]), probes=replace(PROBES, network_together=95.0)
    )
    assert "one copy keeps 0.90 of 2 busy, 4 copies keep 1.95" in said(idle, "Cores:")
    assert "5 % slower than alone (cores hardly disturb each other)" in said(idle, "Memory:")


def test_tables_and_figures_have_every_arrangement() -> None:
    table, probes = findings.tables(FOUND)
    assert [line[0] for line in table.rows] == [each.arrangement.name for each in ROWS]
    assert "GPU" not in markdown_table(table)
    assert len(probes.rows) == 2
    on_gpu = replace(FOUND, rows=(replace(ROWS[0], gpu_busy=0.5, gpu_memory_mb=900.0), *ROWS[1:]), probes=None)
    (table,) = findings.tables(on_gpu)
    assert table.rows[0][-2:] == (0.5, 900.0)
    for figure in findings.figures(FOUND):
        assert len(figure.data[0].x) == len(ROWS)
    assert findings.data(FOUND)["cores"] == 2


def test_one_arrangement_alone_has_nothing_to_say_of_copies() -> None:
    assert findings.findings(replace(FOUND, counts=(1,), rows=ROWS[:1])) == ()


@pytest.mark.slow
def test_the_story_is_measured_and_written(tmp_path: Path) -> None:
    classifier = small_networks.classifier(tmp_path)
    flags = ["--counts=1,2", "--seconds=0.6", "--warm-up=0.2", "--rounds=1", "--budget=6", "--concurrency=4"]
    assert replicas.main(["-o", str(tmp_path), f"--classifier={classifier}", *flags]) == 0
    written = json.loads((tmp_path / "replicas.json").read_text())
    rows = written["data"]["arrangements"]
    assert len({each["name"] for each in rows}) == 4
    for each in rows:
        assert each["throughput"] > 0
        assert each["failed"] == 0
        assert each["memory_mb"] > 10
        assert 0 < each["cpu_ms"] < 1000
    assert written["data"]["probes"]["network_alone"] > 0
    assert len(written["findings"]) >= 4
    assert (tmp_path / "replicas.html").is_file()


def test_a_classifier_that_is_not_there_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replicas.main(["-o", str(tmp_path), f"--classifier={tmp_path / 'absent.onnx'}"]) == 1
    assert "no such model" in capsys.readouterr().err
