"""Which cuts of a product are offered for timing."""

import pytest

from penstock.engine.cuda.kernels.tiles import Product, Tile, tiles

SHARED_BYTES = 227 * 1024
PRODUCTS = {
    "ResNet-50, 3x3 at 7x7, one image": Product(49, 512, 512, 9),
    "ResNet-50, 3x3 at 56x56, 64 images": Product(200704, 64, 64, 9),
    "ResNet-50, stem": Product(12544, 64, 3, 49),
    "ViT-B/32, one image": Product(50, 768, 3072),
    "ViT-B/32, 64 images": Product(3200, 3072, 768),
    "recogniser's classifier": Product(40, 18710, 120),
    "one row, one column": Product(1, 1, 8),
    "INT8": Product(3136, 256, 1024, itemsize=1),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_cuts_offered_are_few_distinct_and_fit_the_chip(name: str) -> None:
    product = PRODUCTS[name]
    offered = tiles(product)
    assert 1 <= len(offered) <= 12
    assert len(set(offered)) == len(offered)
    for tile in offered:
        assert tile.shared_bytes(product.itemsize) < SHARED_BYTES
        assert tile.block_k * product.itemsize >= 32
        # Every split has something to do.
        steps = tile.steps(product)
        assert (tile.split_k - 1) * -(-steps // tile.split_k) < steps


def test_few_rows_and_a_long_reduction_are_split() -> None:
    product = PRODUCTS["ResNet-50, 3x3 at 7x7, one image"]
    best = tiles(product)[0]
    assert best.split_k > 1
    assert best.count(product) * best.split_k >= 64  # of 132 multiprocessors


def test_many_rows_take_large_blocks_and_no_split() -> None:
    best = tiles(PRODUCTS["ViT-B/32, 64 images"])[0]
    assert best.split_k == 1
    assert best.block_m * best.block_n >= 128 * 128


def test_a_tap_is_never_straddled_unless_channels_leave_a_rest() -> None:
    tile = Tile(64, 64, 64, 4, 3)
    assert not tile.flat(Product(49, 64, 128, 9))
    assert tile.flat(Product(49, 64, 96, 9))
    assert not tile.flat(Product(49, 64, 96, 1))
    assert tile.steps(Product(49, 64, 3, 49)) == 3
