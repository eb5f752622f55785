"""Loads for any v2 server, and what they tell: the part of perf_analyzer.

Talks to a server as a client, in requests that a native generator sends. Called by `penstock bench` and by those who
measure on the way to something else.
"""
