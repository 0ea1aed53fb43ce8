"""What is kept of a step: codecs, slabs, counters, and checkpoints with their formats."""
