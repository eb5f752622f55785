"""Loads for a server, and what they tell."""
