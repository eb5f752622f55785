"""The sealed file: what is written comes back, and whatever is not as it was written is refused with a reason."""

import hashlib
import io
import json
import os
import random
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penstock as ps
from penstock import limits
from penstock.engine import Engine, check, sealed
from penstock.engine.plan import Manifest
from penstock.errors import ModelLoadError, NotFound, UsageError
from tests import onnx_models
from tests.engine.engines import OPENVINO, ORT, Plan, members, profile

EVIDENCE = {"accuracy": {"cosine": 0.9999}, "note": "µ"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, dict[str, bytes | Path]]:
    folder = tmp_path_factory.mktemp("made")
    model = onnx_models.scale(folder / "m.onnx", 3)
    return members(Plan(model, profile("x", (1, 4), (4, 4), (8, 4)), [(ORT, {}), (OPENVINO, {})]))


@pytest.fixture
def engine(made: tuple[Manifest, dict[str, bytes | Path]], tmp_path: Path) -> Path:
    path = tmp_path / "m.engine"
    sealed.write(path, made[0], made[1], EVIDENCE)
    return path


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rezip(path: Path, held: dict[str, bytes], **settings: Any) -> None:
    with zipfile.ZipFile(path, "w", **settings) as archive:
        for name, data in held.items():
            archive.writestr(name, data)


def resealed(held: dict[str, bytes], change: Callable[[dict[str, Any]], None]) -> dict[str, bytes]:
    """A manifest changed by someone who knows how it is hashed."""
    head = json.loads(held["manifest.json"])
    change(head["manifest"])
    body = {"manifest": head["manifest"], "members": head["members"]}
    text = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    head["content_hash"] = hashlib.sha256(text).hexdigest()
    return {**held, "manifest.json": json.dumps(head).encode()}


def test_what_was_written_is_read(made: tuple[Manifest, dict[str, bytes | Path]], engine: Path) -> None:
    found = sealed.read(engine)
    assert found.manifest == made[0]
    assert found.evidence == EVIDENCE
    for name, data in made[1].items():
        assert found.members[name] == (data if isinstance(data, bytes) else data.read_bytes())
    assert set(found.members) == {*made[1], "evidence.json"}


def test_members_are_plain_and_aligned_and_any_zip_tool_reads_them(engine: Path) -> None:
    found = sealed.read(engine)
    with zipfile.ZipFile(engine) as archive:
        assert archive.testzip() is None
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
        assert archive.read("weights.safetensors") == found.members["weights.safetensors"]
    assert all(place.offset % 64 == 0 for place in found.archive.places.values())


def test_the_same_engine_has_the_same_bytes(made: tuple[Manifest, dict[str, bytes | Path]], tmp_path: Path) -> None:
    for name in ("a", "b"):
        sealed.write(tmp_path / name, made[0], made[1], EVIDENCE)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_saving_gives_the_same_file_and_replaces_what_was_there(engine: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.engine"
    target.write_bytes(b"something else")
    loaded = ps.load(engine)
    assert isinstance(loaded, Engine)
    loaded.save(target)
    assert target.read_bytes() == engine.read_bytes()
    loaded.save(engine)  # onto itself
    assert target.read_bytes() == engine.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.engine", "m.engine"]


def test_a_failed_write_leaves_what_was_there(
    made: tuple[Manifest, dict[str, bytes | Path]], engine: Path, tmp_path: Path
) -> None:
    before = engine.read_bytes()
    with pytest.raises(OSError):
        sealed.write(engine, made[0], {**made[1], "artifacts/9.blob": tmp_path / "absent"}, EVIDENCE)
    assert engine.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m.engine"]


def test_a_place_that_can_not_be_written_is_named_as_it_was_given(engine: Path, tmp_path: Path) -> None:
    loaded = ps.load(engine)
    assert isinstance(loaded, Engine)
    (tmp_path / "folder.engine").mkdir()
    for name in ("absent/a.engine", "folder.engine"):
        with pytest.raises(OSError, match="directory") as caught:
            loaded.save(tmp_path / name)
        assert (caught.value.filename, caught.value.filename2) == (str(tmp_path / name), None)
    with pytest.raises(UsageError, match=r"'a\.txt', expected a name that ends in \.engine"):
        loaded.save(tmp_path / "a.txt")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["folder.engine", "m.engine"]


def test_an_engine_outlives_its_file(engine: Path) -> None:
    loaded = ps.load(engine)
    assert isinstance(loaded, Engine)
    engine.unlink()
    assert loaded.evidence == EVIDENCE
    np.testing.assert_array_equal(loaded(x=np.ones((2, 4), np.float32))["y"], np.full((2, 4), 3, np.float32))


def test_a_file_changed_in_place_while_it_is_open_is_noticed(engine: Path) -> None:
    found = sealed.read(engine)
    place = found.archive.places["artifacts/0.onnx"]
    with engine.open("r+b") as file:
        file.seek(place.offset + 10)
        file.write(b"\xff\xff\xff")
    with pytest.raises(ModelLoadError, match=r"m\.engine: artifacts/0\.onnx was changed while it was in use"):
        found.members["artifacts/0.onnx"]
    os.truncate(engine, 100)
    with pytest.raises(ModelLoadError, match="cut while it was in use"):
        found.members["artifacts/0.onnx"]


def refused(path: Path) -> str:
    """The reason; that `check` and `load` agree on it is part of the matter."""
    verdict = check(path)
    assert verdict.action == "refuse", verdict
    with pytest.raises(ModelLoadError) as error:
        ps.load(path)
    assert str(error.value) == "; ".join(verdict.reasons)
    assert str(path.parent) not in str(error.value)
    return verdict.reasons[0]


def test_a_file_cut_anywhere_is_refused(engine: Path) -> None:
    whole = engine.read_bytes()
    random.seed(0)
    points = {0, 1, 4, 21, 22, len(whole) - 1, len(whole) - 22, *random.sample(range(len(whole)), 60)}
    for point in sorted(points):
        engine.write_bytes(whole[:point])
        assert "m.engine is no engine, or it is cut" in refused(engine)


def test_a_file_with_something_before_or_after_it_is_refused(engine: Path) -> None:
    whole = engine.read_bytes()
    for data in (whole + b"\0", b"#!/bin/sh\n" + whole, whole + whole):
        engine.write_bytes(data)
        refused(engine)


def flipped(whole: bytes, offset: int, bit: int) -> bytes:
    return whole[:offset] + bytes([whole[offset] ^ 1 << bit]) + whole[offset + 1 :]


def test_a_bit_flipped_anywhere_in_a_member_is_refused(engine: Path) -> None:
    whole = engine.read_bytes()
    random.seed(1)
    for place in sealed.read(engine).archive.places.values():
        offsets = {place.offset, place.offset + place.size - 1}
        offsets |= {place.offset + random.randrange(place.size) for _ in range(12)}
        for offset in sorted(offsets):
            engine.write_bytes(flipped(whole, offset, random.randrange(8)))
            refused(engine)


def test_a_bit_flipped_between_members_is_refused_or_means_nothing(engine: Path) -> None:
    """Dates and attributes of a zip say nothing about an engine; everything else outside of members does."""
    whole = engine.read_bytes()
    good = sealed.read(engine)
    places = good.archive.places.values()
    outside = [at for at in range(len(whole)) if not any(p.offset <= at < p.offset + p.size for p in places)]
    random.seed(2)
    seen = {"refused": 0, "read": 0}
    for at in random.sample(outside, 400):
        engine.write_bytes(flipped(whole, at, random.randrange(8)))
        try:
            found = sealed.read(engine)
        except ModelLoadError:
            seen["refused"] += 1
            continue
        seen["read"] += 1
        assert found.content_hash == good.content_hash
        assert dict(found.archive.places) == dict(good.archive.places)
    assert min(seen.values()) > 0


def change_format(held: dict[str, bytes], version: object) -> dict[str, bytes]:
    return {**held, "manifest.json": json.dumps({**json.loads(held["manifest.json"]), "format": version}).encode()}


def replaced(held: dict[str, bytes], name: str, data: bytes | None) -> dict[str, bytes]:
    return {key: value for key, value in {**held, name: data}.items() if value is not None}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda held: change_format(held, 2), "has engine format 2, this Penstock reads up to 1; update it"),
        (lambda held: change_format(held, 0), "no format number"),
        (lambda held: change_format(held, "1"), "no format number"),
        (lambda held: change_format(held, True), "no format number"),
        (lambda held: replaced(held, "manifest.json", None), "manifest.json is missing"),
        (lambda held: replaced(held, "evidence.json", None), "evidence.json is missing"),
        (lambda held: replaced(held, "weights.safetensors", None), "other members than the file has"),
        (lambda held: replaced(held, "artifacts/0.onnx", None), "other members than the file has"),
        (lambda held: replaced(held, "artifacts/more.blob", b"more"), "other members than the file has"),
        (lambda held: replaced(held, "artifacts/0.onnx", b"other"), "artifacts/0.onnx was damaged or changed"),
        (lambda held: replaced(held, "evidence.json", b"{}"), "evidence.json was damaged or changed"),
        (lambda held: replaced(held, "manifest.json", b"[]"), "manifest.json is damaged"),
        (lambda held: replaced(held, "manifest.json", b"{"), "manifest.json is damaged"),
        (lambda held: replaced(held, "manifest.json", b"[" * 200_000), "manifest.json is damaged"),
        (lambda held: replaced(held, "manifest.json", b'{"format": 1}'), "not as it was sealed"),
        (lambda held: replaced(held, "../evil", b""), "has no place in an engine"),
        (lambda held: replaced(held, "/etc/passwd", b""), "has no place in an engine"),
        (lambda held: replaced(held, "artifacts/../../evil", b""), "has no place in an engine"),
        (lambda held: replaced(held, "artifacts/a/b", b""), "has no place in an engine"),
        (lambda held: replaced(held, "artifacts/.hidden", b""), "has no place in an engine"),
        (lambda held: replaced(held, "artifacts/a\\b", b""), "has no place in an engine"),
        (lambda held: replaced(held, "artifacts/", b""), "has no place in an engine"),
        (lambda held: replaced(held, "artifacts/" + "a" * 200, b""), "has no place in an engine"),
        (lambda held: replaced(held, "ärger.json", b""), "has no place in an engine"),
        (lambda held: {**held, **{f"artifacts/{at}.x": b"" for at in range(300)}}, "expected at most 256"),
    ],
)
def test_members_that_are_not_as_sealed_are_refused(
    change: Callable[[dict[str, bytes]], dict[str, bytes]], reason: str, engine: Path
) -> None:
    rezip(engine, change(contents(engine)))
    assert reason in refused(engine)


def edit(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Set `a.0.b` of a manifest."""

    def change(manifest: dict[str, Any]) -> None:
        *path, last = (int(part) if part.isdigit() else part for part in key.split("."))
        place: Any = manifest
        for part in path:
            place = place[part]
        if value is KeyError:
            del place[last]
        else:
            place[last] = value

    return change


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("name", KeyError, "'name' is missing"),
        ("name", 7, "manifest.name: expected str, got 7"),
        ("programs", [], "a program at least"),
        ("programs.0.artifact", "artifacts/7.onnx", "'artifacts/7.onnx' is not in the file"),
        ("programs.0.artifact", "evidence.json", "'evidence.json' is not in the file"),
        ("programs.0.tactic.precision", "fp4", "precision 'fp4' is not known"),
        ("programs.0.tactic.threads", "many", "a tactic can't be read"),
        ("programs.0.tactic.shapes", "static", "is static and has shapes {}"),
        ("programs.0.shapes", {"x": [1, 4]}, "is dynamic and has shapes"),
        ("programs.0.bytes", -1, "out of bounds"),
        ("programs.0.bytes", 1.5, "expected a whole number, got 1.5"),
        ("inputs.0.datatype", "FP99", "datatype 'FP99' is not known"),
        ("inputs.0.shape", [-2, 4], "[-2, 4] is no shape"),
        ("inputs.0.shape", [1] * 65, "expected a shape"),
        ("inputs.0.shape", [1 << 50], "is no shape"),
        ("inputs.0.name", "z", "does not fit the inputs"),
        ("profiles", [], "a profile"),
        ("profiles.0.maximum", {"x": [0, 4]}, "contradict each other"),
        ("profiles.0.maximum", {"z": [8, 4]}, "contradict each other"),
        ("buckets", [{"shapes": {"x": [1, 4]}, "program": 2, "microseconds": 1}], "names program 2 of 2"),
        ("buckets", [{"shapes": {"x": [1, 5]}, "program": 0, "microseconds": 1}], "buckets[0] does not fit"),
        ("buckets", [{"shapes": {"x": [1, 4]}, "program": 0, "microseconds": -1}], "expected a number from 0"),
        ("fingerprint.features", [1], "fingerprint.features: expected str, got 1"),
        ("fingerprint.cores", None, "expected a whole number, got None"),
        ("reductions", [{"output": "y", "axis": 1, "beside": 1}], "expected bool, got 1"),
        ("outputs", {}, "manifest.outputs: expected a list"),
        ("options", [], "manifest.options: expected an object"),
    ],
)
def test_a_manifest_that_no_build_wrote_is_refused_even_with_the_right_hash(
    key: str, value: object, reason: str, engine: Path
) -> None:
    rezip(engine, resealed(contents(engine), edit(key, value)))
    assert reason in refused(engine)


def test_a_manifest_written_by_another_hand_with_the_right_hash_is_read(engine: Path) -> None:
    rezip(engine, resealed(contents(engine), edit("name", "renamed")))
    assert sealed.read(engine).manifest.name == "renamed"


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_members_are_refused(method: int, engine: Path) -> None:
    rezip(engine, contents(engine), compression=method)
    assert "is packed" in refused(engine)


def test_a_bomb_is_refused_before_it_is_unpacked(engine: Path) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", b" " * (100 << 20))
    engine.write_bytes(bomb.getvalue())
    assert "is packed" in refused(engine)


def test_a_directory_of_a_million_entries_is_refused_unread(engine: Path) -> None:
    """The end record claims a large directory: what it says is compared with a bound before anything is made of it."""
    entry = struct.Struct("<4s4B4HL2L5H2L").pack(b"PK\x01\x02", *[0] * 18)
    directory = entry * 1_000_000
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 65535, 65535, len(directory), 0, 0)
    engine.write_bytes(directory + end)
    assert f"its directory has {len(directory)} bytes" in refused(engine)


def test_doubled_members_are_refused(engine: Path) -> None:
    held = contents(engine)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(engine, "a") as archive:
        archive.writestr("evidence.json", held["evidence.json"])
    assert "'evidence.json' has no place" in refused(engine)


def test_encrypted_and_streamed_members_are_refused(engine: Path) -> None:
    whole = engine.read_bytes()
    central = whole.index(b"PK\x01\x02")
    for flag in (0x1, 0x8):
        changed = bytearray(whole)
        changed[central + 8] |= flag
        engine.write_bytes(changed)
        assert "is packed" in refused(engine)


def test_overlapping_members_are_refused(engine: Path) -> None:
    """Two names for the same bytes: what a reader checks under one name another would read under the other."""
    whole = bytearray(engine.read_bytes())
    first = whole.index(b"PK\x01\x02")
    second = whole.index(b"PK\x01\x02", first + 4)
    whole[second + 42 : second + 46] = whole[first + 42 : first + 46]
    engine.write_bytes(whole)
    assert "is not where the directory says" in refused(engine)


@pytest.mark.parametrize(
    "data", [b"", b"PK", b"PK\x05\x06" + bytes(18), b"not an engine" * 100, b"\x08\x09" + bytes(5000)]
)
def test_what_is_no_engine_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.engine"
    path.write_bytes(data)
    assert "is no engine" in refused(path)


def test_a_missing_engine_is_named_without_its_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"^engine 'absent\.engine' does not exist$"):
        check(tmp_path / "absent.engine")
    (tmp_path / "folder.engine").mkdir()
    with pytest.raises(ModelLoadError, match=r"can't be read: Is a directory"):
        sealed.read(tmp_path / "folder.engine")


def test_no_descriptor_is_left_behind(engine: Path) -> None:
    whole = engine.read_bytes()
    before = set(Path("/proc/self/fd").iterdir())
    for _ in range(20):
        assert sealed.read(engine).manifest.name == "test"
        engine.write_bytes(whole[:-1])
        with pytest.raises(ModelLoadError):
            sealed.read(engine)
        engine.write_bytes(whole)
    assert len(set(Path("/proc/self/fd").iterdir()) - before) <= 1


def test_bounds_are_those_of_the_limits_file(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ENGINE_JSON_BYTES", 100)
    assert "expected at most 100" in refused(engine)


def test_a_manifest_survives_the_round_trip_with_everything_in_it(
    made: tuple[Manifest, dict[str, bytes | Path]], tmp_path: Path
) -> None:
    manifest = replace(made[0], name="µ", options={"budget": 3, "deep": {"list": [1, None, True, "x"]}})
    sealed.write(tmp_path / "m.engine", manifest, made[1], {})
    assert sealed.read(tmp_path / "m.engine").manifest == manifest
