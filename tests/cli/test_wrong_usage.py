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
    # Boxes break lines where the terminal ends.
    monkeypatch.setenv("TERMINAL_WIDTH", "1000")

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
        (("--log-verbose", "7"), "7 is not in the range 0<=x<=2"),
        (("--log-verbose", "-1"), "-1 is not in the range 0<=x<=2"),
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
