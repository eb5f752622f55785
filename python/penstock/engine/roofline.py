"""What holds a program on a GPU back, by its own measurements: launches, copies, arithmetic or memory. Pure.

A device has ceilings that were measured on it; a region can't be faster than the largest of one launch, its FLOPs at
the one rate and its bytes at the other, and whichever is largest is what it is bound by. A whole call is bound by
whatever most of its time goes to. Called by the command line and by reports.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from penstock.engine.plan import Region

Bound = Literal["launch", "copy", "compute", "memory"]
BOUNDS: Final[tuple[Bound, ...]] = ("launch", "copy", "compute", "memory")


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Of one device, measured."""

    flops_per_second: float
    """Of a large product of matrices in the program's precision."""

    bytes_per_second: float
    """Read and written, of a large copy on the device."""

    launch_us: float
    """Of a kernel that does next to nothing, in a CUDA graph."""


@dataclass(frozen=True, slots=True)
class Call:
    """What one call takes, in milliseconds; medians."""

    whole: float
    """By the host's clock, arrays in and arrays out."""

    copy_in: float
    compute: float
    copy_out: float
    """By the device's clock, one after the other."""

    @property
    def host(self) -> float:
        """What none of the device's parts explains: copies between the arrays and pinned memory, and waiting."""
        return max(0.0, self.whole - self.copy_in - self.compute - self.copy_out)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What most of a call's time goes to."""

    bound: Bound
    milliseconds: tuple[tuple[Bound, float], ...]
    """Of the call by what bounds it, in the order of BOUNDS; together the call."""

    floor_ms: float
    """The least that the regions could take on this device; without launches."""

    share_of_floor: float
    """The floor over the time of the regions; 1 is as fast as can be."""

    text: str


def floor_us(region: Region, ceilings: Ceilings) -> float:
    """The least time of its arithmetic and its traffic; 0 where neither is known."""
    return 1e6 * max(region.flops / ceilings.flops_per_second, region.bytes / ceilings.bytes_per_second)


def share(region: Region, ceilings: Ceilings) -> float:
    """Of the roofline: 1 is as fast as can be. A region that is fused into another's time may pass it."""
    return floor_us(region, ceilings) / region.microseconds if region.microseconds else 0.0


def bound_of(region: Region, ceilings: Ceilings) -> Bound:
    arithmetic, traffic = region.flops / ceilings.flops_per_second, region.bytes / ceilings.bytes_per_second
    if 1e6 * max(arithmetic, traffic) < ceilings.launch_us:
        return "launch"
    return "compute" if arithmetic >= traffic else "memory"


def verdict(regions: Iterable[Region], ceilings: Ceilings, call: Call) -> Verdict:
    """What a call is bound by. The regions' times were taken apart: the compute time is divided as they are."""
    found = tuple(regions)
    spent: dict[Bound, float] = dict.fromkeys(BOUNDS, 0.0)
    for each in found:
        spent[bound_of(each, ceilings)] += each.microseconds
    total = sum(spent.values())
    scale = call.compute / total if total else 0.0
    spent = {name: time * scale for name, time in spent.items()}
    spent["copy"] = call.copy_in + call.copy_out + call.host
    floor = sum(floor_us(each, ceilings) for each in found) / 1000
    bound = max(BOUNDS, key=lambda each: spent[each])
    share_of_floor = floor / (total / 1000) if total else 0.0
    return Verdict(
        bound, tuple(spent.items()), floor, share_of_floor, _text(bound, spent, call, found, ceilings, share_of_floor)
    )


def _text(
    bound: Bound,
    spent: dict[Bound, float],
    call: Call,
    regions: Sequence[Region],
    ceilings: Ceilings,
    share_of_floor: float,
) -> str:
    start = f"{bound}-bound: {spent[bound]:.3g} of {call.whole:.3g} ms a call"
    floor = f"the regions reach {share_of_floor:.0%} of the roofline"
    if bound == "copy":
        return (
            f"{start} are copies ({call.copy_in:.3g} ms to the device, {call.copy_out:.3g} ms back, {call.host:.3g} ms "
            f"on the host); smaller types, --preprocess and --reduce make them less, more contexts hide them; {floor}"
        )
    few = [each for each in regions if bound_of(each, ceilings) == bound]
    if bound == "launch":
        return (
            f"{start} are {len(few)} of {len(regions)} regions that could be shorter than a launch "
            f"({ceilings.launch_us:.2g} us); larger batches and fewer, larger regions help; {floor}"
        )
    if bound == "compute":
        rate = sum(each.flops for each in few) / (1e6 * sum(each.microseconds for each in few))
        return (
            f"{start} are {len(few)} regions at {rate:.0f} of {ceilings.flops_per_second / 1e12:.0f} TFLOP/s; "
            f"a narrower precision has a higher ceiling; {floor}"
        )
    rate = sum(each.bytes for each in few) / (1e6 * sum(each.microseconds for each in few))
    return (
        f"{start} are {len(few)} regions at {rate:.2f} of {ceilings.bytes_per_second / 1e12:.2f} TB/s; "
        f"narrower types and fusing neighbours move less; {floor}"
    )
