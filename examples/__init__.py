"""What Penstock is for, in programs that run: one folder each, started with `python -m examples.NAME.demo`."""
