"""Machine code of CUDA C++ is compiled once for all builds, and again where what lies on disk is not whole."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from penstock.engine.cuda.kernels import cpp_launching, nvrtc
from penstock.engine.cuda.kernels.cubins import Cubins, key_of
from penstock.engine.cuda.kernels.nvrtc import Compiled

pytestmark = pytest.mark.torch

MADE = Compiled(b"\x7fELF\n\n code", 40, 16)
KEY = "k" * 64


def test_what_was_kept_is_found_by_the_next(tmp_path: Path) -> None:
    Cubins(tmp_path / "new").keep(KEY, MADE)
    assert Cubins(tmp_path / "new").find(KEY) == MADE
    assert Cubins(tmp_path / "new").find("other") is None
    assert [each.name for each in (tmp_path / "new").iterdir()] == [f"{KEY}.cubin"]


@pytest.mark.parametrize(
    "spoil",
    [lambda kept: kept[:-1], lambda kept: kept.replace(b"ELF", b"ELV"), lambda kept: b"", lambda kept: b"[]\n code"],
)
def test_what_is_not_whole_is_not_found(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    Cubins(tmp_path).keep(KEY, MADE)
    (path,) = tmp_path.iterdir()
    path.write_bytes(spoil(path.read_bytes()))
    assert Cubins(tmp_path).find(KEY) is None


def test_a_folder_that_cannot_be_written_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    Cubins(tmp_path / "file").keep(KEY, MADE)
    assert Cubins(tmp_path / "file").find(KEY) is None


def test_the_oldest_go_when_there_are_many_and_what_is_used_stays(tmp_path: Path) -> None:
    cubins = Cubins(tmp_path, most=4)
    for number in range(4):
        cubins.keep(str(number), MADE)
        os.utime(tmp_path / f"{number}.cubin", (number, number))
    assert cubins.find("0") == MADE
    cubins.keep("4", MADE)
    assert {each.stem for each in tmp_path.iterdir()} == {"0", "2", "3", "4"}


def test_texts_do_not_run_into_each_other() -> None:
    assert len({key_of(["ab", "c"]), key_of(["a", "bc"]), key_of(["abc"])}) == 3


@pytest.mark.skipif(not nvrtc.available(), reason="there is no NVRTC here")
def test_a_kernel_is_compiled_once_for_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cpp_launching, "_known", {})  # as another process has it
    source = 'extern "C" __global__ void kernel(float *x) { x[0] = NUMBER; }'
    monkeypatch.setattr(cpp_launching, "text", lambda name: source if name == "small.cu" else "")
    first = cpp_launching.compiled("small.cu", ("-DNUMBER=1",), 90)
    cpp_launching._known.clear()
    (path,) = (tmp_path / "penstock" / "kernels").iterdir()
    kept = Compiled(first.cubin, first.registers + 1, 0)
    Cubins(path.parent).keep(path.stem, kept)  # so that it is seen where the answer comes from
    assert cpp_launching.compiled("small.cu", ("-DNUMBER=1",), 90) == kept
    assert cpp_launching.compiled("small.cu", ("-DNUMBER=2",), 90).registers != kept.registers
