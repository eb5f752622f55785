"""The demonstration: `python -m examples.embed [sentences ...]`.

Serves MiniLM as it is and as an engine built of it, asks both over HTTP and gRPC which sentences are alike, compares
every answer with a float32 reference of single texts without padding, and measures both in turns under texts of mixed
length. Exit status 1 when an answer is too far from the reference, or when one of the known pairs is judged wrongly.
With sentences of one's own it prints how alike they are, too.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from examples.embed import reference
from examples.embed.client import Answers, embedded
from examples.embed.load import PROTOCOLS, in_turns
from examples.embed.network import Ask, engine, graph
from examples.embed.texts import TRIPLES, judging, mixed
from examples.ocr.servers import Server, child

LEAST = {"plain": 0.9999, "engine": 0.999}
"""Cosine with the reference, of every single answer."""

JUDGED = 64


@dataclass(frozen=True, slots=True)
class Judged:
    """What one server answered, over both protocols."""

    name: str
    least_cosine: float
    triples: tuple[tuple[float, float], ...]
    """Of each: cosine of the alike pair, and of the unlike one."""

    @property
    def good(self) -> bool:
        alike = all(alike > unlike for alike, unlike in self.triples)
        return alike and self.least_cosine >= LEAST[self.name]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.embed", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sentences", nargs="*", help="compared with each other")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a turn of the load; 0: none")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each server and protocol")
    parser.add_argument("--budget", type=float, default=Ask().budget_seconds, help="seconds, if an engine is built")
    chosen = parser.parse_args(arguments)
    try:
        graph()
    except RuntimeError as error:
        raise SystemExit(f"embed: {error}") from None
    print("engine: the one that is there, or a new one ...", file=sys.stderr)
    built = engine(Ask(budget_seconds=chosen.budget))
    service = "examples.embed.service"
    with child("plain", service, []) as plain, child("engine", service, ["--engine", str(built)]) as fast:
        servers = (plain, fast)
        if chosen.sentences:
            own(chosen.sentences, fast)
        found = [judged(each) for each in servers]
        likeness(found)
        if chosen.seconds > 0:
            speeds(servers, chosen)
    print("\n| server | least cosine with the reference | wanted |\n|---|---:|---:|")
    for each in found:
        print(f"| {each.name} | {each.least_cosine:.6f} | {LEAST[each.name]} |")
    return 0 if all(each.good for each in found) else 1


def own(sentences: Sequence[str], server: Server) -> None:
    answers = embedded("grpc", server.grpc, sentences)
    cosines = answers.embeddings @ answers.embeddings.T
    print("| | tokens | " + " | ".join(str(at + 1) for at in range(len(sentences))) + " |")
    print("|---|---:|" + "---:|" * len(sentences))
    for at, (sentence, row) in enumerate(zip(sentences, cosines, strict=True)):
        cut = " (cut)" if answers.truncated[at] else ""
        print(
            f"| {at + 1}. {sentence[:60]} | {answers.tokens[at]}{cut} | " + " | ".join(f"{x:.3f}" for x in row) + " |"
        )
    print()


def judged(server: Server) -> Judged:
    """Asked over both protocols, many texts at once, and compared one by one."""
    texts = judging(JUDGED)
    expected = reference.embeddings(texts)
    answers: list[Answers] = [embedded(protocol, server.address(protocol), texts) for protocol in PROTOCOLS]
    least = min(float(reference.cosines(each.embeddings, expected).min()) for each in answers)
    return Judged(server.name, least, pairs(answers[0].embeddings))


def pairs(embeddings: npt.NDArray[np.float32]) -> tuple[tuple[float, float], ...]:
    """Cosines of the triples, which the texts begin with."""
    rows = embeddings[: 3 * len(TRIPLES)].reshape(len(TRIPLES), 3, -1)
    return tuple((float(text @ alike), float(text @ unlike)) for text, alike, unlike in rows)


def likeness(found: Sequence[Judged]) -> None:
    print("| text | says the same | plain | engine | says something else | plain | engine |")
    print("|---|---|---:|---:|---|---:|---:|")
    plain, fast = found
    for triple, one, other in zip(TRIPLES, plain.triples, fast.triples, strict=True):
        alike = f"{triple.alike} | {one[0]:.3f} | {other[0]:.3f}"
        print(f"| {triple.text} | {alike} | {triple.unlike} | {one[1]:.3f} | {other[1]:.3f} |")
    right = sum(alike > unlike for each in found for alike, unlike in each.triples)
    print(f"\n{right} of {sum(len(each.triples) for each in found)} judged rightly\n")


def speeds(servers: Sequence[Server], chosen: argparse.Namespace) -> None:
    rates = in_turns(servers, mixed(256), chosen.concurrency, chosen.seconds, chosen.rounds)
    print("| protocol | server | texts/s | p50 ms | p99 ms | rows a batch |\n|---|---|---:|---:|---:|---:|")
    for protocol in PROTOCOLS:
        for each in servers:
            rate = rates[each.name, protocol]
            spent = f"{rate.p50_ms:.1f} | {rate.p99_ms:.1f} | {rate.rows_per_batch:.1f}"
            print(f"| {protocol} | {each.name} | {rate.texts_per_second:.1f} | {spent} |")
        plain, fast = (rates[each.name, protocol].texts_per_second for each in servers)
        print(f"| {protocol} | engine / plain | {fast / plain:.2f} x | | | |")


if __name__ == "__main__":
    sys.exit(main())
