"""The recogniser on LitServe, its own batching on: bytes in, bytes out, over its faster queue.

A request's body is pictures in bytes, [n, 48, 320, 3]; the answer is the classes, INT64 [n, 40], as bytes. LitServe
batches requests: all of this comparison have `--rows` rows, so that `--batch` rows are so many requests. Started by
`benches/stories/ocr_ways.py`.
"""

import argparse
from typing import Annotated

import litserve
import numpy as np
import onnxruntime
from fastapi import Depends, Request, Response

ROW = (48, 320, 3)
WAIT_SECONDS = 0.002
"""For a batch to fill up; 0 makes it take one request at a time."""


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True, help="most rows of one call")
    parser.add_argument("--rows", type=int, required=True, help="of a request")
    parser.add_argument("--instances", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True, help="of each instance")
    return parser.parse_args()


async def body_of(request: Request) -> bytes:
    return await request.body()


class Recogniser(litserve.LitAPI):
    def __init__(self, options):
        super().__init__(max_batch_size=max(1, options.batch // options.rows), batch_timeout=WAIT_SECONDS)
        self.options = options

    def setup(self, device):
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = self.options.threads
        self.model = onnxruntime.InferenceSession(self.options.model, settings, providers=["CPUExecutionProvider"])

    def decode_request(self, request: Annotated[bytes, Depends(body_of)]):
        return np.frombuffer(request, np.uint8).reshape(-1, *ROW)

    def batch(self, inputs):
        self.sizes = [len(each) for each in inputs]
        return np.concatenate(inputs)

    def predict(self, pictures):
        return self.model.run(["fetch_name_0_index"], {"x": pictures})[0]

    def unbatch(self, output):
        return np.split(output, np.cumsum(self.sizes)[:-1])

    def encode_response(self, output):
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    chosen = arguments()
    server = litserve.LitServer(
        Recogniser(chosen), accelerator="cpu", workers_per_device=chosen.instances, timeout=60, fast_queue=True
    )
    server.run(host="127.0.0.1", port=chosen.port, log_level="warning", generate_client_file=False, access_log=False)
