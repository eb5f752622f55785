"""Two models behind one endpoint: `tower`, prepared pictures to embeddings, and `embed_image`, a pipeline around it.

Promises: decoding, resizing and cutting of a picture run in a pool of threads, never on the event loop; the towers of
pictures that are asked for at the same time share batches; a picture that can't be used fails its own request only. The
vectors of `embed_image` have length 1; those of `tower` are as the network gives them, as open_clip's `encode_image`.

    python -m examples.clip.service build/clip/tower.engine --http-port 8000 --grpc-port 8001

Called by the demo and the tests.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import numpy.typing as npt

import penstock as ps
from examples.clip.preprocessing import Floats, prepared
from penstock.errors import ExecutionError

TOWER: Final = "tower"
PIPELINE: Final = "embed_image"
# Of requests to the pipeline under way; more wait in its queue. Several batches' worth: while one is computed the
# pictures of the next are decoded.
UNDER_WAY: Final = 64

Picture = Annotated[npt.NDArray[np.object_], ps.Bytes[1]]


def clip_server(tower: Path, *, instances: int = 1, threads: int | None = None, **options: Any) -> ps.Server:
    """A server of both, not started.

    tower    an engine, or an ONNX file as it is.
    threads  of each instance; None: what the engine was timed with, or the cores divided among the instances.
    options  those of `ps.Server`.
    """
    runtime = ps.load(tower, instances=instances, threads=threads)
    (spec,) = runtime.outputs
    server = ps.Server(**options)
    server.add(runtime, name=TOWER, instances=instances)
    server.add(image_embedder(spec.shape[-1]))
    return server


def image_embedder(numbers: int) -> Any:
    """The pipeline; the tower is looked up by its name when it is called. `numbers`: of an embedding."""
    tower = ps.use(TOWER)

    @ps.pipeline(name=PIPELINE, outputs={"embedding": ps.F32[numbers]}, max_concurrency=UNDER_WAY)
    async def embed_image(image: Picture) -> Floats:
        """BYTES [1], a PNG, JPEG or WebP, to FP32 [numbers] of length 1; raises UnreadableImageError."""
        return unit(await tower(await ps.cpu(prepared, image[0])))

    return embed_image


def unit(embedding: npt.NDArray[Any]) -> Floats:
    """Its direction. Raises ExecutionError for one that has none."""
    wide = embedding.astype(np.float64)
    length = float(np.linalg.norm(wide))
    if not np.isfinite(length) or length == 0:
        raise ExecutionError(f"{TOWER} answered an embedding of length {length:g}, expected a finite one above 0")
    found: Floats = (wide / length).astype(np.float32)
    return found


def main() -> None:
    """Prints its ports as one JSON line once it answers, and ends when its standard input does."""
    parser = argparse.ArgumentParser(prog="python -m examples.clip.service")
    parser.add_argument("tower", type=Path, help="an .engine or .onnx file")
    parser.add_argument("--instances", type=int, default=1, help="batches that run side by side")
    parser.add_argument("--threads", type=int, help="of each instance")
    parser.add_argument("--http-port", type=int, default=0, help="0: a free one")
    parser.add_argument("--grpc-port", type=int, default=0)
    wanted = parser.parse_args()
    server = clip_server(
        wanted.tower, instances=wanted.instances, threads=wanted.threads,
        http_port=wanted.http_port, grpc_port=wanted.grpc_port, metrics_port=None,
    )  # fmt: skip
    with server:
        print(json.dumps({"http_port": server.http_port, "grpc_port": server.grpc_port}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
