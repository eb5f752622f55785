"""The recurrence on clusters of blocks: right for every cut, the same bits from a graph, played back when sealed."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from penstock.engine.cuda.kernels.driver import LoadedKernel, LoadedModule  # noqa: E402
from penstock.engine.cuda.kernels.lstm import lstm_cuts  # noqa: E402
from tests.engine.cuda.kernels.test_lstm import LAYERS, Layer, difference, expected, tensors  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.torch]

WIDER = [
    replace(LAYERS[1], time=26, batch=batch, hidden=hidden, cut=cut)
    for hidden, batch in ((256, 32), (512, 20), (128, 1))
    for cut in lstm_cuts(hidden, batch, 2, 132)
]


@pytest.mark.parametrize("layer", [*LAYERS, *WIDER], ids=str)
def test_it_is_right_and_replays_to_the_same_bits(layer: Layer) -> None:
    given = tensors(layer, "cuda")
    launch = given.launch(layer)
    launch.run()
    torch.cuda.synchronize()
    answers = (given.out, given.last_hidden, given.last_cell)
    limit = 6e-3 if torch.bfloat16 in (layer.dtype, layer.out) else 1e-3
    for found, right in zip(answers, expected(given), strict=True):
        assert difference(found, right) < limit
    first = [each.clone() for each in answers]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin()
        replace(launch, pdl=True).run()
        launch.run()
        graph.capture_end()
        for each in answers:
            each.zero_()
        graph.replay()
    stream.synchronize()
    assert all(torch.equal(found, right) for found, right in zip(answers, first, strict=True))


def test_sealed_it_runs_without_a_compiler() -> None:
    layer = LAYERS[3]
    given = tensors(layer, "cuda")
    launch = given.launch(layer)
    sealed = launch.seal()
    LoadedKernel(sealed, LoadedModule(sealed.cubin)).launch(launch.bound(), torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    assert difference(given.out, expected(given)[0]) < 1e-3
