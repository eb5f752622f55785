"""Sentence embeddings with lengths that vary, served: text in, 384 numbers out, by a pipeline over MiniLM."""
