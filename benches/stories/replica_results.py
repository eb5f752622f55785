"""What `replicas` compares, and what its turns add up to. Nothing here measures."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

COPIES: Final = "copies"
CONTEXTS: Final = "contexts"
PLAIN: Final = "contexts, ONNX Runtime"
PEER: Final = "FastAPI + ONNX Runtime"


@dataclass(frozen=True, slots=True)
class Arrangement:
    """How many processes, and what each has."""

    kind: str
    copies: int
    instances: int
    threads: int
    """Of each instance."""

    @property
    def engines(self) -> bool:
        """Whether it runs engines; else the networks as they are."""
        return self.kind in {COPIES, CONTEXTS}

    @property
    def name(self) -> str:
        each = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        if self.kind in {CONTEXTS, PLAIN}:
            said = f"1 server, {self.instances} contexts of {each}"
            return said if self.kind == CONTEXTS else f"{said}, ONNX Runtime"
        said = f"{self.copies} cop{'ies' if self.copies > 1 else 'y'}, {each} each"
        return said if self.kind == COPIES else f"{PEER}, {said}"


def arrangements(counts: Sequence[int], cores: int, *, peer: bool, plain: bool) -> list[Arrangement]:
    """To compare, each once: copies as libraries make them (all cores each) and with the cores shared out, one server
    with as many contexts, the same on the peer's library, and the peer with the cores shared out.
    """
    parts = {count: max(1, cores // count) for count in counts}
    found = [Arrangement(COPIES, count, 1, cores) for count in counts]
    found += [Arrangement(COPIES, count, 1, part) for count, part in parts.items()]
    found += [Arrangement(CONTEXTS, 1, count, part) for count, part in parts.items() if count > 1]
    if plain:
        several = min(max(counts), cores)
        found.append(Arrangement(PLAIN, 1, several, max(1, cores // several)))
    if peer:
        found += [Arrangement(PEER, count, 1, part) for count, part in parts.items()]
    return list(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class Turn:
    """One arrangement for some seconds."""

    seconds: float
    latencies_ms: tuple[float, ...]
    failed: int
    cpu_seconds: float
    voluntary: int
    involuntary: int
    memory_mb: float
    others: float
    """Cores that programs other than servers and clients kept busy."""

    crops: int
    batches: int
    """Of the classifier; none are known of the peer."""

    agreement: float
    """Share of the reference's things that are found with the same class."""

    gpu_busy: float
    gpu_memory_mb: float


@dataclass(frozen=True, slots=True)
class Result:
    """All turns of an arrangement together."""

    arrangement: Arrangement
    throughput: float
    """Pictures a second."""

    lowest: float
    highest: float
    """Of the turns."""

    p50_ms: float
    p95_ms: float
    cores_busy: float
    cpu_ms: float
    """Of a picture."""

    voluntary: float
    involuntary: float
    """Context switches of a picture."""

    memory_mb: float
    failed: int
    others: float
    batch: float
    """Crops that are classified together, on average; NaN where it is not known."""

    agreement: float
    gpu_busy: float
    gpu_memory_mb: float


def result(arrangement: Arrangement, turns: Sequence[Turn]) -> Result:
    """Raises ValueError where nothing was answered."""
    pictures = sum(len(turn.latencies_ms) for turn in turns)
    if not pictures:
        raise ValueError(f"{arrangement.name}: no picture was answered in time; give turns more --seconds")
    seconds = sum(turn.seconds for turn in turns)
    cpu = sum(turn.cpu_seconds for turn in turns)
    rates = [len(turn.latencies_ms) / turn.seconds for turn in turns]
    every = sorted(each for turn in turns for each in turn.latencies_ms)
    return Result(
        arrangement, pictures / seconds, min(rates), max(rates), quantile(every, 0.5), quantile(every, 0.95),
        cpu / seconds, 1e3 * cpu / pictures,
        sum(turn.voluntary for turn in turns) / pictures, sum(turn.involuntary for turn in turns) / pictures,
        statistics.median(turn.memory_mb for turn in turns), sum(turn.failed for turn in turns),
        statistics.mean(turn.others for turn in turns),
        sum(turn.crops for turn in turns) / (sum(turn.batches for turn in turns) or math.nan),
        min(turn.agreement for turn in turns),
        statistics.mean(turn.gpu_busy for turn in turns), statistics.median(turn.gpu_memory_mb for turn in turns),
    )  # fmt: skip


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that so many are not above."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(frozen=True, slots=True)
class Probes:
    """Of processes that share nothing but the hardware."""

    cores: int
    network_alone: float
    network_together: float
    """Calls of a process in a second of its CPU time; alone, and the mean with one on each core."""

    copy_alone_gb: float
    copy_together_gb: float
    """GB a second of memory that a process reads and writes."""

    weights_mb: float
    """In FP32: the detector's, and the classifier's as often as there are things in a picture."""

    @property
    def network_lost(self) -> float:
        return 1 - self.network_together / self.network_alone

    @property
    def copy_lost(self) -> float:
        return 1 - self.copy_together_gb / self.copy_alone_gb


@dataclass(frozen=True, slots=True)
class Results:
    cores: int
    counts: tuple[int, ...]
    rows: tuple[Result, ...]
    probes: Probes | None
    networks: str
    """What they are, in words."""

    def of(self, kind: str, copies: int | None = None) -> list[Result]:
        return [
            each for each in self.rows
            if each.arrangement.kind == kind and copies in {None, each.arrangement.copies}
        ]  # fmt: skip

    def best(self, kind: str, copies: int | None = None) -> Result | None:
        return max(self.of(kind, copies), key=lambda each: each.throughput, default=None)

    @property
    def one_server(self) -> Result:
        """The fastest of one process, with any number of contexts."""
        return max([*self.of(CONTEXTS), *self.of(COPIES, 1)], key=lambda each: each.throughput)
