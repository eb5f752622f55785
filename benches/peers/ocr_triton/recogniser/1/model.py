"""The recogniser for Triton's python backend: ONNX Runtime, one call for each batch that Triton's core forms.

MODEL is the ONNX file, THREADS the threads of each instance. Started by `benches/stories/ocr_ways.py`.
"""

import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

INPUT, OUTPUT = "x", "fetch_name_0_index"


class TritonPythonModel:
    def initialize(self, args):
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = int(os.environ["THREADS"])
        self.model = onnxruntime.InferenceSession(os.environ["MODEL"], settings, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, INPUT).as_numpy() for request in requests]
        found = self.model.run([OUTPUT], {INPUT: np.concatenate(inputs) if len(inputs) > 1 else inputs[0]})[0]
        responses = []
        first = 0
        for rows in inputs:
            end = first + rows.shape[0]
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor(OUTPUT, found[first:end])]))
            first = end
        return responses
