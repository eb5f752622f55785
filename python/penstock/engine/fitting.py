"""Which programs of an engine are loaded when memory is short: a pure function of the manifest.

An engine can do without a program as long as the others answer every shape that it was built for. Called by `engine`
before anything is loaded.
"""

from itertools import combinations

from penstock.engine.plan import Manifest, Shapes, bytes_together
from penstock.engine.routing import route
from penstock.errors import InvalidArgument, ResourceExhausted


def fitting(manifest: Manifest, memory_bytes: int | None, contexts: int = 1) -> tuple[int, ...]:
    """Places of the programs to load: all, or the set within `memory_bytes` that costs the least time over the buckets.

    contexts  of every program on a device; on the CPU calls need nothing that counts.

    Raises ResourceExhausted when no set fits that answers all of them.
    """
    everything = tuple(range(len(manifest.programs)))
    if memory_bytes is None or _bytes(manifest, everything, contexts) <= memory_bytes:
        return everything
    ranked: list[tuple[float, tuple[int, ...]]] = []
    least: int | None = None
    for size in range(1, len(everything)):
        for chosen in combinations(everything, size):
            if not _answers(manifest, frozenset(chosen)):
                continue
            held = _bytes(manifest, chosen, contexts)
            least = held if least is None else min(least, held)
            if held <= memory_bytes:
                ranked.append((_cost(manifest, chosen), chosen))
    if not ranked:
        needed = least if least is not None else _bytes(manifest, everything, contexts)
        raise ResourceExhausted(
            f"engine {manifest.name!r} needs {needed} bytes at least, the limit is {memory_bytes}; raise the limit"
        )
    return min(ranked)[1]


def _bytes(manifest: Manifest, chosen: tuple[int, ...], contexts: int) -> int:
    return bytes_together((manifest.programs[at] for at in chosen), contexts)


def _answers(manifest: Manifest, chosen: frozenset[int]) -> bool:
    """Whether these answer all that the engine answers: a dynamic program does; static ones where none is needed."""
    dynamic = {at for at, program in enumerate(manifest.programs) if not program.shapes}
    if dynamic and not dynamic & chosen:
        return False
    shapes: list[Shapes] = [each.shapes for each in manifest.buckets]
    shapes += [side for each in manifest.profiles for side in (each.minimum, each.optimum, each.maximum)]
    try:
        for each in shapes:
            route(manifest, each, chosen)
    except InvalidArgument:
        return False
    return True


def _cost(manifest: Manifest, chosen: tuple[int, ...]) -> float:
    """How many buckets lose their program, by their time: a program that is left out makes its buckets slower."""
    return sum(each.microseconds for each in manifest.buckets if each.program not in chosen)
