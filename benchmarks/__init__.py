"""Measurements; each module is a command: `python -m benchmarks.step_cost --help`."""
