"""One file per library that can execute a model. `base.py` holds what they have in common."""
