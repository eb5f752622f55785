"""What a call on a GPU is bound by, from numbers that were measured: regions and calls of engines on an H200."""

import pytest

from penstock.engine.plan import Region
from penstock.engine.roofline import BOUNDS, Call, Ceilings, bound_of, floor_us, share, verdict

H200 = Ceilings(flops_per_second=724e12, bytes_per_second=4.28e12, launch_us=2.0)


def conv(microseconds: float, gflop: float, megabytes: float) -> Region:
    return Region("r", "conv", ("n",), "fp16", microseconds, "cudnn", gflop * 1e9, megabytes * 1e6)


# 3x3, 512 channels at 26x4, batch 32: 27.3 us; 1x1, 64 to 256 at 56x56, batch 64: 49.8; a pool of 7x7, batch 1: 2.4.
ARITHMETIC = conv(27.3, 15.7, 8.1)
TRAFFIC = conv(49.8, 6.6, 128.5)
SMALL = conv(2.4, 0.0, 0.2)


@pytest.mark.parametrize(
    ("region", "bound", "microseconds"),
    [(ARITHMETIC, "compute", 21.7), (TRAFFIC, "memory", 30.0), (SMALL, "launch", 0.05)],
)
def test_a_region_is_bound_by_what_takes_longest_at_its_ceiling(
    region: Region, bound: str, microseconds: float
) -> None:
    assert bound_of(region, H200) == bound
    assert floor_us(region, H200) == pytest.approx(microseconds, rel=0.02, abs=0.01)
    assert share(region, H200) == pytest.approx(floor_us(region, H200) / region.microseconds)


def test_a_region_without_time_or_counts_has_no_share() -> None:
    assert share(Region("r", "copy", ()), H200) == 0
    assert floor_us(Region("r", "copy", (), microseconds=3.0), H200) == 0


# Whole calls: ResNet-50 at 1 and 64 (host copies and all), and a transformer that computes.
@pytest.mark.parametrize(
    ("regions", "call", "bound", "words"),
    [
        ([SMALL] * 70 + [TRAFFIC], Call(0.28, 0.012, 0.204, 0.004), "launch", "70 of 71 regions"),
        ([ARITHMETIC, TRAFFIC] * 20, Call(5.37, 0.75, 1.73, 0.01), "copy", "2.88 ms on the host"),
        ([ARITHMETIC] * 40 + [TRAFFIC], Call(24.3, 0.4, 23.8, 0.01), "compute", "of 724 TFLOP/s"),
        ([TRAFFIC] * 40 + [ARITHMETIC], Call(2.1, 0.1, 1.9, 0.01), "memory", "of 4.28 TB/s"),
    ],
)
def test_a_call_is_bound_by_what_most_of_its_time_goes_to(
    regions: list[Region], call: Call, bound: str, words: str
) -> None:
    found = verdict(regions, H200, call)
    assert found.bound == bound
    assert found.text.startswith(f"{bound}-bound: ")
    assert words in found.text
    assert [name for name, _ in found.milliseconds] == list(BOUNDS)
    assert sum(time for _, time in found.milliseconds) == pytest.approx(call.whole)
    assert found.floor_ms == pytest.approx(sum(floor_us(each, H200) for each in regions) / 1000)
    assert 0 < found.share_of_floor < 1


def test_of_a_call_without_regions_only_the_copies_are_known() -> None:
    found = verdict([], H200, Call(1.0, 0.2, 0.5, 0.1))
    assert found.bound == "copy"
    assert found.share_of_floor == 0


def test_the_host_explains_what_the_device_does_not() -> None:
    assert Call(5.0, 1.0, 2.0, 0.5).host == pytest.approx(1.5)
    assert Call(3.0, 1.0, 2.0, 0.5).host == 0  # phases one after the other take longer than everything in flight
