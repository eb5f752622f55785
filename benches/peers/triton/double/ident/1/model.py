"""y = 2x on float32[-1, 16] for Triton's python backend, one NumPy call per batch.

It promises what the other servers' model does, as well as this backend can do it: the requests' rows are joined once,
doubled once, and answered as slices. SLEEP (seconds) makes each batch sleep. Started by `harness/servers.py`.
"""

import os
import time

import numpy as np
import triton_python_backend_utils as pb_utils

SLEEP = float(os.environ.get("SLEEP", "0"))


class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        doubled = np.concatenate(inputs) * 2
        if SLEEP:
            time.sleep(SLEEP)
        responses = []
        first = 0
        for rows in inputs:
            end = first + rows.shape[0]
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", doubled[first:end])]))
            first = end
        return responses
