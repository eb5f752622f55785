"""Wrong usage: every verb says which flag, what was expected and what was given, exits 2, and does nothing before."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock import cli
from tests.servers.onnx_files import write_scale

Run = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command where scale.onnx is; gives what it says on standard error, on one line, after exit 2."""
    write_scale(tmp_path / "scale.onnx", 2)
    monkeypatch.chdir(tmp_path)
    # Boxes break lines where the terminal ends, whose width is read when the library is imported.
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 1000)

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["penstock", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert (ended.value.code, said.out) == (2, ""), said.err
        assert "Usage: " in said.err
        return " ".join(said.err.split())

    return run


@pytest.mark.parametrize("name", ["scale.onnx", "copy.onnx", "notes.txt"])
def test_a_timing_cache_never_replaces_another_file(name: str, refused: Run) -> None:
    if not Path(name).exists():
        Path(name).write_text("notes of mine\n")
    before = Path(name).read_bytes()
    said = refused("build", "scale.onnx", "-o", "new.engine", "--timing-cache", name)
    assert "--timing-cache: expected a timing cache, or a file that does not exist yet; this is another kind" in said
    assert f"got '{name}'" in said
    assert Path(name).read_bytes() == before
    assert not Path("new.engine").exists()


HUGE = "99999999999999999999999"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--batching", "x"), "--batching: expected auto or triton, got 'x'"),
        (("--model-control-mode", "foo"), "--model-control-mode: expected none, poll or explicit, got 'foo'"),
        (("--load-model", "x"), "--load-model: expected none in the control mode none; only explicit loads by name"),
        (("--exit-timeout-secs", "-1"), "--exit-timeout-secs: expected more than 0 seconds and at most 31536000"),
        (("--exit-timeout-secs", "1e30"), "--exit-timeout-secs: expected more than 0 seconds and at most 31536000"),
        (("--exit-timeout-secs", "inf"), "--exit-timeout-secs: expected more than 0 seconds and at most 31536000"),
        (("--repository-poll-secs", "0"), "--repository-poll-secs: expected more than 0 seconds"),
        (("--max-body-bytes", "0"), "--max-body-bytes: expected an integer from 1 to 1099511627776"),
        (("--max-body-bytes", HUGE), f"got {HUGE}"),
        (("--io-threads", "0"), "--io-threads: expected an integer from 1 to 256, got 0"),
        (("--io-threads", "1000000"), "--io-threads: expected an integer from 1 to 256, got 1000000"),
        (("--instances", "0"), "--instances: expected an integer from 1 to 1024, got 0"),
        (("--instances", HUGE), f"--instances: expected an integer from 1 to 1024, got {HUGE}"),
        (("--http-address", ""), "--http-address: expected an IP address such as 127.0.0.1, or localhost, got ''"),
        (("--grpc-address", "nowhere.invalid"), "--grpc-address: expected an IP address"),
        (("--log-verbose", "7"), "'--log-verbose'"),
        (("--log-verbose", "-1"), "'--log-verbose'"),
        (("--runtime", "torch"), "--runtime: expected one of onnxruntime, openvino, got 'torch'"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_flags_of_serve(arguments: tuple[str, ...], said: str, refused: Run) -> None:
    free = ("--http-port=0", "--grpc-port=0", "--metrics-port=0")
    assert said in refused("serve", "scale.onnx", *free, *arguments)


def test_what_a_program_gets_wrong_is_not_wrong_usage_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wrong_app.py").write_text("import penstock as ps\nserver = ps.Server(http_port=70000)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["penstock", "serve", "wrong_app:server"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--contexts", "0"), "--contexts: expected from 1 to 16, got 0"),
        (("--budget", "0s"), "--budget: expected more than none and at most a year, as in 5m, got 0.0"),
        (("--budget", "99999999999h"), "--budget: expected more than none and at most a year"),
        (("--workspace", "0.1B"), "--workspace: expected at least one byte"),
        (("--preprocess", "x:foo"), "preprocess 'x:foo': 'foo' is unknown"),
        (("--reduce", "y:foo"), "reduce 'y:foo' can't be read"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_flags_of_build(arguments: tuple[str, ...], said: str, tmp_path: Path, refused: Run) -> None:
    assert said in refused("build", "scale.onnx", "-o", "new.engine", *arguments)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["scale.onnx"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-i", "foo"), "--protocol: expected http or grpc, got 'foo'"),
        (("--measurement-mode", "foo"), "--measurement-mode: expected time_windows or count_windows, got 'foo'"),
        (("--request-distribution", "foo"), "--request-distribution: expected poisson or constant, got 'foo'"),
        (("--input-tensor-format", "foo"), "--input-tensor-format: expected binary or json, got 'foo'"),
        (("--concurrency-range", "a"), "--concurrency-range: expected start:end:step, as in 1:16:1, got 'a'"),
        (("--request-rate-range", "1:5000"), "--request-rate-range: expected at most 1000 levels"),
        (("--concurrency-range", "1", "--request-rate-range", "1"), "give one of --concurrency-range"),
        (("--streaming",), "only gRPC has streams"),
        (("--binary-search",), "give one"),
        (("-u", "localhost:abc"), "--url: expected host:port, as in localhost:8000, got 'localhost:abc'"),
        (("-H", "a"), "-H: expected NAME:VALUE, got 'a'"),
        (("-H", "Content-Length: 5"), "-H: Content-Length is the generator's to say"),
        (("--shape", "x:0"), "--shape: expected NAME:D1,D2, as in x:3,224,224, got 'x:0'"),
        (("--shape", "x:\u00b2"), "--shape: expected NAME:D1,D2"),
        (("--seed", "-1"), "'--seed'"),
        (("-p", HUGE), "'-p'"),
        (("--warm-up", "1e30"), "'--warm-up'"),
        (("--warm-up", "nan"), "'--warm-up'"),
        (("--request-timeout", "inf"), "'--request-timeout'"),
        (("-l", "-1"), "'-l'"),
        (("-l", "nan"), "'-l'"),
        (("--start-sequence-id", HUGE), "'--start-sequence-id'"),
        (("--string-length", "99999999999"), "'--string-length'"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_flags_of_bench(arguments: tuple[str, ...], said: str, refused: Run) -> None:
    """Before anything is asked of a server: there is none."""
    assert said in refused("bench", "-m", "double", "-u", "127.0.0.1:1", *arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--runtime", "foo"), "--runtime: expected one of onnxruntime, openvino, got 'foo'"),
        (("--duration", "inf"), "'--duration'"),
        (("--duration", "nan"), "'--duration'"),
        (("--warmUp", "1e30"), "'--warmUp'"),
        (("--threads", "100000"), "'--threads'"),
        (("--streams", "100000"), "'--streams'"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_flags_of_time(arguments: tuple[str, ...], said: str, refused: Run) -> None:
    assert said in refused("time", "scale.onnx", *arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("time", "absent.engine"), "engine 'absent.engine' does not exist"),
        (("compare", "scale.onnx", "absent.engine"), "engine 'absent.engine' does not exist"),
        (("time", "folder.engine"), "'folder.engine' is a directory, expected the name of an engine"),
        (("inspect", "folder.onnx"), "folder.onnx is a directory, expected an engine"),
        (("inspect", "absent"), "'absent' does not exist"),
        (("time", "scale.onnx", "--inputs", "absent.npz"), "inputs 'absent.npz' do not exist; expected a .npz file or"),
        (("time", "scale.onnx", "--shapes", "x:99999999999x4"), "takes 1599999999984 bytes, and "),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_what_is_wrong_with_files_exits_1(
    arguments: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_scale(tmp_path / "scale.onnx", 2)
    for name in ("folder.engine", "folder.onnx"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["penstock", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
