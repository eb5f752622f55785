"""What the side-by-side benches share: workloads, the wire, peers, load generators, statistics, reports.

It promises to need nothing but the standard library, so that it measures any server from any Python 3.11, and to know
servers only over the wire. Called by `benches/dataplane.py`.
"""
