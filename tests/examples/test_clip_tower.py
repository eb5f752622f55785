"""The tower in torch: of open_clip's shape, apart on unlike pictures, and the same once it is built and served."""

from pathlib import Path

import numpy as np
import pytest

import penstock as ps
from examples.clip import asking
from examples.clip.judging import Reference, judged
from examples.clip.making import pictures
from examples.clip.pictures import encoded_pictures
from examples.clip.service import PIPELINE, clip_server

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from examples.clip import tower as towers  # noqa: E402

SMALL = towers.Shape(width=96, layers=2, heads=3, outputs=64)
COUNT = 16


@pytest.fixture(scope="module")
def small() -> "towers.Tower":
    return towers.seeded(torch.from_numpy(pictures(COUNT, seed=1)), SMALL)


@pytest.fixture(scope="module")
def reference(small: "towers.Tower") -> Reference:
    with torch.no_grad():
        return Reference(small(torch.from_numpy(pictures(COUNT))).numpy())


def test_the_full_tower_has_the_published_parameters() -> None:
    with torch.device("meta"):
        state = towers.Tower().state_dict()
    assert sum(each.numel() for each in state.values()) == 87_849_216
    assert tuple(state["transformer.resblocks.11.attn.in_proj_weight"].shape) == (2304, 768)
    assert tuple(state["proj"].shape) == (768, 512)


def test_open_clip_computes_the_same_with_the_same_weights(small: "towers.Tower") -> None:
    open_clip = pytest.importorskip("open_clip.transformer")
    theirs = open_clip.VisionTransformer(
        image_size=224, patch_size=32, width=96, layers=2, heads=3, mlp_ratio=4, output_dim=64,
        act_layer=open_clip.QuickGELU,
    ).eval()  # fmt: skip
    theirs.load_state_dict(small.state_dict())
    x = torch.from_numpy(pictures(4))
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), small(x), rtol=1e-4, atol=1e-5)


def test_unlike_pictures_have_unlike_embeddings_and_the_same_seed_the_same(
    small: "towers.Tower", reference: Reference
) -> None:
    assert reference.closest < 0.995
    again = towers.seeded(torch.from_numpy(pictures(COUNT, seed=1)), SMALL)
    other = towers.seeded(torch.from_numpy(pictures(COUNT, seed=1)), SMALL, seed=1)
    assert all(torch.equal(one, two) for one, two in zip(small.parameters(), again.parameters(), strict=True))
    assert not torch.equal(small.proj, other.proj)


def test_a_built_and_served_tower_answers_as_pytorch_does_with_fifty_at_once(
    tmp_path: Path, small: "towers.Tower", reference: Reference
) -> None:
    samples = pictures(4, seed=1)
    ps.build(
        small, example_inputs=(torch.from_numpy(samples[:2]),), output=tmp_path / "tower.engine", precision="fp32",
        shapes="x:1x3x224x224,4x3x224x224,4x3x224x224", buckets=[1, 4], budget_seconds=20, device="cpu",
        calibration=[{"x": row[None]} for row in samples],
    ).close()  # fmt: skip
    tensors = [asking.encoded_picture(each) for each in encoded_pictures(COUNT)]
    with clip_server(tmp_path / "tower.engine", http_port=0, grpc_port=0, metrics_port=None) as server:
        for wire, port in (("http", server.http_port), ("grpc", server.grpc_port)):
            target = asking.Target(wire, f"127.0.0.1:{port}", PIPELINE)
            run = asking.asked(target, tensors, asking.Turns(COUNT, requests=150), 50)
            tally = judged(reference, run.answers, run.asked, run.seconds)
            assert tally.good, tally
            assert np.isfinite(tally.least)
