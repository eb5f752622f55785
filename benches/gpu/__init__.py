"""What `benches/engine_gpu.py` is made of: subjects and bars, architectures, ways, rounds, and the report.

`subjects`, `floor`, `results` and `report` need neither torch nor ONNX; `prepare` needs ONNX, the others torch.
Libraries are used as their documentation shows, not through Penstock: a comparison with oneself proves nothing.
"""
