"""What a program for a GPU is read from: choices and machine code, none of which is believed."""

import base64
import json
import os
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from penstock.engine.cuda import artifact
from penstock.engine.cuda.kernels.driver import AnyMap, PixelsMap, TensorMap, WindowMap
from penstock.errors import ModelLoadError

pytestmark = pytest.mark.torch


def elf(**changes: int) -> bytes:
    """Machine code of no instruction: a header, sixteen bytes, two sections and a segment."""
    fields = {
        "machine": 190, "segments_at": 208, "sections_at": 80, "header_size": 64, "segment_size": 56, "segments": 1,
        "section_size": 64, "sections": 2, "names": 1, "kind": 1, "begin": 64, "size": 16,
        "segment_begin": 64, "segment_bytes": 16,
    } | changes  # fmt: skip
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, fields["machine"], 1, 0, fields["segments_at"],
        fields["sections_at"], 0, fields["header_size"], fields["segment_size"], fields["segments"],
        fields["section_size"], fields["sections"], fields["names"],
    )  # fmt: skip
    section = struct.pack("<IIQQQQIIQQ", 0, fields["kind"], 0, 0, fields["begin"], fields["size"], 0, 0, 1, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, fields["segment_begin"], 0, 0, fields["segment_bytes"], 16, 8)
    return header + bytes(16) + bytes(64) + section + segment


def text(code: bytes) -> str:
    return base64.b64encode(code).decode()


def lying(kernel: Mapping[str, object] | None = None, **changes: object) -> bytes:
    one = {
        "code": 0, "symbol": "k", "grid": [1, 1, 1], "threads": 32, "shared_bytes": 0, "parameters": "p", "maps": [],
        "early": False, "cluster": 1,
    }  # fmt: skip
    data = {
        "format": 2, "side": [3], "shapes": {"x": [1]}, "precision": "fp16", "choices": {}, "early_launch": False,
        "codes": [text(elf())], "kernels": [one | dict(kernel or {})],
    }  # fmt: skip
    return json.dumps(data | changes).encode()


def test_an_artifact_comes_back_as_it_was() -> None:
    found = artifact.from_bytes(lying(), "m.engine")
    assert artifact.from_bytes(memoryview(artifact.to_bytes(found)), "m.engine") == found
    assert found.kernels[0].cubin == elf()


@pytest.mark.parametrize(
    "seen",
    [
        TensorMap(2, 333, 72, 160, 128, 64),
        PixelsMap(2, 8, 56, 56, 64, 128, 7168, 401408, 64, 8, 10, 2),
        WindowMap(1, 8, 56, 57, 64, 64, 3648, 204288, 64, 192, 3, 5, 1, 2, 1, 2, 2, 1),
    ],
    ids=["a matrix", "squares of pixels", "taps of a window"],
)
def test_what_is_seen_through_maps_comes_back_too(seen: AnyMap) -> None:
    found = artifact.from_bytes(lying({"parameters": "mp", "maps": [astuple(seen)]}), "m.engine")
    assert found.kernels[0].maps == (seen,)
    assert artifact.from_bytes(artifact.to_bytes(found), "m.engine") == found


LIES = {
    "nothing": b"",
    "a row": b"[]",
    "no text": b"\xff\xfe",
    "another format": lying(format=1),
    "no base64": lying(codes=["!!"]),
    "code of other letters": lying(codes=["\u00e9"]),
    "code that is no text": lying(codes=[7]),
    "code that is not there": lying({"code": 1}),
    "two axes": lying({"grid": [1, 1]}),
    "a negative axis": lying({"grid": [1, 1, -1]}),
    "many threads": lying({"threads": 4096}),
    "much memory": lying({"shared_bytes": 1 << 30}),
    "a large cluster": lying({"cluster": 32}),
    "no cluster": lying({"cluster": 0}),
    "a grid that is no multiple of its clusters": lying({"grid": [3, 1, 1], "cluster": 2}),
    "an empty grid": lying({"grid": [1, 0, 1]}),
    "no threads": lying({"threads": 0}),
    "an unknown parameter": lying({"parameters": "x"}),
    "a matrix without a map": lying({"parameters": "m"}),
    "a map of five numbers": lying({"parameters": "m", "maps": [[2, 64, 64, 128, 64]]}),
    "a map that is no list": lying({"parameters": "m", "maps": [7]}),
    "a map of three bytes": lying({"parameters": "m", "maps": [[3, 64, 64, 192, 64, 64, 1]]}),
    "a choice of texts": lying(choices={"a": ["triton", ["1"]]}),
    "a shape that is none": lying(shapes={"x": "1"}),
    "a side of texts": lying(side=["1"]),
    "a side that is a number": lying(side=7),
    "deep": b"[" * 100_000,
    "empty code": lying(codes=[""]),
    "zeros": lying(codes=["AAAA"]),
    "32 bits": lying(codes=[text(elf().replace(b"ELF\x02", b"ELF\x01"))]),
    "big-endian": lying(codes=[text(elf().replace(b"ELF\x02\x01", b"ELF\x02\x02"))]),
    **{
        f"{name} {value}": lying(codes=[text(elf(**{name: value}))])
        for name, value in {
            "machine": 62, "segments_at": 209, "sections_at": 2**63, "header_size": 32, "segment_size": 32,
            "segments": 2, "section_size": 32, "sections": 5, "names": 2, "begin": 2**63, "size": 2**64 - 1,
            "segment_begin": 264, "segment_bytes": 300,
        }.items()
    },
    "no sections": lying(codes=[text(elf(sections=0, names=0))]),
}  # fmt: skip


@pytest.mark.parametrize("data", LIES.values(), ids=LIES.keys())
def test_an_artifact_that_lies_is_refused(data: bytes) -> None:
    with pytest.raises(ModelLoadError, match="build it again"):
        artifact.from_bytes(data, "m.engine")


def test_a_section_without_content_may_end_anywhere() -> None:
    found = artifact.from_bytes(lying(codes=[text(elf(kind=8, size=2**40))]), "m.engine")
    assert len(found.kernels) == 1


def test_every_cut_of_machine_code_is_refused() -> None:
    whole = elf()
    for end in range(len(whole)):
        with pytest.raises(ModelLoadError):
            artifact.from_bytes(lying(codes=[text(whole[:end])]), "m.engine")


def test_every_changed_bit_of_an_artifact_is_refused_or_reads_as_one() -> None:
    data, random, refused = lying(), np.random.default_rng(2), 0
    for place in random.integers(0, len(data), 500):
        changed = bytearray(data)
        changed[place] ^= 1 << int(random.integers(0, 8))
        try:
            artifact.from_bytes(bytes(changed), "m.engine")
        except ModelLoadError:
            refused += 1
    assert 50 < refused < 500


# In a process of its own: this one may have defined the kernels for the interpreter.
COMPILES = """
import sys, torch
from penstock.engine.cuda.kernels.moves import planes_to_pixels_launch
planes, pixels = (torch.empty(shape, device="meta") for shape in ((1, 3, 64, 64), (1, 64, 64, 4)))
sys.stdout.buffer.write(planes_to_pixels_launch(planes, out=pixels).seal(int(sys.argv[1])).cubin)
"""


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_what_a_compiler_made_is_read_and_what_is_left_of_it_is_not(capability: int, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    code = subprocess.run(
        [sys.executable, "-c", COMPILES, str(capability)], env=environment, capture_output=True, check=True
    ).stdout
    assert artifact.from_bytes(lying(codes=[text(code)]), "m.engine").kernels[0].cubin == code
    for end in (0, 64, len(code) // 2, len(code) - 1):
        with pytest.raises(ModelLoadError):
            artifact.from_bytes(lying(codes=[text(code[:end])]), "m.engine")
