"""Asks a server for what is in pictures, as any client of Triton does. Called by `__main__` and the tests."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tritonclient.grpc
import tritonclient.http

Protocol = Literal["http", "grpc"]
_CLIENTS: dict[Protocol, Any] = {"http": tritonclient.http, "grpc": tritonclient.grpc}


@dataclass(frozen=True, slots=True)
class Thing:
    """What is in a picture."""

    corners: tuple[float, float, float, float]  # left, top, right, bottom in pixels
    score: float  # the detector's
    class_id: int
    label: str
    class_score: float


class Client:
    def __init__(self, protocol: Protocol, address: str, model: str) -> None:
        """`address`: host:port."""
        self._module, self._model = _CLIENTS[protocol], model
        self._client = self._module.InferenceServerClient(address)

    def metadata(self) -> Any:
        """Of the model, as its protocol has it."""
        return self._client.get_model_metadata(self._model)

    def things(self, image: bytes) -> list[Thing]:
        """Raises InferenceServerException with what the server says."""
        tensor = self._module.InferInput("image", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([image], object))
        answer = self._client.infer(self._model, [tensor])

        def output(name: str) -> npt.NDArray[Any]:
            return np.asarray(answer.as_numpy(name))

        rows = zip(
            output("boxes").tolist(), output("scores").tolist(), output("class_ids").tolist(),
            output("labels").tolist(), output("class_scores").tolist(), strict=True,
        )  # fmt: skip
        return [
            Thing((box[0], box[1], box[2], box[3]), score, number, label.decode(), sure)
            for box, score, number, label, sure in rows
        ]

    def close(self) -> None:
        self._client.close()
