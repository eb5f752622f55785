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
