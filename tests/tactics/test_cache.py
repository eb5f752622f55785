"""The timing cache: what was measured comes back for exactly the same question, and a bad file is never believed."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penstock.engine.cuda.choices import Choice
from penstock.engine.plan import Fingerprint, Tactic
from penstock.errors import UsageError
from penstock.tactics import TimingCache
from penstock.tactics import cache as module
from penstock.tactics.cache import Chosen, Loss, Timing, content_hash
from tests import onnx_models

MACHINE = Fingerprint("cpu", "Some CPU", ("avx2", "avx512f"), 2, {"onnxruntime": "1.31.0", "openvino": "2026.4"})
TACTIC = Tactic("openvino", "bf16", options=(("A", "1"),))
TIMING = Timing(125.5, 3.25, 40, 1.5, 1_000_000, True)
SHAPES = {"x": (1, 3), "y": (2,)}
TYPES = {"x": "FP32", "y": "INT64"}


def _key(cache: TimingCache, **changes: Any) -> str:
    parts: dict[str, Any] = {"graph": "g" * 64, "shapes": SHAPES, "datatypes": TYPES, "tactic": TACTIC} | changes
    return cache.key(parts["graph"], parts["shapes"], parts["datatypes"], parts["tactic"])


def _saved(path: Path, count: int = 1) -> list[str]:
    cache = TimingCache(path, MACHINE)
    keys = [_key(cache, graph=str(number)) for number in range(count)]
    for key in keys:
        cache.put(key, TIMING)
    cache.save()
    return keys


def test_timings_and_losses_come_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "timings.json"
    cache = TimingCache(path, MACHINE)
    one, other = _key(cache), _key(cache, tactic=Tactic("onnxruntime", "fp32"))
    cache.put(one, TIMING)
    cache.put(other, Loss("crashed while compiling (segmentation fault)"))
    cache.save()
    again = TimingCache(path, MACHINE)
    assert again.get(one) == TIMING
    assert again.get(other) == Loss("crashed while compiling (segmentation fault)")
    assert again.get(_key(again, graph="other")) is None
    assert not again.warning
    assert [each.name for each in path.parent.iterdir()] == ["timings.json"]


def test_choices_come_back_for_the_same_steps_kernels_and_gpu(tmp_path: Path) -> None:
    path, gpu = tmp_path / "timings.json", replace(MACHINE, device="cuda:NVIDIA H200", features=("sm_90",))
    cache = TimingCache(path, gpu)
    key = cache.key_of_choices("steps", "16")
    entry = Chosen({"a/conv": Choice("triton", (64, 32)), "b": Choice("cudnn")})
    cache.put(key, entry)
    cache.save()
    assert TimingCache(path, gpu).get(key) == entry
    drivers = replace(gpu, libraries={**MACHINE.libraries, "cuda-driver": "13.1"})
    others = [TimingCache(path, each) for each in (MACHINE, drivers, replace(gpu, features=("sm_100",)))]
    assert all(other.get(other.key_of_choices("steps", "16")) is None for other in others)
    assert cache.key_of_choices("steps", "32") != key != cache.key_of_choices("other steps", "16")


def test_without_a_file_it_lives_in_memory() -> None:
    cache = TimingCache(None, MACHINE)
    cache.put(_key(cache), TIMING)
    cache.save()
    assert cache.get(_key(cache)) == TIMING


def test_every_part_of_the_question_counts() -> None:
    cache = TimingCache(None, MACHINE)
    changed = [
        _key(cache, graph="h" * 64),
        _key(cache, shapes={"x": (1, 4), "y": (2,)}),
        _key(cache, shapes={"x": (2,), "y": (1, 3)}),
        _key(cache, datatypes={"x": "FP16", "y": "INT64"}),
        *(
            _key(cache, tactic=replace(TACTIC, **change))
            for change in (
                {"runtime": "onnxruntime"},
                {"precision": "fp32"},
                {"form": "optimized"},
                {"shapes": "static"},
                {"threads": 1},
                {"options": ()},
            )
        ),
        *(
            _key(TimingCache(None, replace(MACHINE, **change)))
            for change in (
                {"model": "Another CPU"},
                {"features": ("avx2",)},
                {"cores": 4},
                {"libraries": {"onnxruntime": "1.31.0", "openvino": "2026.5"}},
            )
        ),
    ]
    assert len({_key(cache), *changed}) == 1 + len(changed)
    assert _key(cache, shapes=dict(reversed(SHAPES.items()))) == _key(cache)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b'{"format": "penstock-timing-cache-1", "entries": []}', id="entries-of-another-kind"),
        pytest.param(b'{"format": "penstock-timing-cache-9", "entries": {}}', id="another-version"),
        pytest.param(b'{"format": "penstock-timing-cache-1", "entries": {"\xff\xfe', id="damaged"),
        pytest.param(b'{"format": "penstock-timing-cache-1", "entries": ' + b"[" * 100_000, id="deep"),
    ],
)
def test_a_damaged_file_is_left_out_and_replaced(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "timings.json"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        cache = TimingCache(path, MACHINE)
    assert len(cache) == 0
    assert "timings.json is left out" in cache.warning
    assert cache.warning in caplog.text
    cache.put(_key(cache), TIMING)
    cache.save()
    assert TimingCache(path, MACHINE).get(_key(cache)) == TIMING


FOREIGN = [
    pytest.param(b"\x00\xff\xfe", id="binary"),
    pytest.param(b"[" * 100_000, id="deep"),
    pytest.param(b"[1, 2]", id="a-list"),
    pytest.param(b"{", id="short"),
    pytest.param(b'{"format": "something else", "entries": {}}', id="foreign"),
    pytest.param(b"notes of mine\n", id="text"),
]


@pytest.mark.parametrize("content", FOREIGN)
def test_a_file_of_another_kind_is_refused_and_stays(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"timing_cache is 'notes.txt', expected a timing cache.*left as it is"):
        TimingCache(path, MACHINE)
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", FOREIGN)
def test_a_file_that_took_the_name_meanwhile_stays(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "notes.txt"
    cache = TimingCache(path, MACHINE)
    cache.put(_key(cache), TIMING)
    path.write_bytes(content)
    cache.save()
    assert path.read_bytes() == content
    assert "notes.txt is not saved" in caplog.text


def test_an_empty_file_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "timings.json"
    path.touch()
    assert not TimingCache(path, MACHINE).warning
    _saved(path)
    assert len(TimingCache(path, MACHINE)) == 1


@pytest.mark.parametrize("place", [".", "/dev/null", "file/timings.json"])
def test_what_can_hold_no_cache_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"no plain file|can't be read: Not a directory"):
        TimingCache(tmp_path / place, MACHINE)


def test_a_file_that_is_cut_anywhere_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "timings.json"
    _saved(path, 2)
    whole = path.read_bytes()
    for size in range(37, len(whole), 37):
        path.write_bytes(whole[:size])
        cache = TimingCache(path, MACHINE)
        assert len(cache) == 0
        assert cache.warning


@pytest.mark.parametrize(
    "damage",
    [
        {"median_us": -1.0},
        {"median_us": 0},
        {"median_us": float("nan")},
        {"median_us": float("inf")},
        {"median_us": "fast"},
        {"median_us": True},
        {"median_us": 10**400},
        {"spread_us": None},
        {"samples": 0},
        {"samples": 1.5},
        {"bytes": -5},
        {"seconds": [1]},
        {"extra": 1},
        {"lost": "and timed"},
    ],
    ids=str,
)
def test_a_damaged_entry_is_left_out_and_the_others_stay(damage: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "timings.json"
    good, bad = _saved(path, 2)
    data = json.loads(path.read_text())
    data["entries"][bad] |= damage
    path.write_text(json.dumps(data))
    cache = TimingCache(path, MACHINE)
    assert (cache.get(good), cache.get(bad)) == (TIMING, None)
    assert "1 entries are damaged" in cache.warning


def test_a_file_beyond_the_bound_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "timings.json"
    _saved(path)
    monkeypatch.setattr(module, "MAX_FILE_BYTES", path.stat().st_size - 1)
    assert "more than" in TimingCache(path, MACHINE).warning


def test_what_was_not_used_longest_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ENTRIES", 3)
    path = tmp_path / "timings.json"
    keys = _saved(path, 3)
    cache = TimingCache(path, MACHINE)
    cache.get(keys[0])
    cache.put(_key(cache), TIMING)
    cache.save()
    left = TimingCache(path, MACHINE)
    assert [left.get(key) is not None for key in keys] == [True, False, True]
    assert left.get(_key(cache)) == TIMING


def test_builds_at_the_same_time_keep_each_others_entries(tmp_path: Path) -> None:
    path = tmp_path / "timings.json"
    first, second = TimingCache(path, MACHINE), TimingCache(path, MACHINE)
    for cache, graph in ((first, "a"), (second, "b")):
        cache.put(_key(cache, graph=graph), TIMING)
        cache.save()
    third = TimingCache(path, MACHINE)
    assert third.get(_key(third, graph="a")) == third.get(_key(third, graph="b")) == TIMING


def test_a_place_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = TimingCache(tmp_path / "file" / "timings.json", MACHINE)
    (tmp_path / "file").write_text("")
    cache.put(_key(cache), TIMING)
    cache.save()
    assert "timings.json is not saved" in caplog.text


def test_the_hash_of_a_model_covers_its_data_files(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    path = onnx_models.external(tmp_path / "model.onnx", {"location": "weights.bin"})
    before = content_hash(path)
    (tmp_path / "weights.bin").write_bytes(b"\x01" * 16)
    assert content_hash(path) != before
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    assert content_hash(path) == before
