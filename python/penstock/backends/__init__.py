"""What an instance can run: a bare runtime or a Python function, each behind the small protocol of `base.py`."""
