"""Runs a Penstock server with the zoo's models until standard input closes: `python models.py '{"OPTION": VALUE}'`.

OPTION is any keyword argument of `penstock.Server`. Prints the real ports as one line of JSON once they are bound.
With `model_repository` the repository's models are served and the zoo stays out. Started by `process.penstock_server`.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

import penstock as ps
from tests.servers import zoo

TYPES = {
    "BOOL": ps.Bool,
    "UINT8": ps.U8,
    "INT32": ps.I32,
    "INT64": ps.I64,
    "FP16": ps.F16,
    "FP32": ps.F32,
    "BYTES": ps.Bytes,
}


def _typed(tensors: tuple[zoo.Tensor, ...]) -> dict[str, Any]:
    return {tensor.name: TYPES[tensor.datatype][tensor.shape] for tensor in tensors}


def double(x: Any) -> Any:
    return x * x.dtype.type(2)


def negate(x: Any) -> Any:
    return np.logical_not(x)


def reverse(x: Any) -> Any:
    y = np.empty(x.shape, dtype=np.object_)
    for index in np.ndindex(x.shape):
        y[index] = x[index][::-1]
    return y


def addsub(INPUT0: Any, INPUT1: Any) -> Any:
    return {"OUTPUT0": INPUT0 + INPUT1, "OUTPUT1": INPUT0 - INPUT1}


def biased(x: Any, bias: Any = None) -> Any:
    return x if bias is None else x + bias


def sleep(ms: Any) -> Any:
    time.sleep(float(ms.max()) / 1000)
    return ms


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "double": double,
    "negate": negate,
    "reverse": reverse,
    "addsub": addsub,
    "biased": biased,
    "sleep": sleep,
}


def add_zoo(server: Any) -> None:
    for model in zoo.MODELS:
        queue = ps.QueuePolicy(max_queue_size=model.max_queue_size)
        server.add(
            ps.model(
                name=model.name,
                max_batch_size=model.max_batch_size,
                instances=model.instances,
                inputs=_typed(model.inputs),
                outputs=_typed(model.outputs),
                # As in the configuration that Triton gets: an empty block for every model that has batches.
                dynamic_batching=ps.DynamicBatching(default_queue_policy=queue) if model.max_batch_size else None,
            )(FUNCTIONS[model.behaviour])
        )


def main() -> None:
    options: dict[str, Any] = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    server = ps.Server(http_port=0, grpc_port=0, metrics_port=0, **options)
    if "model_repository" not in options:
        add_zoo(server)
    with server:
        ports = {"http": server.http_port, "grpc": server.grpc_port, "metrics": server.metrics_port}
        print(json.dumps(ports), flush=True)
        sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
