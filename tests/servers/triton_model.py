"""The model.py that a real Triton runs for every entry of `zoo`: what it does stands in the parameter `behaviour`.

Copied into a repository by `triton_repository.py`; it runs inside Triton's interpreter and imports nothing of ours.
"""

# mypy: ignore-errors
# It is loaded by another program, whose modules are not installed here.

import json
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.behaviour = config["parameters"]["behaviour"]["string_value"]
        self.outputs = [output["name"] for output in config["output"]]
        if self.behaviour == "broken":
            raise pb_utils.TritonModelException("this model never loads")

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        arrays = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        results = getattr(self, self.behaviour)(arrays)
        wanted = request.requested_output_names()
        return pb_utils.InferenceResponse([pb_utils.Tensor(n, v) for n, v in results.items() if n in wanted])

    def double(self, arrays):
        x = arrays["x"]
        return {"y": x * x.dtype.type(2)}

    def triple(self, arrays):
        x = arrays["x"]
        return {"y": x * x.dtype.type(3)}

    def negate(self, arrays):
        return {"y": np.logical_not(arrays["x"])}

    def reverse(self, arrays):
        x = arrays["x"]
        y = np.empty(x.shape, dtype=np.object_)
        for index in np.ndindex(x.shape):
            y[index] = x[index][::-1]
        return {"y": y}

    def addsub(self, arrays):
        a, b = arrays["INPUT0"], arrays["INPUT1"]
        return {"OUTPUT0": a + b, "OUTPUT1": a - b}

    def biased(self, arrays):
        return {"y": arrays["x"] + arrays["bias"] if "bias" in arrays else arrays["x"]}

    def sleep(self, arrays):
        time.sleep(float(arrays["ms"].max()) / 1000)
        return {"slept": arrays["ms"]}
