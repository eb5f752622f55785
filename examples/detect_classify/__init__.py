"""A detector and a classifier of what it finds behind one endpoint.

In the order data flows: `pictures` (a picture to the detector's input), `detections` with `suppression` (its answer to
boxes), `pictures` again (boxes to crops), and `service`, the pipeline around both networks. `detector` makes the
detector's file and `networks` finds files; `python -m examples.detect_classify` serves and asks.
"""
