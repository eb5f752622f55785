"""The models of the comparison on Mosec: y = 2x as raw bytes (/raw) and JSON (/json); an image's corner (/image).

It promises one instance per model, one NumPy call per batch, and the shortest wait that Mosec takes (1 ms). Mosec
speaks no v2 protocol, so that its bodies are bare: 64 (or 602,112) bytes of float32, or {"input": [...]}. SLEEP
(seconds) makes each batch sleep. The routes not being measured have an idle worker each, blocked on a socket. Started
by `harness/servers.py` with Mosec's own --address and --port.
"""

import json
import os
import time

import numpy as np
from mosec import Runtime, Server, Worker

SLEEP = float(os.environ.get("SLEEP", "0"))


class RawDouble(Worker):
    def deserialize(self, data):
        return np.frombuffer(data, dtype=np.float32)

    def serialize(self, data):
        return data.tobytes()

    def forward(self, data):
        doubled = np.stack(data) * 2
        if SLEEP:
            time.sleep(SLEEP)
        return list(doubled)


class JsonDouble(RawDouble):
    def deserialize(self, data):
        return np.asarray(json.loads(data)["input"], dtype=np.float32)

    def serialize(self, data):
        return json.dumps({"output": data.tolist()}).encode()


class ImageCorner(RawDouble):
    def deserialize(self, data):
        return np.frombuffer(data, dtype=np.float32).reshape(3, 224, 224)

    def forward(self, data):
        return [image[:, 0, 0] for image in data]


if __name__ == "__main__":
    server = Server()
    server.register_runtime(
        {
            "/raw": [Runtime(RawDouble, num=1, max_batch_size=64, max_wait_time=1)],
            "/json": [Runtime(JsonDouble, num=1, max_batch_size=64, max_wait_time=1)],
            "/image": [Runtime(ImageCorner, num=1, max_batch_size=16, max_wait_time=1)],
        }
    )
    server.run()
