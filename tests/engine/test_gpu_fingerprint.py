"""Engines for a GPU on machines that have it, another one, or none: what `check` and builds make of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.build.target import target
from penstock.engine import check, fingerprint, gpus, sealed
from penstock.engine.check import judge
from penstock.engine.gpus import Gpu
from penstock.engine.plan import LOWERED, Fingerprint, Tactic
from penstock.engine.runtimes import LIBRARIES
from penstock.errors import Unsupported
from tests import onnx_models
from tests.engine import engines

H200 = Gpu(0, "NVIDIA H200", 90, 132, 150 << 30, "13.0")
SMALLER = Gpu(1, "NVIDIA L4", 89, 58, 24 << 30, "13.0")


def machine(found: Sequence[Gpu], patch: pytest.MonkeyPatch) -> None:
    """A machine with these GPUs: the driver's answers are all that is replaced."""
    patch.setattr(gpus, "gpus", lambda: tuple(found))
    patch.delenv(gpus.DEVICE, raising=False)


def test_this_machine_is_asked_and_never_fails() -> None:
    for each in gpus.gpus():
        assert each.name
        assert each.capability >= 30
        assert each.bytes > 0


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    return onnx_models.scale(tmp_path / "m.onnx", 1)


def built(gpu: Gpu, **libraries: str) -> Fingerprint:
    return Fingerprint(
        f"cuda:{gpu.name}", "a processor", (f"multiprocessors_{gpu.multiprocessors}", f"sm_{gpu.capability}"), 16,
        {"torch": "2.11", "triton": "3.6", "cuda-driver": "13.0", "openvino": "1", "onnxruntime": "1", **libraries},
    )  # fmt: skip


def without(machine: Fingerprint, library: str) -> Fingerprint:
    return replace(machine, libraries={name: each for name, each in machine.libraries.items() if name != library})


@pytest.mark.parametrize(
    ("was", "here", "action", "words"),
    [
        (built(H200), built(H200), "run", ""),
        (built(H200), replace(built(H200), cores=2, model="another"), "run", ""),
        (built(H200), built(H200, openvino="2"), "run", ""),
        (built(H200), built(H200, torch="2.12"), "run", "timed with torch 2.11"),
        (built(H200), built(SMALLER), "retune", "sm_89"),
        (built(H200), without(built(H200), "triton"), "refuse", "triton is not installed"),
        (built(H200), fingerprint.here(), "refuse", "built for cuda:NVIDIA H200, this is cpu"),
        (fingerprint.here(), built(H200), "refuse", "this is cuda:NVIDIA H200"),
    ],
)
def test_what_is_done_with_an_engine(
    was: Fingerprint, here: Fingerprint, action: str, words: str, identity: Path
) -> None:
    plan = engines.Plan(identity, engines.profile("x", (1, 4), (1, 4), (8, 4)), machine=was)
    manifest, _ = engines.members(plan)
    tactic = Tactic("cuda", "fp16", LOWERED, "static", options=(("steps", "tuned"),))
    program = replace(manifest.programs[0], tactic=tactic, shapes={"x": (1, 4)})
    if was.device != "cpu":
        manifest = replace(manifest, programs=(program,))
    found, reasons = judge(manifest, here)
    assert found == action
    assert words in "; ".join(reasons)
    assert bool(words) == bool(reasons)


@pytest.mark.parametrize(
    ("here", "anew"),
    [
        (built(H200), set()),
        (built(H200, onnxruntime="2"), {"onnxruntime"}),
        (replace(built(H200), model="another"), {"onnxruntime"}),
        (built(SMALLER), {"cuda"}),
        (built(SMALLER, onnxruntime="2"), {"cuda", "onnxruntime"}),
    ],
)
def test_of_programs_on_both_devices_those_are_compiled_anew_that_have_to_be(
    here: Fingerprint, anew: set[str], identity: Path, tmp_path: Path
) -> None:
    plan = engines.Plan(identity, engines.profile("x", (1, 4), (1, 4), (8, 4)), machine=built(H200))
    manifest, members = engines.members(plan)
    tactic = Tactic("cuda", "fp16", LOWERED, "static", options=(("steps", "tuned"),))
    gpu = replace(manifest.programs[0], tactic=tactic, shapes={"x": (1, 4)})
    manifest = replace(manifest, programs=(*manifest.programs, gpu))
    sealed.write(tmp_path / "m.engine", manifest, {**members, sealed.graph_member(LOWERED): b"steps"}, {})
    verdict = check(tmp_path / "m.engine", here)
    assert (verdict.action, verdict.anew) == ("retune" if anew else "run", anew)


def test_an_engine_of_a_gpu_is_refused_where_there_is_none(
    identity: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine([], monkeypatch)
    plan = engines.Plan(identity, engines.profile("x", (1, 4), (1, 4), (8, 4)), machine=built(H200))
    verdict = check(engines.seal(plan, tmp_path / "m.engine"))
    assert verdict.action == "refuse"
    assert verdict.here is not None
    assert verdict.here.device == "cpu"


@pytest.mark.parametrize(
    ("there", "asked", "device"),
    [
        ([H200, SMALLER], "", "cuda:NVIDIA H200"),
        ([H200, SMALLER], "cuda:1", "cuda:NVIDIA L4"),
        ([H200], "cuda:1", "cpu"),
        ([], "", "cpu"),
    ],
)
def test_a_machine_is_compared_by_the_gpu_that_engines_are_loaded_on(
    there: Sequence[Gpu], asked: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(there, monkeypatch)
    monkeypatch.setenv(gpus.DEVICE, asked)
    assert fingerprint.like(built(SMALLER), LIBRARIES).device == device


def test_for_an_engine_of_a_cpu_no_gpu_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    machine([H200], monkeypatch)
    monkeypatch.setattr(gpus, "gpus", lambda: pytest.fail("the driver was asked"))
    assert fingerprint.like(fingerprint.here(), LIBRARIES).device == "cpu"


def test_a_gpu_s_fingerprint_says_what_kernels_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    machine([H200, SMALLER], monkeypatch)
    found = fingerprint.here(LIBRARIES, "cuda:1")
    assert (found.device, fingerprint.of_gpu(found)) == ("cuda:NVIDIA L4", {"multiprocessors_58", "sm_89"})
    assert set(found.features) - fingerprint.of_gpu(found) == set(fingerprint.here().features)
    assert found.libraries["cuda-driver"] == "13.0"
    with pytest.raises(Unsupported, match=r"device cuda:2: there is cuda:0 \(NVIDIA H200\), cuda:1"):
        fingerprint.here(LIBRARIES, "cuda:2")


@pytest.mark.parametrize(
    ("asked", "there", "torch", "found"),
    [
        ("cpu", [H200], True, "cpu"),
        ("auto", [], True, "cpu"),
        ("auto", [H200], False, "cpu"),
        ("auto", [H200], True, "cuda:0"),
        ("cuda:1", [H200, SMALLER], True, "cuda:1"),
        ("cuda:1", [H200], True, "there is cuda:0 (NVIDIA H200) here"),
        ("cuda:0", [], True, "there is no NVIDIA GPU here"),
        ("cuda:0", [H200], False, "pip install 'penstock[cuda]'"),
    ],
)
def test_what_is_built_for(
    asked: str, there: Sequence[Gpu], torch: bool, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(there, monkeypatch)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if torch else None)
    if found.startswith(("cpu", "cuda")):
        assert target(asked) == found
    else:
        with pytest.raises(Unsupported) as caught:
            target(asked)
        assert found in caught.value.message
