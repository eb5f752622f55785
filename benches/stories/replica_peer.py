"""The peer of `replicas`: the same service as FastAPI with ONNX Runtime, one process of it.

    PYTHON -m benches.stories.replica_peer --detector FILE --classifier FILE --side 320 --threads 1 ...

Runs in an environment of its own with fastapi, uvicorn, onnxruntime, numpy and opencv-python-headless. It does what is
usual there and fast: a session for each network with all optimisations, an endpoint whose work runs in FastAPI's pool
of threads, and the crops of a picture as one batch. Decoding, letterbox, suppression and cropping are the example's own
functions, so that servers differ in nothing else. Answers POST /detect_classify, a picture, with JSON.
"""

import argparse
import json
import os
import socket
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from examples.detect_classify.detections import Rules, found
from examples.detect_classify.pictures import crops, decoded, letterboxed
from penstock.errors import InvalidArgument


def session(path: Path, threads: int, provider: str) -> Any:
    """Raises SystemExit where the library would quietly compute elsewhere."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    made = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    if provider not in made.get_providers():
        raise SystemExit(f"replica_peer: ONNX Runtime has no {provider} here")
    return made


class Service:
    def __init__(self, asked: argparse.Namespace) -> None:
        self.detector, self.classifier = (
            session(path, asked.threads, asked.provider) for path in (asked.detector, asked.classifier)
        )
        self.side, self.rules = asked.side, Rules(asked.score, asked.overlap, asked.most)

    def answer(self, image: bytes) -> dict[str, Any]:
        frame, x = letterboxed(decoded(image), self.side)
        (boxes,), (scores,) = self.detector.run(["boxes", "scores"], {"x": x})
        corners, sure = found(frame, boxes, scores, self.rules)
        if not len(corners):
            return {"boxes": [], "scores": [], "class_ids": [], "class_scores": []}
        (logits,) = self.classifier.run(None, {"x": np.stack(crops(frame, corners))})
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        return {
            "boxes": corners.tolist(),
            "scores": sure.tolist(),
            "class_ids": chances.argmax(axis=1).tolist(),
            "class_scores": chances.max(axis=1).tolist(),
        }


def application(service: Service) -> Any:
    fastapi: Any = import_module("fastapi")
    in_pool: Any = import_module("fastapi.concurrency").run_in_threadpool
    app = fastapi.FastAPI()

    async def detect_classify(request: Any) -> Any:
        try:
            answer, status = await in_pool(service.answer, await request.body()), 200
        except InvalidArgument as error:
            answer, status = {"error": str(error)}, 400
        return fastapi.Response(json.dumps(answer), status, media_type="application/json")

    app.add_route("/detect_classify", detect_classify, methods=["POST"])
    return app


def main() -> None:
    uvicorn: Any = import_module("uvicorn")
    parser = argparse.ArgumentParser(prog="python -m benches.stories.replica_peer")
    for name in ("detector", "classifier"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name, kind in (("side", int), ("threads", int), ("score", float), ("overlap", float), ("most", int)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    parser.add_argument("--provider", default="CPUExecutionProvider")
    app = application(Service(parser.parse_args()))
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(128)
    print(json.dumps({"http_port": listening.getsockname()[1]}), flush=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    threading.Thread(target=_end_with_input, args=(server,), daemon=True).start()
    server.run(sockets=[listening])


def _end_with_input(server: Any) -> None:
    sys.stdin.read()
    server.should_exit = True


if __name__ == "__main__":
    main()
    os._exit(0)
