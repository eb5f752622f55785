"""How to talk to a kind of server: path and body of a request, what its answer must be, where it counts its batches.

Three dialects: KServe v2 (Penstock, Triton and most), Mosec's bare routes, and the floor, which echoes. Each promises
the same tensor under the same name, and an answer decoded to numbers before anything is measured. Called by the
catalogue of servers, by verification and by the rounds.
"""

import json
import re
import struct
from dataclasses import dataclass
from typing import Protocol

from harness import protobuf
from harness.workload import Question, Wire, Workload

MODEL = "ident"
JSON_LENGTH = "Inference-Header-Content-Length"
GRPC_PATH = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True)
class Post:
    """One request: wrk and h2load repeat it, verification sends it once."""

    path: str
    body: bytes
    content_type: str
    json_length: int | None = None


@dataclass(frozen=True)
class Answer:
    """What came back for a Post. `json_length` is that of the answer's own header."""

    body: bytes
    json_length: int | None = None


@dataclass(frozen=True)
class BatchCounts:
    """Requests and batches executed so far, as the server counts them."""

    requests: float
    batches: float


class Dialect(Protocol):
    wires: frozenset[Wire]
    ready_path: str
    statistics_path: str

    def post(self, workload: Workload, wire: Wire) -> Post: ...

    def complaint(self, workload: Workload, wire: Wire, answer: Answer) -> str | None:
        """What is wrong with the answer; None when it is right. May raise ValueError or KeyError on a foreign one."""
        ...

    def batches(self, statistics: str) -> BatchCounts | None: ...


def floats(raw: bytes) -> tuple[float, ...]:
    if len(raw) % 4:
        raise ValueError(f"{len(raw)} bytes are no float32 tensor")
    return struct.unpack(f"<{len(raw) // 4}f", raw)


def compare(got: tuple[float, ...], question: Question) -> str | None:
    if got == question.expected:
        return None
    return f"wrong answer: expected {question.expected[:4]}… ({len(question.expected)}), got {got[:4]}… ({len(got)})"


class V2:
    """KServe v2 over HTTP (JSON, binary tensors) and gRPC."""

    wires = frozenset(Wire)
    ready_path = "/v2/health/ready"
    statistics_path = f"/v2/models/{MODEL}/stats"

    def post(self, workload: Workload, wire: Wire) -> Post:
        question = workload.question
        if wire is Wire.GRPC:
            message = protobuf.infer_request(MODEL, "x", "FP32", question.shape, question.raw)
            return Post(GRPC_PATH, protobuf.frame(message), "application/grpc")
        path = f"/v2/models/{MODEL}/infer"
        tensor: dict[str, object] = {"name": "x", "datatype": "FP32", "shape": list(question.shape)}
        if wire is Wire.JSON:
            body = json.dumps({"inputs": [tensor | {"data": question.values}]}).encode()
            return Post(path, body, "application/json")
        tensor["parameters"] = {"binary_data_size": len(question.raw)}
        output = {"name": "y", "parameters": {"binary_data": True}}
        head = json.dumps({"inputs": [tensor], "outputs": [output]}).encode()
        return Post(path, head + question.raw, "application/octet-stream", len(head))

    def complaint(self, workload: Workload, wire: Wire, answer: Answer) -> str | None:
        return compare(self._numbers(wire, answer), workload.question)

    def _numbers(self, wire: Wire, answer: Answer) -> tuple[float, ...]:
        if wire is Wire.GRPC:
            outputs = protobuf.raw_outputs(protobuf.unframe(answer.body))
            if len(outputs) != 1:
                raise ValueError(f"expected one raw output, got {len(outputs)}")
            return floats(outputs[0])
        if wire is Wire.JSON:
            return tuple(float(number) for number in json.loads(answer.body)["outputs"][0]["data"])
        if answer.json_length is None:
            raise ValueError(f"asked for a binary output, the answer has no {JSON_LENGTH}")
        head = json.loads(answer.body[: answer.json_length])["outputs"][0]
        raw = answer.body[answer.json_length :]
        if head["parameters"]["binary_data_size"] != len(raw):
            raise ValueError(f"{head['parameters']['binary_data_size']} bytes announced, {len(raw)} came")
        return floats(raw)

    def batches(self, statistics: str) -> BatchCounts | None:
        stats = json.loads(statistics)["model_stats"][0]
        return BatchCounts(float(stats["inference_count"]), float(stats["execution_count"]))


class MosecRoutes:
    """The routes of `peers/mosec/serve_ident.py`: bare float32, or {"input": […]} answered by {"output": […]}."""

    wires = frozenset({Wire.BINARY, Wire.JSON})
    ready_path = "/metrics"
    statistics_path = "/metrics"

    def post(self, workload: Workload, wire: Wire) -> Post:
        question = workload.question
        if wire is Wire.JSON:
            return Post("/json", json.dumps({"input": question.values}).encode(), "application/json")
        path = "/image" if workload is Workload.IMAGE else "/raw"
        return Post(path, question.raw, "application/octet-stream")

    def complaint(self, workload: Workload, wire: Wire, answer: Answer) -> str | None:
        if wire is Wire.JSON:
            numbers = tuple(float(number) for number in json.loads(answer.body)["output"])
        else:
            numbers = floats(answer.body)
        return compare(numbers, workload.question)

    def batches(self, statistics: str) -> BatchCounts | None:
        """From Mosec's histogram of batch sizes, over all its routes: only one of them is used at a time."""
        sums = re.findall(r"^mosec_service_batch_size_sum\S* (\S+)$", statistics, re.MULTILINE)
        counts = re.findall(r"^mosec_service_batch_size_count\S* (\S+)$", statistics, re.MULTILINE)
        if not counts:
            return None
        return BatchCounts(sum(map(float, sums)), sum(map(float, counts)))


class Echo:
    """The floor: v2's bodies, sent back as they came or, for the image, cut to the answer's own size."""

    wires = frozenset({Wire.BINARY, Wire.GRPC})
    ready_path = "/"
    statistics_path = "/"

    def __init__(self, reply_bytes: int | None) -> None:
        self._reply_bytes = reply_bytes

    def post(self, workload: Workload, wire: Wire) -> Post:
        return V2().post(workload, wire)

    def complaint(self, workload: Workload, wire: Wire, answer: Answer) -> str | None:
        expected = self.post(workload, wire).body[: self._reply_bytes]
        if answer.body == expected:
            return None
        return f"wrong echo: expected {len(expected)} bytes, got {len(answer.body)}"

    def batches(self, statistics: str) -> BatchCounts | None:
        return V2().batches(statistics)
