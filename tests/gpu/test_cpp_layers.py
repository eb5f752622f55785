"""Layers in CUDA C++ on the GPU: right, and the same bits each time, in the sizes that text models have."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

from penstock.engine.cuda.kernels.cluster_mlp import ClusterCut, cluster_cuts
from penstock.engine.cuda.kernels.cpp_launching import CppLaunch
from penstock.engine.cuda.kernels.fork_tiles import fork_cuts
from penstock.engine.cuda.kernels.tile_conv import Window, conv_cuts
from tests.engine.cuda.kernels import test_cluster_mlp, test_fork_tiles, test_tile_conv
from tests.engine.cuda.kernels.test_cluster_mlp import Layers
from tests.engine.cuda.kernels.test_fork_tiles import Fork
from tests.engine.cuda.kernels.test_tile_conv import Layer

pytestmark = [pytest.mark.gpu, pytest.mark.torch]

TIMES = 50


def same_each_time(launch: CppLaunch, out: torch.Tensor) -> torch.Tensor:
    found = []
    for _ in range(TIMES):
        out.fill_(torch.nan)
        launch.run()
        found.append(out.clone())
    torch.cuda.synchronize()
    assert all(torch.equal(each, found[0]) for each in found)
    return found[0].double().cpu()


def near(found: torch.Tensor, right: torch.Tensor) -> bool:
    return float((found - right).norm() / right.norm()) < 1e-3


SHARED = [
    (images, rows, wide, hidden, out, cut)
    for images, rows, wide, hidden, out in [(1, 480, 192, 384, 192), (1, 960, 96, 192, 96), (2, 160, 96, 192, 96)]
    for cut in cluster_cuts(images * rows, wide, hidden, out, gated=True)
]


@pytest.mark.parametrize(("images", "rows", "wide", "hidden", "out", "cut"), SHARED, ids=str)
def test_layers_that_clusters_share(images: int, rows: int, wide: int, hidden: int, out: int, cut: ClusterCut) -> None:
    layers = Layers(images, rows, wide, hidden, out, cut, gated=True, added="skip")
    given = test_cluster_mlp.tensors(layers, "cuda")
    assert near(same_each_time(given.launch(layers), given.out), test_cluster_mlp.expected(given, layers))


@pytest.mark.parametrize("sizes", [(1, 368, 368, 24, 12, 24), (2, 24, 160, 48, 24, 48)])
def test_forks(sizes: tuple[int, ...]) -> None:
    fork = Fork(*sizes, cut=fork_cuts(*sizes)[0])
    given = test_fork_tiles.tensors(fork, "cuda")
    right = torch.cat(test_fork_tiles.expected(given, fork), dim=3)
    assert near(same_each_time(given.launch(fork), given.out), right)


@pytest.mark.parametrize(("stride", "channels"), [(1, 96), (2, 48)])
def test_convolutions_of_few_filters(stride: int, channels: int) -> None:
    window = Window(3, 3, (stride, stride), (1, 1))
    layer = Layer(1, 92, 100, channels, 24, window, conv_cuts(1, 92, 100, channels, 24, window)[0])
    given = test_tile_conv.tensors(layer, "cuda")
    assert near(same_each_time(given.launch(layer), given.out), test_tile_conv.expected(given, layer))
