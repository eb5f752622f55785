"""Reads whole pages: the functions between PP-OCR's three networks, each callable alone.

In the order data flows: `frame` (a picture to the detector's input), `boxes` (its answer to quadrilaterals), `crops`
(those to upright pictures of lines, batched), `words` (the recogniser's answer to text with places), and `reading`,
which puts them together around any three networks. None of them knows a runtime or a server.
"""
