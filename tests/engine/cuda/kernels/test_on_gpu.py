"""What only a GPU can show: graphs replay to the same bits, launching ahead of time changes nothing, tuning copes."""

from collections.abc import Sequence
from typing import Protocol

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from penstock.engine.cuda.kernels.driver import LoadedKernel, LoadedModule  # noqa: E402
from penstock.engine.cuda.kernels.epilogue import Epilogue, Scratch  # noqa: E402
from penstock.engine.cuda.kernels.implicit_gemm import (  # noqa: E402
    conv2d_nhwc_launch,
    conv2d_product,
)
from penstock.engine.cuda.kernels.launching import Launch  # noqa: E402
from penstock.engine.cuda.kernels.tiles import Tile, tiles  # noqa: E402
from penstock.engine.cuda.kernels.tuning import tune  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


class Runnable(Protocol):
    def run(self) -> None: ...


def chain(depth: int, tile: Tile, *, ahead: bool) -> tuple[list[Launch], "torch.Tensor", "torch.Tensor"]:
    """Convolutions one after the other through two buffers, each overwriting what the one before last read."""
    generator = torch.Generator("cuda").manual_seed(0)
    a = torch.randn(1, 14, 14, 256, device="cuda", generator=generator).half()
    b = torch.empty_like(a)
    w = (torch.randn(256, 3, 3, 256, device="cuda", generator=generator) / 48).half()
    product = conv2d_product(a, w, b)
    scratch = Scratch(
        torch.empty(max(1, tile.partial_sums(product)), device="cuda"),
        torch.zeros(max(1, tile.counters(product)), dtype=torch.int32, device="cuda"),
    )
    steps = []
    for step in range(depth):
        x, out = (a, b) if step % 2 == 0 else (b, a)
        steps.append(
            conv2d_nhwc_launch(
                x, w, out=out, config=tile, epilogue=Epilogue("relu"), padding=(1, 1), scratch=scratch, pdl=ahead
            )
        )
    return steps, a, b


def replayed(
    launches: "Sequence[Runnable]", start: "torch.Tensor", out: "torch.Tensor", times: int
) -> "list[torch.Tensor]":
    kept = start.clone()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for launch in launches:
            launch.run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            for launch in launches:
                launch.run()
        answers = []
        for _ in range(times):
            start.copy_(kept)
            graph.replay()
            answers.append(out.clone())
    stream.synchronize()
    return answers


@pytest.mark.parametrize("tile", [Tile(64, 64, 64, 4, 3), Tile(64, 32, 64, 4, 4, 6), Tile(32, 32, 128, 4, 3, 4)])
def test_replays_and_launches_ahead_of_time_give_the_same_bits(tile: Tile) -> None:
    # Odd, so that the last result is in b and a still holds the one before.
    usual, a, b = chain(9, tile, ahead=False)
    expected = replayed(usual, a, b, 20)
    assert all(torch.equal(each, expected[0]) for each in expected)
    ahead, a, b = chain(9, tile, ahead=True)
    for each in replayed(ahead, a, b, 200):
        assert torch.equal(each, expected[0])


def test_tuning_passes_over_what_does_not_fit() -> None:
    x = torch.randn(1, 14, 14, 256, device="cuda").half()
    w = torch.randn(256, 1, 1, 256, device="cuda").half()
    out = torch.empty_like(x)
    too_large = Tile(256, 128, 128, 8, 6)
    candidates = [too_large, *tiles(conv2d_product(x, w, out), limit=3)]

    def launch(tile: Tile) -> Launch:
        product = conv2d_product(x, w, out)
        scratch = Scratch(
            torch.empty(max(1, tile.partial_sums(product)), device="cuda"),
            torch.zeros(max(1, tile.counters(product)), dtype=torch.int32, device="cuda"),
        )
        return conv2d_nhwc_launch(x, w, out=out, config=tile, scratch=scratch)

    timing = tune(candidates, launch)
    assert timing.best in candidates[1:]
    assert set(timing.failed) == {too_large}
    assert 0 < timing.microseconds < 1000


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("tile", [Tile(32, 32, 64, 4, 2), Tile(128, 128, 64, 8, 4), Tile(64, 32, 64, 4, 4, 6)])
def test_the_driver_launches_sealed_kernels_to_the_same_bits(tile: Tile, ahead: bool) -> None:
    steps, a, b = chain(9, tile, ahead=False)
    expected = replayed(steps, a, b, 1)[0]
    steps, a, b = chain(9, tile, ahead=ahead)
    sealed = steps[0].seal()  # one kernel for all of them: only the addresses differ
    module = LoadedModule(sealed.cubin)
    loaded = LoadedKernel(sealed, module)

    class ThroughTheDriver:
        def __init__(self, launch: Launch) -> None:
            self.arguments = launch.bound()

        def run(self) -> None:
            loaded.launch(self.arguments, torch.cuda.current_stream().cuda_stream)

    for each in replayed([ThroughTheDriver(step) for step in steps], a, b, 20):
        assert torch.equal(each, expected)
    torch.cuda.synchronize()
    module.close()
