"""Reads lines of text: PP-OCRv6's recogniser behind one endpoint. `python -m examples.ocr.demo` shows all of it."""
