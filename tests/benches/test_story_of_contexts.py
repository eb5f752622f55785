"""What the story of contexts computes, and that a shared context is caught while a lock and a pool are right."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import penstock as ps
from benches.stories.contexts_clients import Clients, Kind
from benches.stories.contexts_measuring import Subject, called, in_turns, settings_of
from benches.stories.contexts_results import (
    ENGINE,
    LOCKED,
    PICTURES,
    POOLED,
    SERVED,
    SHARED,
    Cell,
    Measured,
    Setting,
    Swept,
    best,
    findings,
    joined,
)
from benches.stories.contexts_sharing import Bound, Session, locked, pooled, shared
from examples.clip.asking import Target, Tensor, encoded_picture, prepared_picture
from examples.clip.judging import Reference, Tally
from examples.clip.making import pictures
from examples.clip.pictures import encoded_pictures
from examples.clip.service import PIPELINE, TOWER, clip_server
from tests.examples.clip_towers import small_tower

ONE = Setting(1, None)


# ---- threads on contexts ----


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return Session(small_tower(tmp_path_factory.mktemp("contexts") / "tower.onnx"), threads=2)


@pytest.fixture(scope="module")
def subject(session: Session) -> Subject:
    rows = pictures(16)
    (embeddings,) = session.session.run(None, {session.name: rows})
    return Subject(rows, Reference(embeddings))


def test_threads_that_share_one_context_get_each_others_answers(session: Session, subject: Subject) -> None:
    tally = called(shared(Bound(session)), subject, 50, 1.0)
    assert tally.asked == tally.right + tally.wrong  # none fails, so that nobody is warned
    assert tally.wrong > 0


@pytest.mark.parametrize("callers", [5, 50])
def test_a_lock_and_a_context_for_each_call_are_right(callers: int, session: Session, subject: Subject) -> None:
    for call in (locked(Bound(session)), pooled([Bound(session) for _ in range(3)])):
        tally = called(call, subject, callers, 0.5)
        assert tally.good, tally
        assert len(tally.milliseconds) == tally.asked


def test_a_call_that_raises_is_a_failure_and_its_context_goes_back_to_the_pool(subject: Subject) -> None:
    class Broken:
        def run(self, row: object) -> np.ndarray:
            raise RuntimeError("busy")

    tally = called(pooled([Broken()]), subject, 2, 0.05)
    assert tally.failed == tally.asked > 2
    assert tally.reasons == ["RuntimeError: busy"]
    assert tally.throughput == 0


@pytest.mark.parametrize("processes", [0, 2])
def test_clients_ask_a_server_from_here_and_from_processes(processes: int, tmp_path: Path) -> None:
    tower = small_tower(tmp_path / "tower.onnx")
    rows = pictures(8)
    (embeddings,) = ps.load(tower)(x=rows).values()
    tensors: dict[Kind, list[Tensor]] = {
        "rows": [prepared_picture(each) for each in rows],
        "files": [encoded_picture(each) for each in encoded_pictures(8)],
    }
    with (
        clip_server(tower, http_port=0, grpc_port=None, metrics_port=None) as server,
        Clients(tensors, Reference(embeddings), processes) as clients,
    ):
        address = f"127.0.0.1:{server.http_port}"
        for model, kind in ((TOWER, "rows"), (PIPELINE, "files")):
            tally = clients.ask(Target("http", address, model), 5, 0.3, kind)  # type: ignore[arg-type]
            assert tally.good, tally
            assert tally.asked >= 5


# ---- computing ----


def cell(way: str, in_flight: int, *, asked: int = 100, wrong: int = 0, rate: float = 10.0, contexts: int = 1) -> Cell:
    return Cell(way, contexts, None, in_flight, asked, asked - wrong, wrong, 0, 0, rate, 1.0, 2.0, 0.9999)


def measured(*cells: Cell, swept: tuple[Swept, ...] = ()) -> Measured:
    machine = {"cpu": "a processor", "cores": 2, "memory_gib": 8.0, "gpus": []}
    return Measured("CPU", machine, "tower", "engine", "library", "reference", 0.9, 50, swept, cells, 1.0)


def test_the_highest_median_is_best_and_of_equals_the_fewest_contexts() -> None:
    one, two, four = Swept(1, 2, (10.0, 12.0)), Swept(2, 1, (30.0, 1.0)), Swept(4, 1, (13.0, 9.0))
    assert best([four, one, two]) is two
    assert best([four, one]) is one
    with pytest.raises(ValueError):
        best([])


def test_findings_count_what_sharing_did_and_what_was_right() -> None:
    found = findings(
        measured(
            cell(SHARED, 5, wrong=80),
            cell(LOCKED, 5, rate=10),
            cell(POOLED, 5, rate=15, contexts=4),
            cell(ENGINE, 500),
            swept=(Swept(1, 2, (10.0, 10.1)), Swept(2, 1, (20.0, 20.2))),
        )
    )
    assert "CPU: 5 threads on one context without a lock: 80 of 100 answers are wrong (80 %)." in found
    assert any("answer 300 calls at 5 and 500 at once: none wrong, none missing, none failed" in each for each in found)
    assert any("4 contexts on the same library answer 1.50 times as many" in each for each in found)
    assert any("the best number of contexts is 2" in each for each in found)


def test_findings_say_when_something_else_than_sharing_was_wrong() -> None:
    found = findings(measured(cell(SHARED, 5, wrong=80), cell(SERVED, 50, wrong=1), cell(ENGINE, 50)))
    assert any(f"NOT RIGHT: {SERVED} at 50: 1 wrong" in each for each in found)
    assert not any("none wrong" in each for each in found)


def test_a_best_setting_within_the_noise_is_said_to_be_no_better() -> None:
    found = findings(measured(swept=(Swept(1, 2, (10.0, 12.0)), Swept(2, 1, (11.0, 12.0)))))
    assert any("1 is as good" in each for each in found)


def test_sharing_that_happened_to_go_well_proves_nothing() -> None:
    assert any("which proves nothing" in each for each in findings(measured(cell(SHARED, 5))))


def test_findings_name_the_ways_that_let_callers_wait_and_what_files_cost() -> None:
    unfair = replace(cell(ENGINE, 50), p99_ms=400.0)
    found = findings(measured(unfair, cell(SERVED, 50, rate=100), cell(PICTURES, 50, rate=20)))
    assert sum("not fair" in each for each in found) == 1
    assert any(
        "answers 20 a second at 50 at once; asked with rows that are ready for the tower, 100" in each for each in found
    )


def test_measured_figures_survive_json() -> None:
    before = measured(cell(SHARED, 5, wrong=3), swept=(Swept(1, None, (10.0, 12.0)),))
    assert Measured.of_json(json.loads(json.dumps(before.as_json()))) == before


def test_a_cell_counts_right_answers_a_second() -> None:
    tally = Tally(asked=10, right=6, wrong=4, seconds=2.0, milliseconds=[1.0] * 10)
    found = Cell.of(SHARED, ONE, 5, tally)
    assert found.throughput == 3.0
    assert not found.good


def test_parts_add_up_at_once_and_one_after_the_other() -> None:
    parts = [Tally(asked=3, right=2, wrong=1, seconds=2.0, least=0.9995), Tally(asked=1, failed=1, seconds=3.0)]
    abreast, after = joined(parts), joined(parts, at_once=False)
    assert (abreast.asked, abreast.right, abreast.wrong, abreast.failed) == (4, 2, 1, 1)
    assert (abreast.seconds, after.seconds) == (3.0, 5.0)
    assert abreast.least == 0.9995


def test_settings_take_turns_forth_and_back_and_divide_the_cores() -> None:
    order: list[int] = []

    def measure(setting: Setting) -> Tally:
        order.append(setting.contexts)
        return Tally()

    settings = settings_of([1, 2, 4], on_gpu=False)
    found = in_turns(measure, settings, 2)
    assert order == [1, 2, 4, 4, 2, 1]
    assert [len(each) for each in found.values()] == [2, 2, 2]
    assert settings[0].threads is not None
    assert all(each.threads == max(1, settings[0].threads // each.contexts) for each in settings)
    assert all(each.threads is None for each in settings_of([1, 2], on_gpu=True))


def test_the_story_has_a_row_for_each_cell_and_a_figure_for_each_device(tmp_path: Path) -> None:
    contexts_story = pytest.importorskip("benches.stories.contexts_story")
    swept = (Swept(1, 2, (10.0, 12.0)), Swept(2, 1, (30.0, 31.0)))
    cells = (cell(SHARED, 5, wrong=80), cell(SERVED, 50), cell(SERVED, 50, contexts=2), cell(ENGINE, 500, contexts=2))
    story = contexts_story.story([measured(*cells, swept=swept)])
    assert len(story.tables[0].rows) == 4
    assert [row[-1] for row in story.tables[1].rows] == ["", "best"]
    assert len(story.figures) == 1
    shown = {each.name: list(each.y) for each in story.figures[0].data if each.name}
    assert shown[SHARED] in ([80.0], [10.0])
