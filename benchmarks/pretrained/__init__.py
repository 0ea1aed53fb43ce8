"""Adapters on a language model that others trained, over learning rates; `python -m benchmarks.pretrained`."""
