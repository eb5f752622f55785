"""What is worth trying next for a step: microseconds that may be saved, by what is known of it so far.

The order of a short budget follows from it, so it ranks and promises nothing: a first idea of each step before second
ones of any, long and frequent steps before others, and less where a step is near what the chip could do. Pure
arithmetic. Called by the tuner, and for what is compiled before tuning begins.
"""

from typing import Final

from penstock.engine.cuda import costs
from penstock.engine.cuda.sites import Site

# Of no chip in particular: only the order counts.
_FLOPS: Final = 7e14
_BYTES: Final = 6e12  # what was just written is in a cache
_LIBRARY_CALL: Final = 8.0  # microseconds of a kernel or two, and of what lies between
_LONGER: Final = 2.0  # than the least it could be, what a library's kernel takes

# Shares of the room between what a step takes and the least it could, that a candidate may be hoped to save.
_FIRST_OF_OURS: Final = 0.5
_OTHER_KIND: Final = 0.3
_VARIANT: Final = 0.15
_LIBRARY: Final = 0.2


def least(site: Site) -> float:
    """Microseconds below which hardly any kernel gets."""
    return 1e6 * max(costs.flops(site.graph, site.step) / _FLOPS, costs.moved(site.graph, site.step) / _BYTES)


def guess(site: Site) -> float:
    """Microseconds that libraries may take, before any is timed: joined layers are several kernels for them."""
    return _LONGER * least(site) + _LIBRARY_CALL * _parts(site)


def _parts(site: Site) -> int:
    step = site.step
    weights = [each for each in step.inputs if each.value in site.weights and len(site.graph.shape(each)) > 1]
    return max(1, len(weights), len(step.program) // 2)


def of_ours(spent: float, floor: float, rank: int, behind: float | None, *, first: bool) -> float:
    """Microseconds of one step.

    spent   by the best so far, else a guess.
    rank    the configuration's place in its kernel's list.
    behind  the kernel's best so far over the step's; None: none of its configurations was timed.
    first   whether no kernel of ours was timed for the step.
    """
    room = max(0.0, spent - floor)
    if behind is not None:
        return _VARIANT * room / (max(rank, 1) * behind**3)  # the first may come late, behind one chosen before
    return (_FIRST_OF_OURS if first else _OTHER_KIND) * room / (rank + 1) ** 2


def of_libraries(spent: float, floor: float, *, first: bool) -> float:
    """Of one step; `first`: whether nothing at all was timed for it."""
    return (_FIRST_OF_OURS if first else _LIBRARY) * max(0.0, spent - floor)
