"""The model `embed`: texts in, one vector of length 1 for each out, by a pipeline over the network.

Promises: texts are cut into tokens in a pool, so that a long one holds up no other; each is a row of its own of the
network's batches, whoever sent it and whatever its length; a text that can't be used fails its own request only, and
one that is too long says that it was cut. As a process: `python -m examples.embed.service [--engine FILE]`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import numpy.typing as npt

import penstock as ps
from examples.embed.network import NETWORK, graph, repository
from examples.embed.pooling import WIDTH
from examples.embed.tokens import LENGTH, Tokens, tokenizer, tokens
from penstock.errors import InvalidArgument

MODEL: Final = "embed"
MOST_TEXTS: Final = 256
"""Of one request: all of them wait in the network's queue at once."""

Texts = Annotated[npt.NDArray[np.object_], ps.Bytes[-1]]
Answer = dict[str, npt.NDArray[Any]]


def embedder() -> Any:
    """The pipeline; the network is looked up by name when it is called."""
    network = ps.use(NETWORK)

    @ps.pipeline(name=MODEL, outputs={"embedding": ps.F32[-1, WIDTH], "tokens": ps.I32[-1], "truncated": ps.Bool[-1]})
    async def embed(text: Texts) -> Answer:
        """BYTES [n] in UTF-8 to FP32 [n, 384], how many tokens were read of each, and whether there were more."""
        read = await ps.cpu(cut, text.tolist())
        vectors = await ps.gather(network(input_ids=each.ids, attention_mask=each.mask) for each in read)
        return {
            "embedding": np.stack(vectors),
            "tokens": np.array([len(each.ids) for each in read], np.int32),
            "truncated": np.array([each.truncated for each in read]),
        }

    return embed


def cut(texts: Sequence[bytes]) -> list[Tokens]:
    """Raises InvalidArgument for no texts, for too many, and for one that can't be used."""
    if not 1 <= len(texts) <= MOST_TEXTS:
        raise InvalidArgument(f"text: expected 1 to {MOST_TEXTS} texts, got {len(texts)}")
    return [tokens(each) for each in texts]


def embedding_server(model: Path | None = None, **options: Any) -> ps.Server:
    """Not started. `model`: an engine; None: the network as it is, by ONNX Runtime. `options`: those of `ps.Server`."""
    tokenizer()  # before the ports open: no request should pay for it
    server = ps.Server(model_repository=repository(model or graph()), **options)
    server.add(embedder())
    return server


def main() -> None:
    """Listens on free ports of 127.0.0.1, prints them as one JSON line, and ends when its standard input does."""
    arguments = argparse.ArgumentParser(prog="python -m examples.embed.service")
    arguments.add_argument("--engine", type=Path, help=f"built of the network, for lengths up to {LENGTH}")
    with embedding_server(arguments.parse_args().engine, http_port=0, grpc_port=0, metrics_port=None) as server:
        print(json.dumps({"http_port": server.http_port, "grpc_port": server.grpc_port}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
