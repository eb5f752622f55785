"""The parts of the story `utilisation`: layers, eight bits, many shapes in one engine, batches and memory."""
