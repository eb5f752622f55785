"""What `benches/engine_cpu.py` is made of: models, contenders in processes of their own, rounds, and the report.

Libraries are used as their documentation shows, not through Penstock: a comparison with oneself proves nothing.
"""
