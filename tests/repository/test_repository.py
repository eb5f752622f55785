"""Model directories on disk: names, versions, loading, files that come with a load, and attempts to leave."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from penstock.errors import ConfigError, InvalidArgument, ModelLoadError, NotFound, PenstockError, ResourceExhausted
from penstock.repository import IndexEntry, Model, Repository
from tests import onnx_models


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """scale/1..3 multiply by their version; the directory above holds what must not be reached."""
    root = tmp_path / "models"
    for version in (1, 2, 10):
        onnx_models.scale(root / "scale" / str(version) / "model.onnx", version)
    onnx_models.scale(tmp_path / "outside" / "1" / "model.onnx", 99)
    return root


def answer(model: Model) -> float:
    instance = model.backend.instance(0, 1, None)
    try:
        return float(instance.execute({"x": np.ones((1, 4), np.float32)})["y"][0, 0])
    finally:
        instance.close()


def load(root: Path, name: str = "scale", config: str | None = None) -> dict[int, float]:
    """{version: its answer} of what loads."""
    models = Repository([root]).load(name, config)
    try:
        return {model.version: answer(model) for model in models}
    finally:
        for model in models:
            model.close()


def test_the_latest_version_is_loaded_by_default_and_numbers_count_as_numbers(root: Path) -> None:
    assert load(root) == {10: 10.0}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("latest { num_versions: 2 }", [2, 10]),
        ("all {}", [1, 2, 10]),
        ("specific { versions: [ 1, 7 ] }", [1]),
    ],
)
def test_version_policies_choose(policy: str, expected: list[int], root: Path) -> None:
    (root / "scale" / "config.pbtxt").write_text(f"version_policy {{ {policy} }}")
    assert list(load(root)) == expected


def test_a_policy_that_finds_nothing_lists_what_there_is(root: Path) -> None:
    (root / "scale" / "config.pbtxt").write_text("version_policy { specific { versions: 7 } }")
    with pytest.raises(ModelLoadError, match=r"no version that its version_policy asks for \(found: 1, 2, 10\)"):
        load(root)


def test_a_loaded_model_has_a_finished_configuration(root: Path) -> None:
    (model,) = Repository([root]).load("scale")
    assert (model.name, model.version, model.config.max_batch_size) == ("scale", 10, 4)
    assert model.config.message.default_model_filename == "model.onnx"
    assert '"dims":[4]' in model.config.to_json()
    model.close()
    model.close()


def test_a_configuration_sent_with_the_load_replaces_the_file(root: Path) -> None:
    (root / "scale" / "config.pbtxt").write_text("this is not read")
    config = '{"max_batch_size": 7, "version_policy": {"all": {}}}'
    models = Repository([root]).load("scale", config)
    assert [model.config.max_batch_size for model in models] == [7, 7, 7]
    assert len({id(model.config.message) for model in models}) == 3


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_backend_of_the_configuration_chooses_the_runtime(backend: str, root: Path) -> None:
    (model,) = Repository([root]).load("scale", f'{{"backend": "{backend}"}}')
    assert model.backend.name == model.config.message.backend == backend
    assert answer(model) == 10.0


def test_reshape_is_seen_by_clients_only(root: Path) -> None:
    config = '{"max_batch_size": 2, "input": [{"name": "x", "dims": [2, 2], "reshape": {"shape": [4]}}]}'
    (model,) = Repository([root]).load("scale", config)
    instance = model.backend.instance(0, 1, None)
    assert instance.execute({"x": np.ones((1, 2, 2), np.float32)})["y"].shape == (1, 4)


def test_names_and_versions_are_plain(root: Path) -> None:
    for name in ("with space", ".git", "ümlaut", "a:b"):
        (root / name / "1").mkdir(parents=True)
    for version in ("0", "01", "-1", "x", "1.0", "9" * 19):
        (root / "scale" / version).mkdir()
    (root / "a-file").write_text("")
    (root / "empty").mkdir()
    repository = Repository([root])
    assert repository.names() == ["empty", "scale"]
    assert repository.versions("scale") == [1, 2, 10]
    assert repository.index() == [IndexEntry("empty", ()), IndexEntry("scale", (1, 2, 10))]


@pytest.mark.parametrize(
    "name", ["..", ".", "../outside", "a/../scale", " ..", "%2e%2e", "", "a\0b", "x" * 256, "/etc"]
)
def test_names_that_are_no_names_are_refused_everywhere(name: str, root: Path) -> None:
    repository = Repository([root])
    for operation in (repository.load, repository.versions, repository.fingerprint):
        with pytest.raises(InvalidArgument, match="is not allowed"):
            operation(name)
    with pytest.raises(InvalidArgument, match="is not allowed"):
        repository.load(name, "{}", {"1/model.onnx": b""})


def test_an_unknown_model_is_not_found(root: Path) -> None:
    with pytest.raises(NotFound, match="model 'absent' is not in the repository"):
        Repository([root]).load("absent")


def test_a_root_that_is_no_directory_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"model repository 'nowhere' is not a directory"):
        Repository([tmp_path / "nowhere"])


def test_several_roots_are_one_repository_unless_they_hold_the_same_name(root: Path, tmp_path: Path) -> None:
    onnx_models.scale(tmp_path / "more" / "other" / "1" / "model.onnx", 5)
    repository = Repository([root, tmp_path / "more"])
    assert repository.names() == ["other", "scale"]
    onnx_models.scale(tmp_path / "more" / "scale" / "1" / "model.onnx", 5)
    with pytest.raises(ConfigError, match="'scale' is in 2 repositories"):
        repository.load("scale")
    assert [entry.problem is None for entry in repository.index()] == [True, False]


@pytest.mark.parametrize("place", ["model", "version", "file", "config", "weights"])
def test_links_that_leave_the_repository_are_refused(place: str, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    directory = root / "linked"
    match place:
        case "model":
            directory.symlink_to(outside)
        case "version":
            directory.mkdir()
            (directory / "1").symlink_to(outside / "1")
        case "file":
            (directory / "1").mkdir(parents=True)
            (directory / "1" / "model.onnx").symlink_to(outside / "1" / "model.onnx")
        case "config":
            shutil.copytree(root / "scale", directory)
            (outside / "config.pbtxt").write_text("max_batch_size: 4")
            (directory / "config.pbtxt").symlink_to(outside / "config.pbtxt")
        case "weights":
            (directory / "1").mkdir(parents=True)
            (directory / "1" / "model.xml").write_text("<net/>")
            (directory / "1" / "model.bin").symlink_to(outside / "1" / "model.onnx")
    with pytest.raises(ModelLoadError, match="leads out of the repository") as caught:
        Repository([root]).load("linked")
    assert str(tmp_path) not in caught.value.message


def test_links_within_the_repository_are_followed(root: Path) -> None:
    (root / "alias").symlink_to(root / "scale")
    assert load(root, "alias") == {10: 10.0}
    (root / "mounted" / "..data" / "1").mkdir(parents=True)
    shutil.copy(root / "scale" / "2" / "model.onnx", root / "mounted" / "..data" / "1" / "model.onnx")
    (root / "mounted" / "1").symlink_to(Path("..data") / "1")
    assert load(root, "mounted") == {1: 2.0}


@pytest.mark.parametrize(
    ("files", "config", "message"),
    [
        (
            ["model.py"],
            "",
            "version 1 has model.py, expected model.engine or model.onnx or model.xml; served are model",
        ),
        (["model.engine"], "", "model.engine is no engine, or it is cut"),
        (["model.engine", "model.onnx"], "", "model.engine is no engine, or it is cut"),
        (["model.engine"], 'backend: "openvino"', "has model.engine, expected model.xml or model.onnx"),
        (["model.onnx"], 'backend: "penstock_engine"', "has model.onnx, expected model.engine"),
        (
            ["model.onnx"],
            'backend: "penstock_engine" default_model_filename: "model.onnx"',
            "backend 'penstock_engine' does not run 'model.onnx'",
        ),
        (
            ["model.engine"],
            'backend: "openvino" default_model_filename: "model.engine"',
            "backend 'openvino' does not run 'model.engine'",
        ),
        (["model.pt2"], "", "has model.pt2, expected"),
        ([], "", "has no files, expected"),
        (["model.onnx"], 'backend: "tensorrt"', "backend 'tensorrt' is not served, expected penstock_engine, onnx"),
        (["model.onnx"], 'backend: "python"', "backend 'python' is not served"),
        (["model.onnx"], 'platform: "pytorch_libtorch"', "backend 'pytorch_libtorch' is not served"),
        (["model.onnx"], 'default_model_filename: "../1/model.onnx"', "must be a plain name"),
        (["model.onnx"], 'default_model_filename: "model.py"', "must be a plain name"),
        (["model.onnx"], 'default_model_filename: "other.onnx"', "has model.onnx, expected other.onnx"),
        (["model.onnx"], "", "model.onnx is not an ONNX model"),
        (["model.xml"], "", "model.xml can't be loaded by OpenVINO"),
    ],
)
def test_what_is_not_served_is_refused_by_name(files: list[str], config: str, message: str, tmp_path: Path) -> None:
    directory = tmp_path / "m"
    (directory / "1").mkdir(parents=True)
    for name in files:
        (directory / "1" / name).write_text("not a model")
    if config:
        (directory / "config.pbtxt").write_text(config)
    with pytest.raises(PenstockError, match=message) as caught:
        Repository([tmp_path]).load("m")
    assert caught.value.http_status == 400
    assert str(tmp_path) not in caught.value.message


def test_a_configuration_that_is_no_text_is_refused(root: Path) -> None:
    (root / "scale" / "config.pbtxt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"config\.pbtxt of model 'scale' can't be read: it is not UTF-8"):
        load(root)


def test_one_bad_version_fails_the_load_as_a_whole(root: Path) -> None:
    (root / "scale" / "11").mkdir()
    (root / "scale" / "11" / "model.onnx").write_bytes(b"bad")
    (root / "scale" / "config.pbtxt").write_text("version_policy { all {} }")
    with pytest.raises(ModelLoadError, match=r"model\.onnx is not an ONNX model"):
        load(root)


class Sent:
    """Loads with files, in a temporary directory of its own that can be looked into."""

    def __init__(self, root: Path, temporary: Path) -> None:
        self.repository = Repository([root])
        self.temporary = temporary

    def left(self) -> list[Path]:
        return list(self.temporary.rglob("*"))


@pytest.fixture
def sent(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sent:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return Sent(root, temporary)


@pytest.mark.parametrize("prefix", ["", "file:"])
def test_files_of_a_load_are_loaded_and_removed_with_the_last_model(prefix: str, root: Path, sent: Sent) -> None:
    content = (root / "scale" / "2" / "model.onnx").read_bytes()
    files = {f"{prefix}3/model.onnx": content, f"{prefix}4/model.onnx": content}
    models = sent.repository.load("fresh", '{"version_policy": {"all": {}}}', files)
    assert {model.version: answer(model) for model in models} == {3: 2.0, 4: 2.0}
    models[0].close()
    models[0].close()
    assert sent.left()
    models[1].close()
    assert sent.left() == []


def test_files_that_do_not_load_are_removed_at_once(sent: Sent) -> None:
    with pytest.raises(ModelLoadError, match=r"model\.onnx is not an ONNX model"):
        sent.repository.load("fresh", "{}", {"1/model.onnx": b"bad"})
    assert sent.left() == []


@pytest.mark.parametrize(
    "name",
    [
        "../../x",
        "../x",
        "1/../../x",
        "/etc/passwd",
        "1//model.onnx",
        "",
        "1/",
        ".",
        "1/..",
        "1\\model.onnx",
        "1/a b",
        "1/\0",
        "1/" + "x" * 256,
        "/".join("1" * 9),
        "%2e%2e/x",
        "1/ä",
    ],
)
def test_file_names_that_could_leave_are_refused_and_nothing_is_written(name: str, sent: Sent) -> None:
    with pytest.raises(InvalidArgument, match="is refused"):
        sent.repository.load("fresh", "{}", {"1/model.onnx": b"good", f"file:{name}": b"bad"})
    assert sent.left() == []


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({"1/a": b"", "file:1/a": b""}, InvalidArgument),
        ({"1/a": b"", "1/a/b": b""}, InvalidArgument),
        ({f"1/{index}": b"" for index in range(65)}, ResourceExhausted),
    ],
)
def test_files_that_collide_or_are_too_many_are_refused(
    files: Mapping[str, bytes], error: type[PenstockError], sent: Sent
) -> None:
    with pytest.raises(error):
        sent.repository.load("fresh", "{}", files)
    assert sent.left() == []


def test_files_need_a_configuration(sent: Sent) -> None:
    with pytest.raises(InvalidArgument, match="add the parameter config"):
        sent.repository.load("fresh", None, {"1/model.onnx": b""})


def test_a_fingerprint_changes_with_the_files_and_only_then(root: Path) -> None:
    repository = Repository([root])
    seen = [repository.fingerprint("scale")]
    assert repository.fingerprint("scale") == seen[0]

    def changed() -> bool:
        seen.append(repository.fingerprint("scale"))
        return len(set(seen)) == len(seen)

    path = root / "scale" / "1" / "model.onnx"
    os.utime(path, ns=(1, 1))
    assert changed()
    path.write_bytes(path.read_bytes() + b"\0")
    assert changed()
    (root / "scale" / "config.pbtxt").write_text("")
    assert changed()
    path.unlink()
    assert changed()
    (root / "scale" / "11").mkdir()
    assert changed()
    (root / "scale" / "loop").symlink_to(root / "scale")
    assert changed()
