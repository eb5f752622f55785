"""Sentences that follow from the figures, whichever way they came out. Pure."""

from collections.abc import Sequence

from benches.stories.utilising import batches, eight_bits, memory, sizes
from benches.stories.utilising.layers import Counted

WANTED_LAYERS, WANTED_REGIONS = 120, 60
"""Of ResNet-34: at least so many before, at most so many after."""

_MIB = 2**20


def of_layers(found: Sequence[Counted]) -> list[str]:
    said = []
    known = next((each for each in found if each.model == "resnet34"), None)
    if known is not None:
        met = known.layers >= WANTED_LAYERS and known.regions <= WANTED_REGIONS
        said.append(
            f"ResNet-34 has {known.layers} layers and is executed as {known.regions} regions: "
            f"{'kept' if met else 'MISSED'} (from {WANTED_LAYERS} or more to {WANTED_REGIONS} or fewer)."
        )
    if found:
        least, most = (pick(found, key=lambda each: each.fewer) for pick in (min, max))
        said.append(
            f"Over {len(found)} models fusion leaves one region for {least.fewer:.1f} ({least.model}) to "
            f"{most.fewer:.1f} layers ({most.model})."
        )
    return said


def of_eight_bits(found: eight_bits.Found) -> list[str]:
    wide, narrow = found.contender(eight_bits.FP32), found.contender(eight_bits.AUTO)
    batch = max(eight_bits.BATCHES)
    faster = narrow.per_second(batch) / wide.per_second(batch)
    lost = f"{100 * found.drop:.2f} % of accuracy (at most {100 * found.drop_at_most:.2f} % with 95 % confidence)"
    said = [
        f"The build chose {narrow.precision.upper()}: {faster:.1f} x the lines of the fastest FP32 engine at batch "
        f"{batch}, for {lost}; the report followed had 3.2 x for 0.7 %. INT8 was {found.engines[eight_bits.AUTO].int8}."
    ]
    if wide.served is not None and narrow.served is not None:
        before, after = wide.served.asked.now / _MIB, narrow.served.asked.now / _MIB
        word = "less" if after < before else "MORE"
        said.append(
            f"The serving process holds {before:.0f} MiB with FP32 and {after:.0f} MiB after, {word} by "
            f"{abs(1 - after / before):.0%}; the report followed had 1.8 GB before and 0.6 GB after."
        )
    return said


def of_sizes(found: sizes.Found) -> list[str]:
    if not found.sizes:
        return []
    first, last = found.sizes[0], found.sizes[-1]
    least = min(each.cosines[sizes.DYNAMIC] for each in found.sizes)
    met = "kept" if least >= sizes.LEAST_COSINE else "MISSED"
    dearer = [each.spent(sizes.DYNAMIC) / each.spent(sizes.ALONE) for each in found.sizes]
    faster = [each.spent(sizes.PLAIN) / each.spent(sizes.DYNAMIC) for each in found.sizes]
    return [
        f"One engine answers {first.name} to {last.name}; its least cosine with FP32 is {least:.5f}: {met} "
        f"(at least {sizes.LEAST_COSINE}).",
        f"Any shape costs it {min(dearer):.2f} to {max(dearer):.2f} times what the same program compiled for that "
        f"shape alone takes, and it is {min(faster):.1f} to {max(faster):.1f} times as fast as ONNX Runtime in FP32.",
    ]


def of_batches(found: Sequence[batches.Sweep], available: int) -> list[str]:
    said = []
    for each in found:
        line, rates = each.line, each.rates
        top, small = memory.best(rates), memory.enough(rates)
        said.append(
            f"{each.runtime}: a picture takes {line.each / _MIB:.1f} MiB, so by the rule the best batch is "
            f"{memory.suggested(available, line)}; measured, it is {top} ({rates[top]:.0f} pictures/s), and batch "
            f"{small} is within {1 - memory.NEAR_BEST:.0%} of it. The rule is a limit, not an optimum."
        )
        if each.tried is not None:
            tried = each.tried
            verdict = (
                "fits"
                if tried.within
                else f"does NOT fit: it forgets the {line.base / _MIB:.0f} MiB that the process holds besides"
            )
            said.append(
                f"{each.runtime}, with {tried.limit / _MIB:.0f} MiB to spend: the rule says batch {tried.batch}, "
                f"whose peak is {tried.peak / _MIB:.0f} MiB; it {verdict}."
            )
    return said
