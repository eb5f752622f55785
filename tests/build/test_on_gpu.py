"""What a build for a GPU decides without one: how long to tune, what earlier builds chose, and what is too large."""

import threading
import time
from pathlib import Path

import pytest

from penstock import graph
from penstock.build.on_gpu import OnGpu
from penstock.engine.cuda import form, tuning
from penstock.engine.cuda.choices import Choice
from penstock.engine.cuda.tuning import Tuning
from penstock.engine.plan import PRECISIONS, Fingerprint, Shapes
from penstock.errors import InvalidArgument
from penstock.graph.lowering import lower
from penstock.tactics import Form, TimingCache
from tests.quantize import networks

H200 = Fingerprint("cuda:NVIDIA H200", "Some CPU", ("multiprocessors_132", "sm_90"), 16, {"torch": "2.11.0"})
OTHER = Fingerprint("cuda:NVIDIA L4", "Some CPU", ("multiprocessors_58", "sm_89"), 16, {"torch": "2.11.0"})
BATCHES = (1, 4)
CHOICES = {"stem_relu": Choice("triton", (64, 32, 64, 4, 3, 1, 8)), "fc": Choice("cublas")}


def shapes(batch: int) -> Shapes:
    return {"x": (batch, 3, 64, 64)}


def lowered(folder: Path, batches: tuple[int, ...] = BATCHES) -> Form:
    folder.mkdir(exist_ok=True)
    graph.save(networks.residual(), folder / "m.onnx")
    model = graph.load(folder / "m.onnx")
    made = [(shapes(batch), *lower(graph.optimize(model, shapes=shapes(batch)).model)) for batch in batches]
    form.write(folder / "lowered.safetensors", made)
    return Form(folder / "lowered.safetensors", "fp32", False)


@pytest.fixture
def gpu() -> OnGpu:
    return OnGpu([shapes(batch) for batch in BATCHES], True, PRECISIONS)


def choose(found: Form, *batches: int) -> None:
    """As a tuner that knows these buckets."""
    known = {
        tuning.name(shapes(batch), "fp16"): {
            name: [each.implementation, list(each.config)] for name, each in CHOICES.items()
        }
        for batch in batches
    }
    Tuning.prepare(found.path, 1.0, known=known)


def test_choices_of_one_build_are_known_to_the_next_of_the_same_model_on_the_same_gpu(
    gpu: OnGpu, tmp_path: Path
) -> None:
    first, second = lowered(tmp_path / "a"), lowered(tmp_path / "b", (4, 1))
    assert gpu.tune_for(first, 60, 60, 1.0, TimingCache(tmp_path / "c.json", H200)) == []
    choose(first, *BATCHES)
    gpu.remember(first, TimingCache(tmp_path / "c.json", H200))
    note = gpu.tune_for(second, 60, 60, 1.0, TimingCache(tmp_path / "c.json", H200))
    assert note == ["choices of 2 of 2 buckets came from the timing cache"]
    assert all(Tuning(second.path).knows(shapes(batch), "bf16") for batch in BATCHES)  # as wide as fp16
    assert not Tuning(second.path).knows(shapes(4), "fp32")
    assert gpu.tune_for(second, 60, 60, 1.0, TimingCache(tmp_path / "c.json", OTHER)) == []
    assert not Tuning(second.path).knows(shapes(4), "fp16")


def test_what_was_chosen_for_one_context_is_not_taken_for_several(gpu: OnGpu, tmp_path: Path) -> None:
    found = lowered(tmp_path)
    gpu.tune_for(found, 60, 60, 1.0, None)
    choose(found, *BATCHES)
    gpu.remember(found, TimingCache(tmp_path / "c.json", H200))
    four = OnGpu([shapes(batch) for batch in BATCHES], True, PRECISIONS, contexts=4)
    assert four.tune_for(found, 60, 60, 1.0, TimingCache(tmp_path / "c.json", H200)) == []
    assert Tuning(found.path).contexts == 4
    assert not Tuning(found.path).known


def test_a_bucket_that_was_not_tuned_then_is_tuned_now(gpu: OnGpu, tmp_path: Path) -> None:
    first = lowered(tmp_path)
    gpu.tune_for(first, 60, 60, 1.0, None)
    choose(first, 4)
    gpu.remember(first, TimingCache(tmp_path / "c.json", H200))
    note = gpu.tune_for(first, 60, 60, 1.0, TimingCache(tmp_path / "c.json", H200))
    assert note == ["choices of 1 of 2 buckets came from the timing cache"]
    assert not Tuning(first.path).knows(shapes(1), "fp16")


@pytest.mark.parametrize(("budget", "left"), [(300.0, 297.0), (60.0, 57.0), (15.0, 12.0), (5.0, 1.0)])
def test_time_is_left_for_what_follows_the_race(gpu: OnGpu, tmp_path: Path, budget: float, left: float) -> None:
    found = lowered(tmp_path)
    gpu.tune_for(found, budget, left, 1.0, None)
    race = gpu.race_seconds(left, 1.0)
    assert 0 <= race <= max(0.0, left - min(5.5, 0.6 * budget))
    until = Tuning(found.path).until
    assert until is not None
    assert until <= time.monotonic() + race


def test_what_can_not_fit_a_workspace_is_refused_before_it_is_tuned(gpu: OnGpu, tmp_path: Path) -> None:
    found = lowered(tmp_path)
    gpu.check_workspace(found, 10 << 20)
    with pytest.raises(
        InvalidArgument, match=r"weights \d+, buckets \d+, \d+\), --workspace allows 100000; allow more"
    ):
        gpu.check_workspace(found, 100_000)


def test_what_is_left_of_the_time_is_shared_by_the_buckets_that_are_not_tuned(tmp_path: Path) -> None:
    found = lowered(tmp_path)
    Tuning.prepare(found.path, 90.0, until=time.monotonic() + 40)
    assert 18 < Tuning(found.path)._share(2) < 19  # half of it, without what a bucket takes once it is tuned
    assert 38 < Tuning(found.path)._share(1) < 39
    Tuning.prepare(found.path, 5.0, until=time.monotonic() + 40)
    assert Tuning(found.path)._share(1) == 5.0
    Tuning.prepare(found.path, 5.0, until=time.monotonic() - 1)
    assert Tuning(found.path)._share(1) == 1.0


def test_a_form_whose_name_is_known_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "lowered.safetensors"
    writer = threading.Timer(0.05, Tuning.prepare, (path, 1.0))
    writer.start()
    assert tuning.is_there(path)
    writer.join()
    assert not tuning.is_there(tmp_path / "other.safetensors", 0.0)
