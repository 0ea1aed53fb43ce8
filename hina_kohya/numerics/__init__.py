"""Floor 0: pure functions on [..., m, n] tensors. Imports torch and nothing of this package's floors above."""
